"""Whose turn it is, without any case."""

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from tutelage.methods.turns import Turns


def drawn(turns: Turns, steps: range, places: int, seed: int = 3) -> list[list[int]]:
    """Cases of each step, place by place."""
    return [
        [
            next(
                turns.at(step, place, int(np.random.default_rng([seed, step, place]).integers(turns.choices)))
            )
            for place in range(places)
        ]
        for step in steps
    ]


def many(count: int = 100, places: int = 2, window: int = 10, reuse: int = 4, seed: int = 3) -> Turns:
    return Turns(count, places, window, reuse, seed, stream=1)


def window(turns: Turns, step: int, place: int = 1) -> list[int]:
    return list(turns.at(step, place, 0))[: turns.choices]


def test_of_a_few_cases_chance_alone_decides() -> None:
    turns = Turns(count=7, places=4, window=7, reuse=8, seed=0, stream=0)
    assert turns.choices == 7
    assert [next(turns.at(step, 2, chance)) for step in range(9) for chance in range(7)] == [*range(7)] * 9


@pytest.mark.parametrize("places", [1, 2, 3, 6])
@pytest.mark.parametrize("reuse", [1, 4, 8])
def test_every_case_has_its_turn_in_every_pass(places: int, reuse: int) -> None:
    turns = many(places=places, window=12, reuse=reuse)
    a_pass = -(-100 // places) * reuse
    first = {case for step in drawn(turns, range(a_pass), places) for case in step}
    assert first == set(range(100))
    for start in (a_pass // 2, 5 * a_pass, 7 * a_pass + 1):  # first in one pass, last in the next
        later = {case for step in drawn(turns, range(start, start + 2 * a_pass), places) for case in step}
        assert later == set(range(100))


def test_a_case_is_drawn_as_often_as_the_settings_say() -> None:
    seen = Counter(case for step in drawn(many(reuse=8), range(50 * 8 * 20), 2) for case in step)
    assert len(seen) == 100
    assert np.mean(list(seen.values())) == pytest.approx(8 * 20)
    assert min(seen.values()) > 100


def test_patches_come_from_a_window_that_slides_on_by_one_case() -> None:
    turns, steps = many(window=10, reuse=4), drawn(many(window=10, reuse=4), range(400), 2)
    for place in range(2):
        windows = [window(turns, 4 * turn, place) for turn in range(100)]
        assert {len(window) for window in windows} == {5}
        assert all(before[1:] == after[:-1] for before, after in pairwise(windows))
        for step, cases in enumerate(steps):
            assert cases[place] in windows[step // 4]
            assert step % 4 or cases[place] == windows[step // 4][0], (
                "the one that leaves is sure to be drawn"
            )


def test_each_case_is_dealt_to_one_place_in_a_pass() -> None:
    """So of two workers, one decodes it."""
    steps = drawn(many(reuse=4), range(50 * 4), 2)
    first, second = ({step[place] for step in steps} for place in range(2))
    at_the_end = 5  # the window reaches into the next pass
    assert len(first & second) <= 2 * at_the_end
    assert first | second == set(range(100))


def test_orders_differ_by_pass_stream_and_seed() -> None:
    def order(turns: Turns, number: int) -> list[int]:
        return [step[0] for step in drawn(turns, range(100 * number, 100 * (number + 1)), 1)]

    told = [(3, 0), (3, 1), (4, 0)]
    orders = [order(Turns(100, 1, 10, 1, seed, stream), n) for seed, stream in told for n in range(2)]
    assert all(sorted(one) == list(range(100)) for one in orders)
    assert len({tuple(one) for one in orders}) == 6
    assert orders[0] == order(Turns(100, 1, 10, 1, 3, 0), 0)


def test_those_of_the_window_stand_in_and_then_those_that_come_next() -> None:
    turns = many(window=10)
    for step in (1, 3, 777):
        for chance in range(turns.choices):
            stand_in, ordered = (list(turns.at(step, 1, first)) for first in (chance, 0))
            assert stand_in[:5] == ordered[chance:5] + ordered[:chance]
            assert stand_in[5:] == ordered[5:]
            assert ordered[5] == window(turns, step + 4)[-1]
    few = Turns(count=4, places=2, window=4, reuse=1, seed=0, stream=0)
    assert list(few.at(9, 0, 2)) == [2, 3, 0, 1]


def test_a_window_smaller_than_the_places_still_gives_each_a_case() -> None:
    steps = drawn(many(places=8, window=3, reuse=2), range(40), 8)
    assert all(len(set(step)) == 8 for step in steps[:20])


def test_a_million_cases_are_no_burden() -> None:
    turns = many(count=10**6, places=4, window=256)
    began = time.process_time()
    seen = drawn(turns, range(10**6, 10**6 + 200), 4)
    assert time.process_time() - began < 5
    assert {0 <= case < 10**6 for step in seen for case in step} == {True}
