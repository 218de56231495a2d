"""Checkpoints in a folder: whole or not there, written behind training's back, the newest ones kept."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tutelage.casework.checkpoints import Checkpoints
from tutelage.errors import TrainingError
from tutelage.methods.checkpoint import Best, Checkpoint
from tutelage.storage import Place

pytestmark = pytest.mark.torch

LONG_S = 60.0


@pytest.fixture(params=["local", "through pyarrow"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    there = tmp_path / "checkpoint"
    return Place.of(there) if request.param == "local" else Place(f"file://{there}")


def checkpoint(step: int) -> Checkpoint:
    weights = {"w": torch.full((100,), float(step))}
    return Checkpoint(
        step=step,
        networks=weights,
        mean=None,
        optimizer={"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1}]},
        best=Best(step, 0.5, weights),
        validated=((step, 0.5),),
        counts={"asks": 2.0},
        seconds=1.5,
    )


def saved(folder: Place, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(checkpoint(step))
        assert checkpoints.wait(LONG_S)
    return checkpoints


def steps(folder: Place) -> list[int]:
    return [int(name[5:11]) for name in folder.names(".pt")]


def test_an_empty_folder_has_none(folder: Place) -> None:
    assert Checkpoints(folder, 2).newest() is None


def test_the_newest_comes_back_as_it_was(folder: Place) -> None:
    assert saved(folder, 100, 200).safe.step == 200
    found = Checkpoints(folder, 2).newest()
    assert found is not None
    assert (found.step, found.validated, found.counts, found.seconds) == (
        200,
        ((200, 0.5),),
        {"asks": 2.0},
        1.5,
    )
    assert torch.equal(found.networks["w"], torch.full((100,), 200.0))
    assert found.best is not None
    assert torch.equal(found.best.weights["w"], found.networks["w"])
    assert found.optimizer["param_groups"] == [{"lr": 0.1}]


def test_as_many_as_wanted_are_kept_the_newest_by_number(folder: Place) -> None:
    saved(folder, 999_998, 999_999, 1_000_000, 1_000_001, keep=3)
    assert sorted(int(name.split("-")[1]) for name in folder.names(".pt")) == [999_999, 1_000_000, 1_000_001]
    found = Checkpoints(folder, 3).newest()
    assert found is not None
    assert found.step == 1_000_001


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[-3] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("damage", [cut, flipped])
def test_a_damaged_one_is_set_aside_and_named(
    folder: Place, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    saved(folder, 100, 200)
    newest = folder / folder.names(".pt")[-1]
    data = damage(newest.read_bytes())
    newest.write_bytes(data)
    found = Checkpoints(folder, 2).newest()
    assert found is not None
    assert found.step == 100
    assert f"{newest} is damaged" in caplog.text
    assert steps(folder) == [100]
    assert (folder / f"{newest.name}.damaged").read_bytes() == data


def test_one_of_another_version_is_set_aside_too(folder: Place, caplog: pytest.LogCaptureFixture) -> None:
    saved(folder, 100)
    older = checkpoint(200)
    object.__setattr__(older, "counts", [threading.Lock])  # what plain values cannot hold
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(older)
    assert checkpoints.wait(LONG_S)
    found = Checkpoints(folder, 2).newest()
    assert found is not None
    assert found.step == 100
    assert "not of this version" in caplog.text


def test_one_that_cannot_be_read_is_no_reason_to_start_over(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(folder, 100)

    def gone(place: Place) -> bytes:
        raise ConnectionError("the store is away")

    monkeypatch.setattr(Place, "read_bytes", gone)
    with pytest.raises(TrainingError, match=r"step-000100.*cannot be read \(the store is away\)"):
        Checkpoints(folder, 2).newest()
    assert steps(folder) == [100]


def test_a_file_of_an_older_version_makes_way_for_the_folder(
    folder: Place, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_bytes(b"all of a checkpoint in one file")
    assert Checkpoints(folder, 2).newest() is None
    assert "was a file" in caplog.text
    caplog.clear()
    saved(folder, 100)
    found = Checkpoints(folder, 2).newest()
    assert found is not None
    assert found.step == 100
    assert Place(f"{folder}.older").read_bytes() == b"all of a checkpoint in one file"
    assert not caplog.records


def test_one_that_cannot_be_set_aside_is_told_with_advice(
    folder: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(folder, 100)
    (folder / folder.names(".pt")[0]).write_bytes(b"damaged")

    def refused(place: Place, to: Place) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Place, "move", refused)
    with pytest.raises(
        TrainingError, match=r"step-000100.*\.pt cannot be set aside .*Permission denied.*delete it"
    ):
        Checkpoints(folder, 2).newest()


def test_other_workers_read_the_one_that_the_first_found(folder: Place) -> None:
    saved(folder, 100, 200)
    assert Checkpoints(folder, 2).of(100).step == 100
    with pytest.raises(TrainingError, match="no whole checkpoint of step 300 here"):
        Checkpoints(folder, 2).of(300)


# --- stores that are slow or away -----------------------------------------------------------


class Store:
    """Stands before a folder: writes wait until they are let through, and may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.broken = False
        write = Place.write_bytes

        def slowly(place: Place, data: bytes, lasting: bool = True) -> None:
            self.begun.set()
            assert self.open.wait(LONG_S)
            if self.broken:
                raise OSError(28, "No space left on device")
            write(place, data, lasting)

        monkeypatch.setattr(Place, "write_bytes", slowly)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store(monkeypatch)
    yield made
    made.open.set()


def test_saving_waits_for_nothing_and_of_those_that_wait_the_newest_is_written(
    folder: Place, store: Store
) -> None:
    checkpoints = Checkpoints(folder, 5)
    checkpoints.save(checkpoint(1))
    assert store.begun.wait(LONG_S)
    for step in (2, 3, 4):
        checkpoints.save(checkpoint(step))
    assert not checkpoints.wait(0.05)
    assert checkpoints.safe.step is None
    store.open.set()
    assert checkpoints.wait(LONG_S)
    assert steps(folder) == [1, 4]


def test_what_waits_is_given_up_when_training_is_done(
    folder: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(folder, 5)
    checkpoints.save(checkpoint(1))
    assert store.begun.wait(LONG_S)
    checkpoints.save(checkpoint(2))
    wait = checkpoints.wait

    def let_through(most_s: float) -> bool:
        store.open.set()
        return wait(most_s)

    monkeypatch.setattr(checkpoints, "wait", let_through)
    checkpoints.close(LONG_S)
    assert steps(folder) == [1]


def test_a_failure_is_told_and_the_next_one_tries_again(
    folder: Place, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.open.set()
    checkpoints = saved(folder, 1)
    store.broken = True
    checkpoints.save(checkpoint(2))
    assert checkpoints.wait(LONG_S)
    assert checkpoints.safe.step == 1
    assert "No space left" in (checkpoints.safe.failure or "")
    assert "checkpoint of step 2 could not be saved" in caplog.text
    assert "from step 1 if it is stopped" in caplog.text
    store.broken = False
    checkpoints.save(checkpoint(3))
    assert checkpoints.wait(LONG_S)
    assert (checkpoints.safe.step, checkpoints.safe.failure) == (3, None)
    assert steps(folder) == [1, 3]
