"""Clients that ask a server at the same time, in a process of their own, and what each answer was.

    python -m tutelage.bench.crowd ORDER.json

It decides how a crowd behaves: every client asks for the next thing as soon as it has its answer, and
comes back soon when the server is full. Bodies of answers are kept once for each content, so that whoever
started the crowd can look whether they are right. What that means is another file's business.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from tutelage.errors import ServerError

_PAUSE_S = 0.25
"""After which a client comes back to a full server, which asks for more: the crowd is to press."""

_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a crowd does."""

    url: str
    scans: tuple[str, ...]
    """Files that are sent, one after another."""
    clients: int
    out: str
    """Folder for what the crowd found."""
    asks: int | None = None
    """Requests in all, if `seconds` do not say when it ends."""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer."""

    scan: int
    """Which of the files."""
    began: float
    """By a clock that all processes of a machine share."""
    ended: float
    status: int
    """0 if there was no answer."""
    body: str
    """Digest of its bytes; empty if it is no mask."""
    specialist: str

    @property
    def seconds(self) -> float:
        """From the first byte sent to the last byte received."""
        return self.ended - self.began


@dataclass(frozen=True)
class Crowd:
    """What all clients heard."""

    heard: tuple[Heard, ...]
    out: Path

    @property
    def masks(self) -> tuple[Heard, ...]:
        """Answers that are masks."""
        return tuple(one for one in self.heard if one.status == 200)

    @property
    def statuses(self) -> Counter[int]:
        """How often which."""
        return Counter(one.status for one in self.heard)

    @property
    def rate(self) -> float:
        """Masks a second, from the first question to the last answer."""
        masks = self.masks
        return len(masks) / (max(one.ended for one in masks) - min(one.began for one in masks))

    def file(self, body: str) -> Path:
        """Return the file with the bytes of an answer."""
        return _file(self.out, body)


@contextmanager
def asking(order: Order) -> Iterator["subprocess.Popen[bytes]"]:
    """Have a crowd ask while something else is done; use `heard` when it is over."""
    out = Path(order.out)
    out.mkdir(parents=True)
    (out / "order.json").write_text(json.dumps(asdict(order)))
    command = [sys.executable, "-m", "tutelage.bench.crowd", str(out / "order.json")]
    with (out / "errors").open("wb") as errors, subprocess.Popen(command, stderr=errors) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ask(order: Order) -> Crowd:
    """Have a crowd ask, and wait for it."""
    with asking(order) as process:
        process.wait()
    return heard(order)


def heard(order: Order) -> Crowd:
    """Read what a crowd found.

    Raises:
        ServerError: it did not come to its end, or heard nothing that is a mask.
    """
    out = Path(order.out)
    if not (out / "heard.json").exists():
        said = (out / "errors").read_text().strip().splitlines()
        raise ServerError(f"the clients failed: {said[-1] if said else 'without a word'}")
    crowd = Crowd(tuple(Heard(**one) for one in json.loads((out / "heard.json").read_text())), out)
    if not crowd.masks:
        raise ServerError(f"{order.url} answered {dict(crowd.statuses)}, expected masks; look at its log")
    return crowd


# --- in the process of the crowd ------------------------------------------------------------


async def _asked(order: Order) -> list[Heard]:
    bodies = [Path(scan).read_bytes() for scan in order.scans]
    all_heard: list[Heard] = []
    ends = time.monotonic() + (order.seconds or float("inf"))
    left = iter(range(order.asks)) if order.asks is not None else iter(int, 1)

    async def client(http: httpx.AsyncClient, first: int) -> None:
        for turn in left:
            if time.monotonic() > ends:
                return
            which = (first + turn) % len(bodies)
            one = await _ask(http, order, which, bodies[which])
            all_heard.append(one)
            if one.status != 200:
                await asyncio.sleep(_PAUSE_S)

    limits = httpx.Limits(max_connections=order.clients, max_keepalive_connections=order.clients)
    async with httpx.AsyncClient(timeout=_LIMIT_S, limits=limits, trust_env=False) as http:
        await asyncio.gather(*(client(http, number) for number in range(order.clients)))
    return all_heard


async def _ask(http: httpx.AsyncClient, order: Order, which: int, body: bytes) -> Heard:
    headers = {"x-file-name": "scan.nii.gz", "content-type": "application/octet-stream"}
    began = time.monotonic()
    try:
        answer = await http.post(f"{order.url}/v1/segment", content=body, headers=headers)
    except httpx.HTTPError:
        return Heard(which, began, time.monotonic(), 0, "", "")
    ended = time.monotonic()
    digest = hashlib.sha256(answer.content).hexdigest()[:16] if answer.is_success else ""
    if digest and not (file := _file(Path(order.out), digest)).exists():
        file.write_bytes(answer.content)
    specialist = answer.headers.get("x-tutelage-specialist", "")
    return Heard(which, began, ended, answer.status_code, digest, specialist)


def _file(out: Path, body: str) -> Path:
    return out / f"{body}.nii.gz"


def _main(arguments: Sequence[str]) -> None:
    order = Order(**json.loads(Path(arguments[0]).read_text()))
    found = asyncio.run(_asked(order))
    part = Path(order.out) / "heard.part"
    part.write_text(json.dumps([asdict(one) for one in found]))
    part.rename(Path(order.out) / "heard.json")


if __name__ == "__main__":
    _main(sys.argv[1:])
