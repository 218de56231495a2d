"""Windows of several callers through one network: same logits, nobody held up, nobody forgotten."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.errors import StoppedError
from tutelage.specialist.looking import Looking

pytestmark = pytest.mark.torch


class Gate:
    """A network that adds one to what it sees, once it is let; it remembers the sizes of its batches."""

    def __init__(self, open_: bool = True) -> None:
        self.sizes: list[int] = []
        self.begun = threading.Event()
        self.open = threading.Event()
        if open_:
            self.open.set()

    def __call__(self, windows_BCDHW: Tensor) -> Tensor:
        self.sizes.append(len(windows_BCDHW))
        self.begun.set()
        assert self.open.wait(30)
        return windows_BCDHW + 1


def window(value: float, count: int = 1, side: int = 2) -> Tensor:
    return torch.full((count, 1, side, side, side), value)


def values(seen: Tensor) -> list[float]:
    return sorted(set(seen.flatten().tolist()))


def held(gate: Gate, looking: Looking, asked: list[Callable[[], Any]]) -> list[Any]:
    """Have one caller in the network, the others in line in this order, then open the gate."""
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        first = pool.submit(looking, window(-1))
        assert gate.begun.wait(30)
        waiting = []
        for n, one in enumerate(asked):
            waiting.append(pool.submit(one))
            deadline = time.monotonic() + 30
            while len(looking._line._waiting) <= n and time.monotonic() < deadline:
                time.sleep(0.001)
        gate.open.set()
        first.result(30)
        return [done.result(30) for done in waiting]


def test_those_who_wait_are_looked_at_together_and_get_their_own_logits() -> None:
    gate = Gate(open_=False)
    looking = Looking(gate, at_once=8)
    asked: list[Callable[[], Tensor]] = [lambda v=v: looking(window(v, v)) for v in (1, 2, 3)]  # type: ignore[misc]
    answers = held(gate, looking, asked)
    assert gate.sizes == [1, 6]
    assert [values(answer) for answer in answers] == [[2], [3], [4]]
    assert [len(answer) for answer in answers] == [1, 2, 3]
    assert (looking.windows, looking.batches) == (7, 2)


def test_nobody_waits_for_a_batch_to_fill() -> None:
    gate = Gate()
    looking = Looking(gate, at_once=8)
    for value in range(3):
        assert values(looking(window(value))) == [value + 1]
    assert gate.sizes == [1, 1, 1]


def test_windows_of_other_shapes_go_by_themselves_and_in_turn() -> None:
    gate = Gate(open_=False)
    looking = Looking(gate, at_once=8)
    answers = held(
        gate,
        looking,
        [lambda: looking(window(1)), lambda: looking(window(2, side=3)), lambda: looking(window(3))],
    )
    assert gate.sizes == [1, 2, 1]
    assert [tuple(answer.shape[2:]) for answer in answers] == [(2, 2, 2), (3, 3, 3), (2, 2, 2)]


def test_more_windows_than_go_at_once_are_looked_at_in_parts() -> None:
    gate = Gate()
    looking = Looking(gate, at_once=3)
    seen = torch.arange(7.0).reshape(7, 1, 1, 1, 1)
    assert torch.equal(looking(seen), seen + 1)
    assert gate.sizes == [3, 3, 1]


def test_an_error_reaches_the_callers_of_its_batch_and_no_others() -> None:
    def network(windows_BCDHW: Tensor) -> Tensor:
        if windows_BCDHW.shape[-1] == 3:
            raise FloatingPointError("no such number")
        return gate(windows_BCDHW)

    gate = Gate(open_=False)
    looking = Looking(network, at_once=8)

    def failing() -> str:
        with pytest.raises(FloatingPointError, match="no such number"):
            looking(window(0, side=3))
        return "told"

    answers = held(gate, looking, [failing, lambda: looking(window(1)), failing])
    assert (answers[0], answers[2]) == ("told", "told")
    assert values(answers[1]) == [2]
    assert values(looking(window(5))) == [6]


def test_a_caller_that_stops_leaves_the_line_and_holds_up_nobody() -> None:
    gate = Gate(open_=False)
    looking = Looking(gate, at_once=1)
    stopped = threading.Event()

    def stopping() -> float:
        began = time.monotonic()
        with pytest.raises(StoppedError):
            looking(window(1), stopped.is_set)
        return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(looking, window(0))
        assert gate.begun.wait(30)
        gone = pool.submit(stopping)
        other = pool.submit(looking, window(2))
        stopped.set()
        gone.result(30)  # while the network is still at it for somebody else
        assert not first.done()
        gate.open.set()
        assert values(first.result(30)) == [1]
        assert values(other.result(30)) == [3]
    assert gate.sizes == [1, 1], "what nobody waits for was not looked at"


def test_memory_that_runs_out_halves_the_batch_and_nobody_hears_of_it() -> None:
    sizes: list[int] = []

    def network(windows_BCDHW: Tensor) -> Tensor:
        sizes.append(len(windows_BCDHW))
        if len(windows_BCDHW) > 2:
            raise torch.OutOfMemoryError("not so many")
        return windows_BCDHW + 1

    looking = Looking(network, at_once=8)
    seen = torch.arange(7.0).reshape(7, 1, 1, 1, 1)
    assert torch.equal(looking(seen), seen + 1)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert looking.at_once == 2
    assert (looking.windows, looking.batches) == (7, 4)


def test_a_single_window_that_does_not_fit_is_told_with_advice() -> None:
    def network(windows_BCDHW: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("none at all")

    looking = Looking(network, at_once=4)
    with pytest.raises(torch.OutOfMemoryError, match=r"serving\.ongoing"):
        looking(window(0))


def test_the_thread_ends_when_nobody_holds_it_any_more() -> None:
    """So a model that was exchanged goes once the last of its callers has."""

    class Network:
        def __call__(self, windows_BCDHW: Tensor) -> Tensor:
            return windows_BCDHW + 1

    before = set(threading.enumerate())
    network = Network()
    gone = weakref.ref(network)
    looking = Looking(network, at_once=1)
    looking(window(0))
    (thread,) = set(threading.enumerate()) - before
    del looking, network
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
    assert gone() is None


def test_who_asks_after_the_end_is_refused_instead_of_waiting_for_ever() -> None:
    looking = Looking(Gate(), at_once=1)
    looking.close()
    with pytest.raises(RuntimeError, match="closed"):
        looking(window(0))


def test_answers_are_the_callers_to_overwrite() -> None:
    gate = Gate(open_=False)
    looking = Looking(gate, at_once=8)

    def overwriting(value: float) -> Tensor:
        with torch.inference_mode():
            return looking(window(value)).mul_(10)

    answers = held(gate, looking, [lambda: overwriting(1), lambda: overwriting(2)])
    assert [values(answer) for answer in answers] == [[20], [30]]
