"""What a round's ledger comes to, beside labels that were hidden: tallies, a few hundred rows at most.

Ledgers of any length pass through a group of rows at a time. Of hidden labels, where there are any,
one small number a case and structure is held. It counts and decides nothing.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.believing import Tally
from tutelage.labels.rows import Rows, rows_of
from tutelage.records import Score
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.ledger import CORRECTED
from tutelage.rounds.workspace import stage_name
from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

_KEYS = ("structure", "ruling", "without_priors", "with_priors")
_NUMBERS = ("weight", "predicted_dice", "dice_low", "specialist_ml", "generalist_ml")
_BATCH_ROWS = 16384
_BATCH_CASES = 1024
_BINS = 10

Counts = NDArray[np.float64]


@dataclass
class Held:
    """How predictions of Dice did on cases with a hidden label."""

    bounded: int = 0
    covered: int = 0
    """Answers that have a bound, and those of them that are as good."""
    bins: Counts = field(default_factory=lambda: np.zeros((_BINS, 3)))
    """By predicted Dice, sums of predicted and of true Dice, and how many."""

    def add(self, predicted: Counts, low: Counts, dice: Counts) -> None:
        """Count answers; what is not known is NaN."""
        known = np.isfinite(predicted) & np.isfinite(dice)
        predicted, low, dice = predicted[known], low[known], dice[known]
        self.bounded += int(np.isfinite(low).sum())
        self.covered += int((dice >= low).sum())
        where = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
        sums = [np.bincount(where, values, _BINS) for values in (predicted, dice, np.ones(len(dice)))]
        self.bins += np.stack(sums, axis=1)

    def means(self) -> tuple[tuple[float, float, int], ...]:
        """Return mean predicted and mean true Dice of each bin that holds anything, and how many."""
        return tuple((float(p / n), float(d / n), int(n)) for p, d, n in self.bins if n)


def counted(campaign: Campaign, number: int) -> tuple[list[Tally], Held]:
    """Add up a round's ledger; nothing before there is one."""
    stage, structures = campaign.workspace.stage(number), campaign.catalog.structures
    held = Held()
    if not (stage / "ledger.parquet").exists():
        return [], held
    truth = _Truth.of(stage / "truth.rows", structures)
    sums: dict[tuple[str | None, ...], Counts] = defaultdict(lambda: np.zeros(5))
    for table in _groups(stage / "ledger.parquet"):
        dice = truth.dice(table["case"], table["structure"])
        _add(sums, table, dice)
        answered = (_floats(table, "specialist_ml") > 0) & (_floats(table, "generalist_ml") > 0)
        predicted = np.where(answered, _floats(table, "predicted_dice"), np.nan)
        held.add(predicted, _floats(table, "dice_low"), dice)
    order = {name: place for place, name in enumerate(structures)}
    keys = sorted(sums, key=lambda key: (order.get(str(key[0]), len(order)), *map(str, key)))
    return [_tally(stage_name(number), key, sums[key]) for key in keys], held


def _add(sums: "dict[tuple[str | None, ...], Counts]", table: "pa.Table", dice: Counts) -> None:
    """Add a group of rows: how many, how many with a weight and its sum, how many with a Dice and its sum."""
    import pyarrow as pa

    weight = np.nan_to_num(_floats(table, "weight"))
    told = {
        "count": np.ones(len(weight)),
        "weighted": (weight > 0).astype(float),
        "weight": weight,
        "measured": np.isfinite(dice).astype(float),
        "dice": np.nan_to_num(dice),
    }
    columns: dict[str, Any] = {name: table[name] for name in _KEYS} | told
    grouped = pa.table(columns).group_by(list(_KEYS)).aggregate([(name, "sum") for name in told])
    for row in grouped.to_pylist():
        if row["ruling"] != CORRECTED:  # a person has annotated it: nobody ruled on it
            key = tuple(row[name] for name in _KEYS)
            sums[key] += np.array([row[f"{name}_sum"] for name in told])


