"""The queue of one copy: who comes in, whose turn it is, and when the others are to come back."""

import asyncio

import pytest

from serve.admission import Turns
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import BusyError


def test_no_more_are_inside_than_work_and_wait() -> None:
    turns = Turns(ongoing=1, queued=1, patience_s=1)
    with turns.door(), turns.door():
        assert turns.inside == 2
        with pytest.raises(BusyError, match="2 requests are worked on or wait"), turns.door():
            pytest.fail("a third one came in")
    with turns.door():
        assert turns.inside == 1


def test_whoever_fails_leaves_the_house() -> None:
    turns = Turns(ongoing=1, queued=0, patience_s=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="lost"), turns.door():
            raise ValueError("lost")
    assert turns.inside == 0


def test_places_are_given_in_the_order_of_asking_and_never_twice() -> None:
    order: list[int] = []
    most = 0

    async def one(turns: Turns, number: int) -> None:
        nonlocal most
        async with turns.turn():
            most = max(most, turns.working)
            order.append(number)
            await asyncio.sleep(0.01)

    async def all_of_them() -> None:
        turns = Turns(ongoing=2, queued=9, patience_s=5)
        await asyncio.gather(*(one(turns, number) for number in range(6)))
        assert (turns.working, turns.waiting) == (0, 0)

    asyncio.run(all_of_them())
    assert order == list(range(6))
    assert most == 2


def test_whoever_waits_too_long_is_told_to_come_back_and_the_place_is_not_lost() -> None:
    async def impatient() -> None:
        turns = Turns(ongoing=1, queued=9, patience_s=0.02)
        async with turns.turn():
            with pytest.raises(BusyError, match=r"no place was free for 0\.02 seconds"):
                async with turns.turn():
                    pytest.fail("two had one place")
            assert turns.waiting == 0
        async with turns.turn():
            assert turns.working == 1

    asyncio.run(impatient())


def test_somebody_who_leaves_while_waiting_takes_no_place() -> None:
    async def leaving() -> None:
        turns = Turns(ongoing=1, queued=9, patience_s=5)

        async def visitor() -> None:
            async with turns.turn():
                pytest.fail("it came in")

        async with turns.turn():
            waiting = asyncio.create_task(visitor())
            await asyncio.sleep(0)
            assert turns.waiting == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with turns.turn():
            assert (turns.working, turns.waiting) == (1, 0)

    asyncio.run(leaving())


def test_the_longer_turns_are_the_later_one_is_to_come_back() -> None:
    turns = Turns(ongoing=2, queued=0, patience_s=1)
    assert turns._busy("full").retry_after_s == 1
    turns._mean_s, turns.waiting = 10.0, 8
    assert turns._busy("full").retry_after_s == 20
    turns._mean_s = 1e6
    assert turns._busy("full").retry_after_s == 60


def test_settings_say_how_many() -> None:
    turns = Turns.of(ServingSettings(ongoing=3, queued=5, timeout_s=7))
    assert (turns.ongoing, turns.queued, turns.patience_s) == (3, 5, 7)
