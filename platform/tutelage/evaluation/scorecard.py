"""Scores of single cases, and the card that sums them up with intervals.

A structure that neither mask nor reference holds is no evidence of skill and is left out
of every mean. The summary named `mean` is the mean over structures of their means, so that
a rare structure counts as much as a common one. Intervals come from drawing cases (not
voxels, not structures) again, with a fixed seed: the same scores give the same card.

A structure that no case holds has no mean: NaN in a Summary, null in JSON. It knows
nothing about images, files or networks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.settings import EvaluationSettings
from tutelage.geometry import Grid
from tutelage.measures import compare, largest_components
from tutelage.records import Role, Score, Scorecard, Summary

MEAN = "mean"
"""Name of the summary over structures."""

MEASURES = ("dice", "jaccard", "hd95_mm", "asd_mm", "nsd", "hd95_voxels", "asd_voxels")
"""Everything that a score holds; papers differ in which of them they print, and in the unit of distances."""

_SEED = 0
_MEASURES = ("dice", "hd95_mm", "nsd")

Values = NDArray[np.float64]
"""(cases, structures); NaN where a structure is absent."""


def score_case(
    case: str,
    mask_DHW: NDArray[np.integer[Any]],
    reference_DHW: NDArray[np.integer[Any]],
    grid: Grid,
    structures: Sequence[str],
    settings: EvaluationSettings,
) -> tuple[Score, ...]:
    """Measure every structure of one case against its reference."""
    for name, array in (("mask", mask_DHW), ("reference", reference_DHW)):
        if array.shape != grid.shape:
            raise ValueError(
                f"{case}: the {name} has shape {array.shape}, expected {grid.shape} of its image"
            )
    return tuple(
        Score(
            case=case,
            structure=structure,
            **asdict(
                compare(mask_DHW == value, reference_DHW == value, grid.spacing, settings.nsd_tolerance_mm)
            ),
        )
        for value, structure in enumerate(structures, start=1)
    )


def scorecard(
    specialist: str,
    role: Role,
    scores: Sequence[Score],
    structures: Sequence[str],
    settings: EvaluationSettings,
) -> Scorecard:
    """Sum up the scores of one split."""
    if MEAN in structures:
        raise ValueError(f"a structure is named {MEAN!r}, which is the name of the summary; rename it")
    tables = {measure: table(scores, structures, measure) for measure in _MEASURES}
    intervals = _intervals(tables["dice"], settings)
    means = {measure: _means(values) for measure, values in tables.items()}
    counted = np.isfinite(tables["dice"])
    cases = [int(n) for n in counted.sum(axis=0)] + [int(counted.any(axis=1).sum())]
    summaries = tuple(
        Summary(
            structure=name,
            cases=cases[i],
            dice=float(means["dice"][i]),
            dice_low=float(intervals[0, i]),
            dice_high=float(intervals[1, i]),
            hd95_mm=float(means["hd95_mm"][i]),
            nsd=float(means["nsd"][i]),
        )
        for i, name in enumerate([*structures, MEAN])
    )
    ordered = tuple(sorted(scores, key=lambda s: (s.case, structures.index(s.structure))))
    return Scorecard(specialist, Role(role), ordered, summaries)


def table(scores: Sequence[Score], structures: Sequence[str], measure: str) -> Values:
    """Arrange one measure by case and structure; cases are in order of name."""
    rows = {case: i for i, case in enumerate(sorted({score.case for score in scores}))}
    columns = {structure: i for i, structure in enumerate(structures)}
    values = np.full((len(rows), len(columns)), np.nan)
    seen: set[tuple[str, str]] = set()
    for score in scores:
        if score.structure not in columns:
            raise ValueError(f"{score.case}: unknown structure {score.structure!r}, expected {list(columns)}")
        seen.add((score.case, score.structure))
        if not score.absent:
            values[rows[score.case], columns[score.structure]] = getattr(score, measure)
    if len(seen) != len(scores) or len(seen) != values.size:
        raise ValueError(
            f"{len(scores)} scores of {len(rows)} cases, expected one for each of {len(columns)} structures "
            "of each case; score every case once"
        )
    return values


def means(scores: Sequence[Score], structures: Sequence[str], measure: str) -> dict[str, float]:
    """Return the mean of one of MEASURES over cases by structure, and over structures by the name `mean`."""
    found = _means(table(scores, structures, measure))
    return {name: float(value) for name, value in zip([*structures, MEAN], found, strict=True)}


def largest_pieces(mask_DHW: NDArray[np.uint8], structures: int) -> NDArray[np.uint8]:
    """Return a mask with the largest connected piece of each structure alone, as some papers score it."""
    kept_DHW = np.zeros_like(mask_DHW)
    for value in range(1, structures + 1):
        kept_DHW[largest_components(mask_DHW == value)] = value
    return kept_DHW


def mean_dice(card: Scorecard) -> float:
    """Return the mean over structures, NaN without evidence."""
    return card.summaries[-1].dice


def to_dict(card: Scorecard) -> dict[str, Any]:
    """Return what JSON can hold; NaN becomes None."""
    finite: dict[str, Any] = _mapped(asdict(card), _null_for_nan)
    return finite


def from_dict(values: Mapping[str, Any]) -> Scorecard:
    """Return the card of `to_dict`."""
    summaries = tuple(Summary(**_nan_for_null(summary)) for summary in values["summaries"])
    scores = tuple(Score(**score) for score in values["scores"])
    return Scorecard(values["specialist"], Role(values["role"]), scores, summaries)


def nan_mean(values: Values, axis: int) -> Values:
    """Mean of what is not NaN, and NaN (without a warning) where nothing is left."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis=axis)
    n = counted.sum(axis=axis)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _means(values: Values) -> Values:
    """Means of the structures, then the mean of those; values may be (draws, cases, structures)."""
    by_structure = nan_mean(values, axis=-2)
    overall = nan_mean(by_structure, axis=-1)
    return np.concatenate([by_structure, overall[..., None]], axis=-1)


def _intervals(dice: Values, settings: EvaluationSettings) -> Values:
    """Lower and upper ends by structure and for the mean, (2, structures + 1)."""
    cases, structures = dice.shape
    if cases == 0:
        return np.full((2, structures + 1), np.nan)
    draws = np.random.default_rng(_SEED).integers(0, cases, (settings.bootstrap, cases))
    # One draw at a time: all at once would hold draws x cases x structures numbers.
    means = np.stack([_means(dice[draw]) for draw in draws])
    tail = (1 - settings.confidence) / 2
    return np.stack([_quantile(means, tail), _quantile(means, 1 - tail)])


def _quantile(means: Values, q: float) -> Values:
    """Quantile down each column of what is not NaN: a draw may miss every case with a structure."""
    columns = [column[np.isfinite(column)] for column in means.T]
    return np.array([np.quantile(c, q) if len(c) else np.nan for c in columns])


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return change(value)


def _null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan_for_null(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in summary.items()}
