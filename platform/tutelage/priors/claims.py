"""Claims against labels: what a prior says, measured on masks, and what is left of it then.

It decides when a claim holds on one case, and when so few cases as are annotated speak
against it clearly enough to strike it out. It does not know where masks come from: labels
that people made check priors, answers of generalists are checked by them.

Directions compare centers of mass along the patient's axes. A structure is inside another
if four fifths of it lie in the other's convex hull: a label often leaves the inner one out of
the outer. Two structures touch if at most one voxel lies between them, diagonals counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.geometry import Grid
from tutelage.measures import Mask, components
from tutelage.records import Prior

STRUCK_FROM = 2 / 3
"""Share of cases against a claim from which on it is struck; fewer lower its weight."""

COUNTED_PIECE = 0.1
"""Share of the largest piece from which on another piece counts as a component."""

_DIRECTIONS = {
    "right-of": (0, 1),
    "left-of": (0, -1),
    "anterior-to": (1, 1),
    "posterior-to": (1, -1),
    "superior-to": (2, 1),
    "inferior-to": (2, -1),
}
"""Axis of the RAS+ millimeters of `geometry`, and the sign toward which the structure lies."""

_INSIDE = 0.8
_REACH_VOXELS = 2
"""How far one of two structures must grow at most to meet the other, if they touch."""

_POINTS = 4000
"""Voxels of a structure that are looked up in another's hull."""


@dataclass(frozen=True)
class Body:
    """One structure of one case, in a box that holds all of it."""

    start: tuple[int, int, int]
    """First voxel of the box along (D, H, W)."""

    mask_DHW: Mask
    grid: Grid
    """Of the whole case."""

    @cached_property
    def volume_ml(self) -> float:
        """Volume of all of it."""
        return float(np.count_nonzero(self.mask_DHW)) * self.grid.voxel_ml

    @cached_property
    def pieces(self) -> int:
        """Separate pieces, crumbs not counted."""
        _, sizes = components(self.mask_DHW)
        return int((sizes >= COUNTED_PIECE * sizes.max()).sum())

    @cached_property
    def center_mm(self) -> NDArray[np.float64]:
        """Center of mass in the patient's millimeters."""
        center_3 = np.argwhere(self.mask_DHW).mean(axis=0) + self.start
        center_mm: NDArray[np.float64] = (self.grid.matrix @ [*center_3, 1.0])[:3]
        return center_mm

    @cached_property
    def voxels(self) -> NDArray[np.int64]:
        """Indices of its voxels in the case, as rows of three."""
        voxels_N3: NDArray[np.int64] = np.argwhere(self.mask_DHW) + np.asarray(self.start)
        return voxels_N3


def body(mask_DHW: Mask, grid: Grid, start: Sequence[int] = (0, 0, 0)) -> Body | None:
    """Return the structure that a mask, or a box of it from `start` on, shows; None if it shows none."""
    found = ndimage.find_objects(mask_DHW.astype(np.uint8))
    if not found or found[0] is None:
        return None
    first = tuple(int(at + where.start) for at, where in zip(start, found[0], strict=True))
    return Body((first[0], first[1], first[2]), mask_DHW[found[0]], grid)


def bodies(label_DHW: NDArray[np.integer], grid: Grid, structures: Sequence[str]) -> dict[str, Body | None]:
    """Return every structure that a label can show, by name; None for those that it does not."""
    boxes = ndimage.find_objects(label_DHW, len(structures))
    found: dict[str, Body | None] = {}
    for value, (name, box) in enumerate(zip(structures, boxes, strict=True), start=1):
        found[name] = None
        if box is not None:
            d, h, w = (int(where.start) for where in box)
            found[name] = Body((d, h, w), label_DHW[box] == value, grid)
    return found


def holds(kind: str, one: Body, other: Body, slack_mm: float = 0.0) -> bool:
    """Tell whether `one` is `kind` `other`; an order of centers may fail by `slack_mm`."""
    if kind in _DIRECTIONS:
        axis, sign = _DIRECTIONS[kind]
        return bool(sign * (one.center_mm[axis] - other.center_mm[axis]) > -slack_mm)
    if kind == "touching":
        return _touch(one, other)
    inner, outer = (one, other) if kind == "inside" else (other, one)
    return _share_in_hull(inner, outer) >= _INSIDE


