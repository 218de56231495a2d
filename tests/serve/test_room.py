"""Memory for volumes: large ones wait for each other, small ones do not, and nobody waits forever."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tutelage.errors import StoppedError

if TYPE_CHECKING:
    from serve.room import Room

pytestmark = pytest.mark.torch


@pytest.fixture
def room() -> "Room":
    from serve.room import Room

    return Room(free=lambda: 1250, total=lambda: 5000)  # of which 1000 are given away


def never() -> bool:
    return False


def asks(room: "Room", part: object, held: int, working: int, done: list[object]) -> threading.Thread:
    def wait() -> None:
        room.wait(part, held, working, never)  # type: ignore[arg-type]
        done.append(part)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.3)
    return thread


def test_what_fits_goes_on_beside_others_and_what_does_not_waits(room: "Room") -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(room.part()) for _ in range(2))
        room.wait(first, 400, 0, never)
        room.wait(second, 600, 0, never)
        done: list[object] = []
        with room.part() as third:
            thread = asks(room, third, 1, 0, done)
            assert not done
            room.put(second, 599, 0)
            thread.join(5)
            assert done == [third]


def test_whoever_is_alone_goes_on_however_large(room: "Room") -> None:
    with room.part() as part:
        room.wait(part, 10**9, 0, never)
        room.wait(part, 10**9, 10**9, never)


def test_two_that_are_read_do_not_wait_for_each_other(room: "Room") -> None:
    with room.part() as first, room.part() as second:
        room.put(first, 900, 0)
        room.put(second, 900, 0)
        room.wait(first, 900, 900, never)
        done: list[object] = []
        thread = asks(room, second, 900, 900, done)
        assert not done
        room.put(first, 0, 0)
        thread.join(5)
        assert done == [second]


def test_who_is_stopped_does_not_wait(room: "Room") -> None:
    with room.part() as first, room.part() as second:
        room.wait(first, 0, 1000, never)
        with pytest.raises(StoppedError):
            room.wait(second, 1, 0, lambda: True)


def test_what_was_taken_is_given_back_when_something_fails(room: "Room") -> None:
    def fails() -> None:
        with room.part() as first:
            room.wait(first, 1000, 0, never)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with room.part() as second, room.part() as third:
        room.wait(second, 500, 0, never)
        room.wait(third, 500, 0, never)


def test_what_can_never_fit_is_refused(room: "Room") -> None:
    from serve.uploads import TooLargeError

    room.refuse_impossible(5000)
    with pytest.raises(TooLargeError, match="coarser"):
        room.refuse_impossible(5001)


def test_a_coarse_scan_takes_more_for_a_fine_model(tmp_path: Path) -> None:
    from serve.room import working_bytes
    from tests.serve.serving import scan
    from tutelage.archive import formats

    scan(tmp_path)
    volume = formats.read_image(str(tmp_path / "a.nii.gz"))
    told = {"structures": [1, 2], "spacing_DHW_mm": list(volume.grid.spacing)}
    image = volume.image_CDHW.nbytes
    assert working_bytes(volume, told) == pytest.approx(6 * image, rel=0.01)
    finer = {**told, "spacing_DHW_mm": list(np.array(volume.grid.spacing) / 2)}
    assert working_bytes(volume, finer) == pytest.approx((1 + 5 * 8) * image, rel=0.01)


def test_the_machine_tells_how_much_there_is() -> None:
    from serve.room import free_bytes, total_bytes

    assert 10**7 < free_bytes() < total_bytes()


def test_a_scan_that_could_never_be_read_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is read: what its voxels are is not looked at."""
    import httpx

    from serve.room import Room
    from tests.serve.serving import application, listening
    from tutelage.archive import formats
    from tutelage.geometry import Grid

    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))
    monkeypatch.setattr(formats, "read_image_stream", lambda *_: pytest.fail("it was read"))
    zeros = np.zeros((50, 50, 50), np.float64)
    formats.write_image(str(tmp_path / "a.nii.gz"), zeros, Grid.from_spacing(zeros.shape, (1, 1, 1)))
    app = application()
    app.state.desk.room = Room(total=lambda: 1_500_000)  # of which 1.2 MB are given away; it takes 1.5
    with listening(app) as address:
        answer = httpx.post(f"{address}/v1/segment", content=(tmp_path / "a.nii.gz").read_bytes())
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:tutelage:too-large")
    assert "GB of memory, expected at most" in answer.json()["detail"]


def test_large_scans_are_segmented_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from serve.room import Room
    from tests.serve.serving import Above, Shown, application, listening, scan, until

    monkeypatch.setenv("TUTELAGE_SPOOL", str(tmp_path))
    for free, together in ((10**12, 3), (1000, 1)):
        slow = Above(windows=3000, window_s=0.02)
        app = application(Shown(slow), ongoing=3)
        app.state.desk.room = Room(free=lambda free=free: free)  # type: ignore[misc]
        with listening(app) as address:
            hrefs = [
                httpx.post(f"{address}/v1/jobs", content=scan(tmp_path)).json()["href"] for _ in range(3)
            ]
            until(lambda slow=slow, together=together: slow.working == together, 30)  # type: ignore[misc]
            time.sleep(0.3)  # for one more to come in, were it let in
            slow.hurry.set()
            for href in hrefs:
                until(lambda href=href: httpx.get(f"{address}{href}").json()["state"] == "done", 30)  # type: ignore[misc]
        assert slow.most == together
