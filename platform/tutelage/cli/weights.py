"""What `tutelage weights` does: which checkpoints there are, bringing them here, checking them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.table import Table
from rich.text import Text

from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, SettingsError
from tutelage.generalists import weights
from tutelage.generalists.fetching import Progress, folder
from tutelage.generalists.weights import SHELF, Published, Standing
from tutelage.rounds.progress import Reporter

_MB = 10**6


def listed(teller: Teller) -> int:
    """Show the shelf; files are looked for and not read."""
    standings = [weights.standing(name, read=False) for name in SHELF]
    table = Table(box=None, pad_edge=False)
    for column in ("name", "file", "here", "size", "licence", "sha256"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    for standing in standings:
        entry, here = standing.entry, standing.state != "absent"
        table.add_row(
            entry.name,
            entry.file,
            Text("yes", style="green") if here else Text("no", style="yellow"),
            _size(standing),
            entry.licence,
            _digest(entry, standing),
        )
    teller.show(table)
    teller.say()
    teller.say(f"`tutelage weights pull NAME` brings one to {folder()}")
    teller.result({"folder": str(folder()), "weights": [_told(standing) for standing in standings]})
    return 0


def pull(names: Sequence[str], teller: Teller) -> int:
    """Bring checkpoints here; those that are here and whole stay."""
    told = []
    for name in _known(names):
        with _progress(name, teller) as progress:
            weights.pull(name, progress)
        standing = weights.standing(name, read=True)
        teller.say(f"{name}: {standing.told}")
        told.append(_told(standing))
    teller.result({"weights": told})
    return 0


def verify(names: Sequence[str], teller: Teller) -> int:
    """Read checkpoints and compare their digests: those named, or all that are here."""
    standings = [weights.standing(name, read=True) for name in _known(names or list(SHELF))]
    for standing in standings:
        quiet = standing.state == "absent" and not names
        teller.say(f"{standing.entry.name}: " + ("absent" if quiet else f"{standing.state}, {standing.told}"))
    teller.result({"weights": [_told(standing) for standing in standings]})
    wrong = ("damaged", "absent") if names else ("damaged",)
    return FAILED if any(standing.state in wrong for standing in standings) else 0


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in SHELF:
            raise SettingsError(f"no weights named {name!r}; there are {', '.join(SHELF)}")
    return names


@contextmanager
def _progress(name: str, teller: Teller) -> Iterator[Progress]:
    """A bar in megabytes, from when the first one is here."""
    with ExitStack() as stack:
        advance: list[Any] = []

        def told(done: int, total: int | None) -> None:
            if not advance:
                task = Reporter(teller.console).task(f"{name}, MB", (total or 0) // _MB)
                advance.append(stack.enter_context(task))
            advance[0](done // _MB, "")

        yield told


def _size(standing: Standing) -> str:
    size = standing.path.stat().st_size if standing.state != "absent" else standing.entry.size_bytes
    return "unknown" if size is None else f"{size / _MB:.0f} MB"


def _digest(entry: Published, standing: Standing) -> str:
    if entry.sha256 is not None:
        return f"{entry.sha256[:12]}..."
    if standing.state in ("recorded", "unrecorded"):
        return standing.state
    return "none yet, md5" if entry.md5 else "none yet"


def _told(standing: Standing) -> dict[str, Any]:
    entry = standing.entry
    return {
        "name": entry.name,
        "file": entry.file,
        "path": str(standing.path),
        "state": standing.state,
        "sha256": standing.sha256 or entry.sha256,
        "bytes": entry.size_bytes,
        "licence": entry.licence,
        "source": entry.source,
        "url": entry.url,
        "told": standing.told,
    }
