"""A server with the page, somebody with a browser in front of it, and what is seen there."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from tests.browser import Tab
from tutelage.archive import formats
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import StoppedError
from tutelage.geometry import Grid

if TYPE_CHECKING:
    from serve.models import Models

GRID = Grid.from_matrix(
    (10, 24, 20), np.array([[0, -2.6, 8.6, 5.0], [0, 8.6, 2.6, -30.0], [18.0, 0, 0, 7.0]])
)
WAIT_MODELS = "document.querySelector('#serving').textContent || !document.querySelector('#problem').hidden"
WAIT_DONE = (
    "!document.querySelector('#done').hidden && document.querySelectorAll('#structures tr').length"
    " && document.querySelector('#place').textContent"
)
ROWS = """[...document.querySelectorAll('#structures tr[data-structure]')].map(
  row => [...row.cells].map(cell => cell.innerText.trim()))"""
TOO_WIDE = """[...document.querySelectorAll('body *')]
  .filter(one => one.checkVisibility() && !one.closest('.unseen, #choosing label')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 90))"""
CONTRAST = """(() => {
  const light = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number)
    .map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return [light(getComputedStyle(document.documentElement).backgroundColor),
    light(getComputedStyle(document.body).color)];
})()"""


@dataclass
class Served:
    """A server with the page."""

    address: str

    def asked(self, image: Path, accept: str, model: str = "") -> bytes:
        """Return what the interface answers to a scan."""
        request = Request(
            f"{self.address}v1/segment?name={quote(image.name)}&model={model}", image.read_bytes()
        )
        request.add_header("Accept", accept)
        with urlopen(request, timeout=120) as answer:
            data: bytes = answer.read()
        return data


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[Served]:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/")
    finally:
        server.should_exit = True
        thread.join(30)


def opened(shown: Tab, served: Served, width: int = 1280, dark: bool = False) -> None:
    shown.open(served.address, width, dark)
    shown.until(WAIT_MODELS)


def pixels(shown: Tab, folder: Path) -> NDArray[np.int16]:
    """Return what is seen of the slices, (H, W, RGB)."""
    from PIL import Image

    shown.picture(folder / "slices.png", "#canvas")
    return np.asarray(Image.open(folder / "slices.png").convert("RGB")).astype(np.int16)


def until_changed(shown: Tab, folder: Path, before_HWC: NDArray[np.int16]) -> NDArray[np.int16]:
    """Wait until the slices look otherwise, and return how."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        now_HWC = pixels(shown, folder)
        if np.abs(now_HWC - before_HWC).max() > 20:
            return now_HWC
    raise AssertionError("the slices stayed as they were")


def downloaded(shown: Tab, button: str, folder: Path, name: str) -> bytes:
    """Press a button and return the file that comes of it."""
    shown.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    shown.click(button)
    deadline = time.monotonic() + 30
    while not (folder / name).is_file():
        assert time.monotonic() < deadline, sorted(folder.iterdir())
        time.sleep(0.05)
    return (folder / name).read_bytes()


def read(path: Path) -> formats.Volume:
    from serve import uploads

    with uploads.Upload(path.open("rb"), path.stat().st_size, path.name) as upload:
        return uploads.read(upload, ServingSettings()).volume


def intensity_at(volume: formats.Volume, place: str) -> float:
    """Return what a scan holds at a place that the page tells."""
    mm = [float(number) for number in re.findall(r"\b[xyz] (-?[0-9.]+)", place)]
    d, h, w = np.rint(np.linalg.solve(volume.grid.matrix, [*mm, 1.0])[:3]).astype(int)
    return float(volume.image_CDHW[0, d, h, w])


class Slow:
    """Models whose answers take until they are stopped."""

    def __init__(self, models: "Models") -> None:
        self._models = models
        self.began, self.stopped = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def get(self, name: str = "") -> "Endless":
        return Endless(self._models.get(name), self)


class Endless:
    """One of them."""

    def __init__(self, segmenter: Any, told: Slow) -> None:
        self._segmenter, self._told = segmenter, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def __call__(self, volume: formats.Volume, stop: Callable[[], bool], progress: Any = None) -> Any:
        self._told.began.set()
        while not stop():
            time.sleep(0.01)
        self._told.stopped.set()
        raise StoppedError("nobody waits any more")
