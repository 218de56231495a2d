"""Scans, models and servers for the tests of what is asked over HTTP."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve.segmenter import Finding, Segmented
from tutelage.archive import formats
from tutelage.archive.formats import Volume
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import ArchiveError, StoppedError, TrainingError
from tutelage.geometry import Grid

GRID = Grid.from_spacing((4, 6, 5), (3.0, 2.0, 2.0))

DIGEST = "d" * 64


def scan(folder: Path, name: str = "a.nii.gz", grid: Grid = GRID, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, grid.shape).astype(np.uint8)
    formats.write_image(str(folder / name), noise, grid)
    return (folder / name).read_bytes()


class Above:
    """Finds what is above 100, window by window; slow if told to be, and honest about being stopped."""

    name, version, digest, structures = "bright", "7", DIGEST, ("bright",)

    def __init__(self, windows: int = 1, window_s: float = 0.0, error: Exception | None = None) -> None:
        self.windows, self.window_s, self.error = windows, window_s, error
        self.windows_seen = self.batches = 0
        self.working = 0
        self.most = 0
        """How many threads were in here together."""
        self.hurry = threading.Event()
        """Set to have it done with what it does."""
        self.lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        return {"spacing_DHW_mm": [1.0, 1.0, 1.0], "structures": [{"value": 1, "structure": "bright"}]}

    def __call__(
        self, volume: Volume, stop: Callable[[], bool], progress: Callable[[int, int], None] | None = None
    ) -> Segmented:
        with self.lock:
            self.working += 1
            self.most = max(self.most, self.working)
        try:
            return self._segmented(volume, stop, progress)
        finally:
            with self.lock:
                self.working -= 1

    def _segmented(
        self, volume: Volume, stop: Callable[[], bool], progress: Callable[[int, int], None] | None
    ) -> Segmented:
        if self.error is not None:
            raise self.error
        if len(volume.image_CDHW) != 1:
            raise ArchiveError(f"it has {len(volume.image_CDHW)} channels, expected 1")
        for done in range(self.windows):
            if stop():
                raise StoppedError("nobody waits any more")
            if self.hurry.is_set():
                break
            time.sleep(self.window_s)
            self.windows_seen += 1
            self.batches += 1
            if progress is not None:
                progress(done + 1, self.windows)
        mask_DHW = (volume.image_CDHW[0] > 100).astype(np.uint8)
        voxels = int(mask_DHW.sum())
        found = Finding("bright", 1, voxels, voxels * volume.grid.voxel_ml, 1, 0.9, False, ())
        return Segmented(mask_DHW, (found,), self.name, self.version, self.digest, {"network": 0.01})


class Shown:
    """Models of which one is served, and one cannot be."""

    def __init__(self, segmenter: Above | None = None) -> None:
        self.segmenter = segmenter or Above()
        self.ready = True
        self.names = (self.segmenter.name, "broken")
        self.since = "2026-01-01T00:00:00+00:00"
        self.refused: dict[str, Any] | None = None

    def get(self, name: str = "") -> Above:
        if name == "broken":
            raise TrainingError("the weights in /secret/folder are damaged")
        return self.segmenter

    def describe(self) -> list[dict[str, Any]]:
        one = {"version": "7", "specialist": DIGEST, "structures": [], "since": self.since}
        return [
            {"name": "bright", "default": True, **one, "refused": self.refused},
            {"name": "broken", "default": False, **one, "refused": None},
        ]


def application(models: Any = None, tokens: Any = None, page: Path | None = None, **settings: Any) -> Any:
    from serve import routes

    served: Any = models or Shown()
    return routes.application(served, ServingSettings(**settings), tokens, page)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """Have an application on a real server of its own, and yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="on"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started, 20)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds, and fail if it does not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def token_file(folder: Path, **scopes: str) -> tuple[Path, dict[str, str]]:
    """Write a file of tokens by name and scopes; returns it and the secrets."""
    from tutelage.cluster import tokens

    made = {name: tokens.made(name, several.split()) for name, several in scopes.items()}
    tokens.write(folder / "tokens", [token for _, token in made.values()])
    return folder / "tokens", {name: secret for name, (secret, _) in made.items()}


def dicom_zip(folder: Path, patient: str) -> bytes:
    """Return a zip of a series whose headers and names of files say whose it is."""
    from tests.archive.test_dicom import series_of, turned
    from tests.archive.test_segmentation import referable
    from tests.archive.test_zipped import series, zipped

    slices = referable(series_of(axes=turned()))
    for one in slices:
        one.PatientName, one.PatientID, one.PatientBirthDate = patient, f"{patient}-1", "19510203"
    files = series(folder / "series", slices, within=f"{patient}/")
    for path in (folder / "series").iterdir():
        path.unlink()
    return zipped(files)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}