@dataclass(frozen=True, slots=True)
class Finding:
    """What one case shows about one claim."""

    structure: str
    claim: str
    """volume_ml, components, may_be_absent, or a relation: `left-of liver`."""

    held: bool
    seen: str
    """What was measured, in words."""


def findings(
    label_DHW: NDArray[np.integer], grid: Grid, structures: Sequence[str], priors: Mapping[str, Prior]
) -> list[Finding]:
    """Measure every claim that the label of one case can say something about."""
    shown = {name: one for name, one in bodies(label_DHW, grid, structures).items() if one is not None}
    told: list[Finding] = []
    for name in structures:
        if name in priors:
            told += _about(priors[name], shown)
    return told


def _about(prior: Prior, bodies: Mapping[str, Body]) -> Iterable[Finding]:
    name = prior.structure
    one = bodies.get(name)
    if not prior.may_be_absent:
        yield Finding(name, "may_be_absent", one is not None, "there" if one else "not there")
    if one is None:
        return
    low, high = prior.volume_ml
    yield Finding(name, "volume_ml", low <= one.volume_ml <= high, f"{one.volume_ml:.3g} ml")
    fewest, most = prior.components
    yield Finding(name, "components", fewest <= one.pieces <= most, f"{one.pieces} pieces")
    for related in prior.relations:
        if related.other in bodies:
            held = holds(related.kind, one, bodies[related.other])
            yield Finding(name, claim_of(related.kind, related.other), held, "so" if held else "not so")


def claim_of(kind: str, other: str) -> str:
    """Name the claim that a relation is, as `struck` and `weights` of a prior have it."""
    return f"{kind} {other}"


# --- what is left of a prior ----------------------------------------------------------------


def weighed(priors: Mapping[str, Prior], cases: Iterable[Iterable[Finding]]) -> dict[str, Prior]:
    """Return priors as the findings of all annotated cases leave them.

    What most cases contradict is struck, what some contradict counts less, both with what was
    seen. A person's word, a weight among it, is neither struck nor changed, only marked. What was
    said about claims that these cases show is forgotten: the same cases give the same shelf. What
    was said about others stays.
    """
    by_claim: dict[tuple[str, str], list[Finding]] = {}
    for case in cases:
        for finding in case:
            by_claim.setdefault((finding.structure, finding.claim), []).append(finding)
    return {
        name: _weighed(prior, {claim: seen for (about, claim), seen in by_claim.items() if about == name})
        for name, prior in priors.items()
    }


def _weighed(prior: Prior, by_claim: Mapping[str, Sequence[Finding]]) -> Prior:
    # What the model itself left unusable stays struck unless a case can tell.
    struck = {claim: words for claim, words in prior.struck.items() if claim not in by_claim}
    contradicted = {claim: words for claim, words in prior.contradicted.items() if claim not in by_claim}
    weights = {claim: 1.0 for claim in by_claim if not _by_a_person(prior, claim)}
    for claim, seen in by_claim.items():
        against = [finding for finding in seen if not finding.held]
        if not against:
            continue
        evidence = _evidence(len(seen) - len(against), len(seen), against)
        if _by_a_person(prior, claim):
            contradicted[claim] = f"{evidence}; kept, because a person wrote it"
        elif len(against) >= STRUCK_FROM * len(seen):
            struck[claim] = evidence
        else:
            contradicted[claim] = evidence
            weights[claim] = round(1 - len(against) / len(seen), 3)
    return replace(
        prior,
        struck=struck,
        contradicted=contradicted,
        weights={claim: weight for claim, weight in prior.weights.items() if claim not in weights}
        | {claim: weight for claim, weight in weights.items() if " " not in claim and weight != 1},
        relations=tuple(
            replace(related, weight=weights.get(claim_of(related.kind, related.other), related.weight))
            for related in prior.relations
        ),
    )


