"""The board between training workers and their driver holds little, and keeps the order of what happened."""

import pytest

from tutelage.cluster.board import Begun, Board, Lost, Pinned, lost, thinned

pytestmark = pytest.mark.ray


def test_what_is_taken_is_in_order_and_taken_once() -> None:
    board = Board()
    told: list[Pinned] = [Begun(0), b"steps 0 to 3", Lost((0,), "killed"), Begun(0), b"steps 2 to 5"]
    for what in told:
        assert not board.pin(what)
    assert board.take() == told
    assert board.take() == []


def test_workers_hear_with_their_next_report_that_they_have_to_stop() -> None:
    board = Board()
    board.stop()
    assert board.pin(b"steps")


def test_what_nobody_takes_is_thinned_out_but_for_the_newest() -> None:
    kept: list[int] = []
    for number in range(10_000):
        kept = thinned([*kept, number], 100)
        assert len(kept) <= 100
    assert kept[-1] == 9_999
    assert kept == sorted(kept)
    assert kept[0] < 1_000, "the beginning of a curve was lost"


def test_a_worker_that_died_says_more_than_those_cut_off_from_it() -> None:
    from ray.exceptions import ActorDiedError

    told = lost({0: RuntimeError("Connection closed by peer"), 1: ActorDiedError()})
    assert told.ranks == (1, 0)
    assert str(told).startswith("worker 1 lost (ActorDiedError: The actor died")
    assert str(told).endswith(", 1 more with it")
    assert str(lost({2: OSError("the disk\nis on fire")})) == "worker 2 lost (OSError: is on fire)"
