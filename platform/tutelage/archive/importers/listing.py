"""A list: one CSV or Parquet file that names images, wherever they lie.

Columns are image, and where they are known case, label, patient, modality and role; others do
not count. Addresses are paths, from the list's own folder unless absolute, or those of a
filesystem pyarrow knows (file://, s3://, gs://). Empty values are allowed everywhere but in
image. Roles work as in splits.json. Lines are read a few thousand at a time.
"""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tutelage.archive.formats import stem
from tutelage.archive.importers.base import Found, told_structures
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined, Role
from tutelage.storage import Place

COLUMNS = ("image", "case", "label", "patient", "modality", "role")

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BLOCK = 2**22
"""Bytes of a CSV that are in memory at a time."""

_ROWS = 8192
"""Rows of a Parquet that are."""

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_ADDED = re.compile(r"(s|[_ -]?(id|uri|url|path|file|name))$")
"""What people add to the names of our columns."""

_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]|^\.")
"""A case's id becomes part of file names."""

_LONGEST = 200
"""Bytes of an id; file systems take 255, and what is written about a case adds a suffix."""


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return what the settings say; the list cannot know, but its columns are checked meanwhile."""
    _columns(root)
    return told_structures(settings)


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List what every row names."""
    first = 1
    for lines in _lines(root, _columns(root)):
        _check_roles(root, lines, first)
        for row, line in enumerate(lines, start=first):
            yield _found(settings, root, row, line)
        first += len(lines)


def image_of(root: Place, line: Mapping[str, str | None]) -> str | None:
    """Return the address of a row's image as its case has it, or None if it has none."""
    told = line.get("image")
    return _address(root, told) if told else None


def _found(
    settings: ArchiveSettings, root: Place, row: int, line: Mapping[str, str | None]
) -> Found | Quarantined:
    if not line["image"]:
        return Quarantined(f"{root} row {row}", "it has no image, expected an address; fill one in")
    image, label, role = _address(root, line["image"]), line.get("label"), line.get("role")
    case = line.get("case") or stem(image.rpartition("/")[2])
    if _NO_NAME.search(case) or len(case.encode()) > _LONGEST:
        return Quarantined(
            image,
            f"its case is named {case[:_LONGEST]!r} in row {row}, expected what can be part of a file's "
            f"name: no slash, no dot in front, at most {_LONGEST} bytes; rename it in column case",
        )
    return Found(
        case=case,
        patient=line.get("patient") or case,
        image=image,
        label=_address(root, label) if label else None,
        modality=line.get("modality") or settings.modality,
        role=Role(role) if role else None,
    )


def _address(root: Place, told: str) -> str:
    if _SCHEME.match(told) or told.startswith(("/", "~")):
        return Place.of(told).uri
    folder = root.parent
    while told.startswith(("./", "../")):
        up, _, told = told.partition("/")
        folder = folder.parent if up == ".." else folder
    return (folder / told).uri


def _check_roles(root: Place, lines: Sequence[Mapping[str, str | None]], first: int) -> None:
    words = [line.get("role") for line in lines]
    unknown = sorted({word for word in words if word} - set(Role))
    if unknown:
        told = ", ".join(f"{word!r} in row {first + words.index(word)}" for word in unknown[:5])
        raise ArchiveError(f"{root} has roles {told}; expected {', '.join(Role)} or nothing; correct them")


# --- columns ------------------------------------------------------------------------------


def _columns(root: Place) -> list[str]:
    """Return the columns that count, after every problem with any of them was told."""
    kind = _kind(root)
    with _telling(root):
        types = _parquet_types(root) if kind == ".parquet" else _text_header(root, _SEPARATORS[kind])
    names = [name for name, _ in types]
    problems = [
        *_misspelt(names),
        *(f"column {name} is there twice; rename one" for name in COLUMNS if names.count(name) > 1),
        *(
            f"column {name} holds {type_}, expected text; convert it"
            for name, type_ in types
            if name in COLUMNS and not re.match(r"(large_)?string|u?int|dictionary<values=string|null", type_)
        ),
    ]
    if problems:
        told = "".join(f"\n  {problem}" for problem in problems)
        raise ArchiveError(
            f"{root} is no list of images, its columns are {', '.join(names) or 'none'}:{told}"
        )
    return [name for name in COLUMNS if name in names]


def _misspelt(names: Sequence[str]) -> Iterator[str]:
    """Complain about a lack of images, and about what would be left out because of its spelling."""
    missing = [name for name in COLUMNS if name not in names]
    plain = {_ADDED.sub("", name.strip().lower()): name for name in names if name not in COLUMNS}
    for name in missing:
        if name in plain:
            yield f"column {plain[name]} does not count; name it {name}, or otherwise if it is none"
        elif name == "image":
            yield "no column image, expected one of addresses; add it"


def _kind(root: Place) -> str:
    kind = "." + root.name.lower().rpartition(".")[2]
    if kind != ".parquet" and kind not in _SEPARATORS:
        raise ArchiveError(
            f"{root} is no list, expected a file of .csv, .tsv or .parquet; correct archive.root"
        )
    return kind


def _text_header(root: Place, separator: str) -> list[tuple[str, str]]:
    with root.open() as stream:
        header = next(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=separator), [])
    return [(name, "string") for name in header]


def _parquet_types(root: Place) -> list[tuple[str, str]]:
    import pyarrow.parquet as pq

    with root.open() as stream:
        return [(field.name, str(field.type)) for field in pq.read_schema(stream)]


# --- rows ---------------------------------------------------------------------------------


def _lines(root: Place, columns: list[str]) -> Iterator[list[dict[str, str | None]]]:
    import pyarrow as pa

    wanted = pa.schema([(name, pa.string()) for name in columns])
    with _telling(root), root.open() as stream:
        parquet = _kind(root) == ".parquet"
        for batch in _parquet(stream, columns) if parquet else _text(stream, root, columns):
            yield pa.table(batch).cast(wanted).to_pylist()


def _text(stream: Any, root: Place, columns: list[str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow

    return arrow.open_csv(
        stream,
        arrow.ReadOptions(block_size=_BLOCK),
        arrow.ParseOptions(delimiter=_SEPARATORS[_kind(root)], newlines_in_values=True),
        arrow.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _parquet(stream: Any, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(stream).iter_batches(batch_size=_ROWS, columns=columns)


@contextlib.contextmanager
def _telling(root: Place) -> Iterator[None]:
    """Say that it was the list, whatever a reader raises about it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise ArchiveError(
            f"{root} does not exist, expected a list of images; correct archive.root"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ArchiveError(f"{root} cannot be read as a list ({told}); correct it") from None