def at_most(before: Mapping[str, Prior], checked: Mapping[str, Prior]) -> dict[str, Prior]:
    """Return priors of which no claim is believed more than a reviewed shelf believed it.

    What a person struck or weighed down stays so, whatever a few labels show.
    """
    return {name: _at_most(before[name], prior) for name, prior in checked.items()}


def _at_most(before: Prior, checked: Prior) -> Prior:
    claims = {*before.weights, *checked.weights}
    return replace(
        checked,
        struck=before.struck | checked.struck,
        weights={
            claim: min(before.weights.get(claim, 1.0), checked.weights.get(claim, 1.0))
            for claim in sorted(claims)
        },
        relations=tuple(
            replace(now, weight=min(now.weight, then.weight))
            for now, then in zip(checked.relations, before.relations, strict=True)
        ),
    )


def _evidence(held: int, cases: int, against: Sequence[Finding]) -> str:
    shown = ", ".join(dict.fromkeys(finding.seen for finding in against))
    told = f"seen in {held} of {cases} annotated cases"
    return told if shown == "not so" else f"{told}, elsewhere {shown}"


def _by_a_person(prior: Prior, claim: str) -> bool:
    return claim in prior.edited or (" " in claim and "relations" in prior.edited)


# --- geometry -------------------------------------------------------------------------------


def _touch(one: Body, other: Body) -> bool:
    """Whether the two overlap once one of them has grown by a few voxels."""
    reach = _REACH_VOXELS
    start = [max(a - reach, b) for a, b in zip(one.start, other.start, strict=True)]
    stop = [
        min(a + n + reach, b + m)
        for a, n, b, m in zip(one.start, one.mask_DHW.shape, other.start, other.mask_DHW.shape, strict=True)
    ]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return False
    grown_DHW = ndimage.binary_dilation(
        np.pad(one.mask_DHW, reach), np.ones((3, 3, 3), np.bool_), iterations=reach
    )
    where_one = _within(start, stop, [at - reach for at in one.start])
    where_other = _within(start, stop, other.start)
    return bool((grown_DHW[where_one] & other.mask_DHW[where_other]).any())


def _within(start: Sequence[int], stop: Sequence[int], at: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - c, b - c) for a, b, c in zip(start, stop, at, strict=True))


def _share_in_hull(inner: Body, outer: Body) -> float:
    """Share of a structure's voxels that lie in the convex hull of another's."""
    from scipy.spatial import ConvexHull, QhullError

    points_N3 = inner.voxels[:: max(1, len(inner.voxels) // _POINTS)].astype(float)
    corners_N3 = _ends(outer).astype(float)
    kept = np.ptp(corners_N3, axis=0) > 0
    apart_N = (points_N3[:, ~kept] != corners_N3[0, ~kept]).any(axis=1)
    inside_N = ~apart_N
    try:
        hull = ConvexHull(corners_N3[:, kept])
    except (QhullError, ValueError):  # a point, a line, or another body without an inside: its box
        low_3, high_3 = corners_N3.min(axis=0), corners_N3.max(axis=0)
        return float(((points_N3 >= low_3) & (points_N3 <= high_3)).all(axis=1).mean())
    planes_ND = hull.equations
    beyond_N = points_N3[:, kept] @ planes_ND[:, :-1].T + planes_ND[:, -1] > 0.5  # half a voxel of the border
    return float((inside_N & ~beyond_N.any(axis=1)).mean())


def _ends(outer: Body) -> NDArray[np.int64]:
    """Both ends of every row of voxels along W: the hull of them is the hull of all."""
    mask_DHW = outer.mask_DHW
    d, h = np.nonzero(mask_DHW.any(axis=2))
    rows_NW = mask_DHW[d, h]
    first, last = rows_NW.argmax(axis=1), mask_DHW.shape[2] - 1 - rows_NW[:, ::-1].argmax(axis=1)
    in_box_N3 = np.concatenate([np.stack([d, h, first], axis=1), np.stack([d, h, last], axis=1)])
    ends_N3: NDArray[np.int64] = in_box_N3 + np.asarray(outer.start)
    return ends_N3
