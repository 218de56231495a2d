"""Texts on disk instead of in memory."""

import tracemalloc

from tutelage.priors.aside import Aside


def test_texts_come_back_by_key_and_in_the_order_of_keys() -> None:
    aside = Aside()
    aside["b"], aside["a"], aside["b"] = "one", "two", "three"
    assert (len(aside), "a" in aside, "c" in aside, aside.get("c")) == (2, True, False, None)
    assert list(aside.items()) == [("a", "two"), ("b", "three")]


def test_memory_does_not_grow_with_texts() -> None:
    aside = Aside()
    tracemalloc.start()
    try:
        for n in range(2000):
            aside[str(n)] = f"{n}" * 500
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(aside) == 2000
    assert held < 100_000
