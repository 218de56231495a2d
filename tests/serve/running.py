"""A real server on Ray Serve, with two specialists of which either can be champion, and what is right."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.conftest import free_port
from tutelage.archive import formats
from tutelage.client import Answer, Client
from tutelage.geometry import Grid
from tutelage.storage import Place

GRID = Grid.from_spacing((24, 64, 80), (18.0, 9.0, 9.0))
"""Some tenths of a second of work, so that requests meet."""

STAGES = ("r00", "r01")


@dataclass
class Running:
    """A server, what it serves, and what it should answer."""

    url: str
    folder: Path
    scan: Path
    digests: tuple[str, ...] = ()
    masks: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By digest of the specialist."""

    def promote(self, stage: str) -> None:
        """Make a stage's specialist the champion, as the campaign does."""
        told = {"stage": stage, "folder": f"rounds/{stage}/specialist"}
        Place.of(self.folder / "workspace" / "champion.json").write_text(json.dumps(told))

    def model(self) -> dict[str, Any]:
        """What is told of the default model."""
        told: dict[str, Any] = httpx.get(f"{self.url}/v1/models", timeout=60).json()["models"][0]
        return told

    def is_right(self, answer: Answer) -> bool:
        """Whether an answer is the mask of the specialist that it names."""
        return self.is_mask(answer.path, answer.specialist)

    def is_mask(self, path: Path, specialist: str) -> bool:
        """Whether a file is the mask of a specialist, by its digest."""
        return bool(np.array_equal(formats.read_label(path, GRID, 2), self.masks[specialist]))

    def pids(self) -> list[int]:
        """Processes that serve."""
        from tutelage.bench.processes import descendants, is_called

        return [pid for pid in descendants(os.getpid()) if is_called(pid, "ServeReplica")]


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Running]:
    """Have a server of its own; a Ray has to be there."""
    from tutelage.cluster.serving import ServeJob, served
    from tutelage.cluster.settings import ClusterSettings, ServingSettings
    from tutelage.specialist.predictor import Predictor

    told = Running("", folder, folder / "scan.nii.gz")
    noise_DHW = np.random.default_rng(0).integers(0, 255, GRID.shape).astype(np.uint8)
    formats.write_image(told.scan, noise_DHW, GRID)
    volume = formats.read_image(told.scan)
    for seed, stage in enumerate(STAGES):
        place = Place.of(folder / "workspace" / "rounds" / stage / "specialist")
        predictor = Predictor(_made(place, seed))
        told.masks[predictor.digest] = predictor.mask(volume.image_CDHW, volume.grid)
    told.digests = tuple(told.masks)
    told.promote(STAGES[0])
    job = ServeJob(
        {"ours": str(folder / "workspace"), "other": f"{folder}/workspace/rounds/r01/specialist"},
        "127.0.0.1",
        free_port(),
        ServingSettings(open=True, follow_s=0.2, **settings),
    )
    with served(job, ClusterSettings()) as told.url:
        yield told


def _made(place: Place, seed: int) -> Place:
    import torch

    from tutelage.specialist import artifact, network
    from tutelage.specialist.plan import make_plan
    from tutelage.specialist.settings import SpecialistSettings

    grid = Grid.from_spacing((12, 32, 40), (18.0, 9.0, 9.0))
    plan = make_plan([grid], ["liver", "spleen"], 1, SpecialistSettings(channels=(8, 16)))
    torch.manual_seed(seed)
    artifact.save(place, network.build(plan).state_dict(), plan, {})
    return place


class Asking:
    """Clients that ask again and again, each in a thread, until they are told to stop."""

    def __init__(self, server: Running, folder: Path, clients: int) -> None:
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self._server, self._folder = server, folder
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(300)

    def until(self, holds: Callable[[], object], seconds: float = 90.0) -> None:
        """Let them ask until something holds, and fail if it never does."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"it did not happen in time; errors: {self.errors[:3]}"
            time.sleep(0.05)

    def specialists(self) -> set[str]:
        """Who answered so far."""
        return {answer.specialist for answer in self.answers}

    def _ask(self, number: int) -> None:
        with Client(self._server.url, patience_s=self.patience_s) as client:
            for turn in range(10_000):
                if self._over.is_set():
                    return
                try:
                    out = self._folder / f"{number}-{turn}.nii.gz"
                    self.answers.append(client.segment(self._server.scan, out))
                except Exception as error:  # whatever it was, the test tells
                    self.errors.append(error)

    patience_s = 120.0
