import logging
from collections.abc import Sequence

import pytest
import torch

from tutelage.errors import GeneralistError
from tutelage.generalists.batching import Batches, in_batches

pytestmark = pytest.mark.torch


class _Small:
    """Work with memory for only so many at once; remembers what it was asked."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, some: Sequence[int]) -> list[int]:
        self.sizes.append(len(some))
        if len(some) > self.room:
            raise torch.OutOfMemoryError("no memory left")
        return [10 * item for item in some]


def test_every_item_is_worked_on_once_and_in_order() -> None:
    work = _Small(room=100)
    assert in_batches(range(7), 3, work) == [0, 10, 20, 30, 40, 50, 60]
    assert work.sizes == [3, 3, 1]


def test_nothing_is_nothing() -> None:
    assert in_batches([], 3, _Small(room=0)) == []


def test_a_batch_that_does_not_fit_is_halved_and_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    work = _Small(room=3)
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert in_batches(range(20), 8, work, told.append, "slices") == [10 * i for i in range(20)]
    assert work.sizes == [8, 4] + [2] * 10
    assert told == [4, 2]
    assert "out of memory with 8 slices at once; going on with 4" in caplog.text


def test_what_was_finished_before_is_not_repeated() -> None:
    work = _Small(room=4)
    seen: list[int] = []

    def greedy(some: Sequence[int]) -> list[int]:
        work.room = 4 if not seen else 2
        made = work(some)
        seen.extend(some)
        return made

    in_batches(range(8), 4, greedy)
    assert seen == list(range(8))


def test_the_last_batch_is_halved_by_what_it_holds() -> None:
    work = _Small(room=2)
    assert in_batches(range(3), 64, work) == [0, 10, 20]
    assert work.sizes == [3, 1, 1, 1]


def test_a_single_item_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(GeneralistError, match=r"a single one of 3 slices does not fit .* precision: bf16"):
        in_batches(range(3), 2, _Small(room=0), what="slices")


def test_the_memory_of_a_failed_attempt_is_free_before_the_next() -> None:
    alive: list[object] = []

    class Tensor:
        def __init__(self) -> None:
            alive.append(id(self))

        def __del__(self) -> None:
            alive.pop()

    def work(some: Sequence[int]) -> list[int]:
        assert not alive, "the traceback of the attempt before still holds its tensors"
        held = Tensor()
        if len(some) > 1:
            raise torch.OutOfMemoryError("no memory left")
        return [id(held) for _ in some]

    assert len(in_batches(range(4), 4, work)) == 4


def test_other_errors_are_not_hidden() -> None:
    def broken(some: Sequence[int]) -> list[int]:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_batches(range(2), 2, broken)


def test_work_that_loses_an_item_is_refused() -> None:
    with pytest.raises(ValueError, match="found 1 results for 2 items"):
        in_batches(range(2), 2, lambda some: some[:1])


def test_batches_remember_what_fitted_and_count_the_halvings() -> None:
    batches, work = Batches(8, "slices"), _Small(room=3)
    batches.over(range(8), work)
    assert (batches.size, batches.halvings) == (2, 2)
    work.sizes.clear()
    batches.over(range(4), work)
    assert work.sizes == [2, 2]
    assert batches.halvings == 2


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="found a batch of 0 slices"):
        Batches(0)