def _tally(name: str, key: tuple[str | None, ...], sums: Counts) -> Tally:
    structure, ruling, without, with_them = key
    count, weighted, weight, measured, dice = sums.tolist()
    return Tally(
        name,
        str(structure),
        str(ruling),
        int(count),
        int(weighted),
        weight,
        int(measured),
        dice,
        without,
        with_them,
    )


def _groups(place: Place) -> Iterator["pa.Table"]:
    """Yield a ledger's rows in tables of some thousands; what an earlier version did not write is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ("case", *_KEYS, *_NUMBERS)
    with place.open() as stream:
        file = pq.ParquetFile(stream)
        there = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH_ROWS, columns=there):
            table = pa.Table.from_batches([batch])
            for name in set(wanted) - set(there):
                kind = pa.float64() if name in _NUMBERS else pa.string()
                table = table.append_column(name, pa.nulls(len(table), kind))
            yield table


def _floats(table: "pa.Table", name: str) -> Counts:
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(table[name].cast(pa.float64()), np.nan), np.float64)


def true_scores(campaign: Campaign, number: int) -> list[Score]:
    """Return how a round's answers compare with hidden labels, where there are any; all of them at once."""
    rows = Rows(campaign.workspace.stage(number) / "truth.rows").read()
    return [Score(**score) for row in rows for score in row.get("scores") or []]


@dataclass(frozen=True)
class _Truth:
    """True Dice by case and structure."""

    structures: tuple[str, ...]
    cases: "pa.Array"
    """In order."""
    dice_NK: NDArray[np.float32]
    """NaN where neither mask holds the structure."""

    @classmethod
    def of(cls, folder: Place, structures: tuple[str, ...]) -> "_Truth":
        """Read rows of the step that measures; the latest row of a case counts."""
        import pyarrow as pa

        names: list[str] = []
        told: list[NDArray[np.float32]] = []
        place = {structure: k for k, structure in enumerate(structures)}
        for row in _rows(folder):
            dice_K = np.full(len(structures), np.nan, np.float32)
            for score in row["scores"] or []:
                if not score["absent"] and score["structure"] in place:
                    dice_K[place[score["structure"]]] = score["dice"]
            names.append(row["case"])
            told.append(dice_K)
        latest = {name: i for i, name in enumerate(names)}
        ordered = sorted(latest)
        dice_NK = np.stack([told[latest[name]] for name in ordered]) if ordered else np.zeros((0, len(place)))
        return cls(structures, pa.array(ordered, pa.string()), dice_NK.astype(np.float32))

    def dice(self, cases: "pa.ChunkedArray", structures: "pa.ChunkedArray") -> Counts:
        """Return the Dice of each row, NaN where it is not known."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = np.full(len(cases), np.nan)
        if not len(self.cases) or not len(cases):
            return found
        # Rows are in order of case: few cases can be meant, and looking through all takes long each time.
        ends = pc.min_max(cases).as_py()
        low = bisect_left(self.cases, ends["min"], key=lambda name: name.as_py())
        high = bisect_right(self.cases, ends["max"], key=lambda name: name.as_py())
        row, column = (
            np.asarray(pc.fill_null(pc.index_in(values, value_set=known), -1))
            for values, known in (
                (cases, self.cases[low:high]),
                (structures, pa.array(self.structures, pa.string())),
            )
        )
        there = (row >= 0) & (column >= 0)
        found[there] = self.dice_NK[low + row[there], column[there]]
        return found


def _rows(folder: Place) -> Iterator[dict[str, Any]]:
    """Yield a step's cases and scores, oldest first, few at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for place in folder.files(".parquet"):
        with place.open() as stream:
            file = pq.ParquetFile(stream)
            if "scores" in file.schema_arrow.names:
                for batch in file.iter_batches(_BATCH_CASES, columns=["case", "scores"]):
                    yield from rows_of(pa.Table.from_batches([batch]))
