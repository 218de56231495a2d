"""Copies that die or are taken down while they work: answers are right or there are none."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serve.running import Asking, Running, running
from tutelage.archive import formats
from tutelage.geometry import Grid

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.process]


@pytest.fixture(scope="module")
def held() -> Iterator[ExitStack]:
    """What the server is held by, for a test that lets it go."""
    with ExitStack() as held:
        yield held


@pytest.fixture(scope="module")
def server(held: ExitStack, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return held.enter_context(running(tmp_path_factory.mktemp("served"), drain_s=60.0))


def test_a_copy_that_is_killed_costs_time_and_no_answer(server: Running, tmp_path: Path) -> None:
    (pid,) = server.pids()
    with Asking(server, tmp_path, clients=3) as asking:
        asking.until(lambda: len(asking.answers) > 3)
        os.kill(pid, signal.SIGKILL)
        before = len(asking.answers)
        asking.until(lambda: len(asking.answers) > before + 6, seconds=180)
    assert asking.errors == []
    assert [answer for answer in asking.answers if not server.is_right(answer)] == []
    assert pid not in server.pids()


def test_whoever_asks_plainly_is_told_a_right_mask_or_to_ask_again(server: Running, tmp_path: Path) -> None:
    """By a client that asks once, to which Ray's proxy tells itself that a copy is gone."""
    from tests.serve.serving import until

    body = server.scan.read_bytes()
    answers: list[httpx.Response] = []
    errors: list[httpx.HTTPError] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                answers.append(httpx.post(f"{server.url}/v1/segment", content=body, timeout=180))
            except httpx.HTTPError as error:
                errors.append(error)

    (pid,) = server.pids()
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(answers) > 3, 90)
        os.kill(pid, signal.SIGKILL)
        before = len(answers)
        until(lambda: [one.status_code for one in answers[before:]].count(200) > 6, 180)
    finally:
        over.set()
        for thread in threads:
            thread.join(300)
    assert errors == []
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            path = tmp_path / f"{number}.nii.gz"
            path.write_bytes(answer.content)
            assert server.is_mask(path, answer.headers["x-tutelage-specialist"])
        elif answer.status_code == 500:
            assert answer.headers["content-type"].startswith("text/plain")
        else:
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


def test_what_was_begun_is_finished_when_the_server_is_taken_down(
    server: Running, held: ExitStack, tmp_path: Path
) -> None:
    grid = Grid.from_spacing((48, 96, 120), (18.0, 9.0, 9.0))
    formats.write_image(tmp_path / "large.nii.gz", np.zeros(grid.shape, np.uint8), grid)
    body = (tmp_path / "large.nii.gz").read_bytes()
    ended: list[tuple[int, float]] = []

    def ask() -> None:
        answer = httpx.post(f"{server.url}/v1/segment", content=body, timeout=120)
        ended.append((answer.status_code, time.monotonic()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while "tutelage_scans_in_flight 4.0" not in httpx.get(f"{server.url}/metrics", timeout=60).text:
        assert not ended, "they were done before all had begun"
    taken_down = time.monotonic()
    held.close()
    for thread in threads:
        thread.join()
    assert [status for status, _ in ended] == [200] * 4
    assert max(when for _, when in ended) > taken_down
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url, timeout=5)
