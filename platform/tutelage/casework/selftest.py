"""The self-test of a specialist that is about to be served, and the case that is stored for it.

A workspace keeps one small validation case: image, label, and the Dice that each champion had on it
when it was promoted. To be served, a specialist must have the weights that its digest tells, give
probabilities that are numbers, and reach on that case the mean Dice recorded of itself, or, if it
never was champion here, of the champion, less a margin. So a champion of old can come back, one that
was damaged on the way cannot, nor can a stranger that is clearly worse. Where no case is stored it
segments a volume of noise, which only shows that it answers at all.

One case proves no quality, and is not meant to: promotion decides on all of them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.archive import formats
from tutelage.errors import TutelageError, WorkspaceError
from tutelage.geometry import Grid
from tutelage.measures import dice
from tutelage.records import Case, Scorecard
from tutelage.specialist.artifact import digest_of_state
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.specialist.predictor import Answer, Predictor

FOLDER = "selftest"
"""In a workspace."""

MARGIN = 0.05
"""Mean Dice that a specialist may miss: what other arithmetic costs (bf16 on a GPU, where a small structure
moves by a voxel) and what one case differs by chance between specialists that are equally good."""

_IMAGE = "image.nii.gz"
_LABEL = "label.nii.gz"
_RECORD = "selftest.json"
_SEED = 0

Dice = Mapping[str, float]
"""By structure; one that is rightly not found counts 1."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a stored case."""

    case: str
    stamp: str
    """Of the image in the archive."""
    structures: tuple[str, ...]
    image_digest: str
    label_digest: str
    champion: str
    """Digest of the specialist that was promoted last."""
    dice: Mapping[str, Dice]
    """By digest of the specialists that were champions."""


@dataclass(frozen=True, slots=True)
class Tested:
    """How a self-test ended."""

    refused: str | None
    """Why it must not be served, or None."""
    stored_case: bool
    """Whether there was a case, and not only noise."""
    dice: float | None = None
    """Mean over structures on that case."""
    least: float | None = None
    """What it had to reach."""


# --- storing ------------------------------------------------------------------------------


def chosen(cases: Iterable[Case], card: Scorecard) -> Case | None:
    """Choose the validation case to store: the one with most structures, of these the smallest."""
    present = {score.case: 0 for score in card.scores}
    for score in card.scores:
        present[score.case] += not score.absent
    scored = [case for case in cases if case.case in present]
    return min(
        scored,
        key=lambda case: (-present[case.case], case.channels * int(np.prod(case.grid.shape)), case.case),
        default=None,
    )


def keep(folder: Place, cases: Iterable[Case], cards: Iterable[Scorecard], max_voxels: int) -> None:
    """Store a case with the Dice of specialists on it; the first card is that of the new champion.

    A case that is stored already stays, and so does what is recorded of it, as long as its image is
    the one of then: only on the same case can one champion be held against another.

    Raises:
        ArchiveError: the case cannot be read.
    """
    new, *others = cards
    listed = {case.case: case for case in cases}
    structures = tuple(summary.structure for summary in new.summaries[:-1])
    before = _kept(folder, listed, structures, new)
    case = listed[before.case] if before else chosen(listed.values(), new)
    if case is None or case.label is None:
        return
    recorded = dict(before.dice) if before else {}
    recorded |= {card.specialist: found for card in (*others, new) if (found := _dice_of(card, case.case))}
    digests = (before.image_digest, before.label_digest) if before else None
    if digests is None:
        (folder / _RECORD).remove()  # which vouches for the two below
        volume = formats.read_image(case.image, max_voxels)
        label_DHW = formats.read_label(case.label, volume.grid, len(structures))
        formats.write_image(folder / _IMAGE, volume.image_CDHW, volume.grid)
        formats.write_image(folder / _LABEL, label_DHW, volume.grid)
        digests = (_digest(folder / _IMAGE), _digest(folder / _LABEL))
    record = Record(case.case, case.stamp, structures, *digests, new.specialist, recorded)
    (folder / _RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n")


def _kept(
    folder: Place, listed: Mapping[str, Case], structures: tuple[str, ...], card: Scorecard
) -> Record | None:
    """The record of before, if the case it is about is still what it was."""
    try:
        before = read(folder)
    except WorkspaceError:
        return None
    if before is None or before.structures != structures or not _dice_of(card, before.case):
        return None
    same = before.case in listed and listed[before.case].stamp == before.stamp
    return before if same and _whole(folder, before) else None


def _dice_of(card: Scorecard, case: str) -> dict[str, float]:
    return {score.structure: score.dice for score in card.scores if score.case == case}


# --- testing ------------------------------------------------------------------------------


def read(folder: Place) -> Record | None:
    """Return what is known of the stored case, or None if none is stored.

    Raises:
        WorkspaceError: the record is damaged.
    """
    place = folder / _RECORD
    if not place.exists():
        return None
    try:
        told = json.loads(place.read_text())
        return Record(**{**told, "structures": tuple(told["structures"])})
    except (ValueError, TypeError, KeyError) as error:
        raise WorkspaceError(
            f"{place} is damaged ({error!r}), expected what promotion wrote; remove {folder} to serve "
            "without a stored case"
        ) from None


def tested(predictor: "Predictor", folder: Place | None) -> Tested:
    """Test a loaded specialist on the case in a folder, or on noise if there is none.

    Raises:
        WorkspaceError: a case is stored and cannot be read.
    """
    found = digest_of_state(predictor.network.state_dict())
    if found != predictor.digest:
        why = f"its weights have digest {found}, its description says {predictor.digest}; register it again"
        return Tested(why, stored_case=False)
    record = read(folder) if folder is not None else None
    if folder is None or record is None:
        return _on_noise(predictor)
    return _on_case(predictor, folder, record)


def _on_noise(predictor: "Predictor") -> Tested:
    """Whether it answers a volume of the size it learned from with numbers."""
    plan = predictor.plan
    grid = Grid.from_spacing(plan.patch, plan.spacing)
    image_CDHW = np.random.default_rng(_SEED).normal(size=(plan.channels_in, *plan.patch))
    _, why = _answered(predictor, image_CDHW.astype(np.float32), grid)
    return Tested(why, stored_case=False)


def _on_case(predictor: "Predictor", folder: Place, record: Record) -> Tested:
    if predictor.structures != record.structures:
        told, expected = (", ".join(names) for names in (predictor.structures, record.structures))
        return Tested(f"it finds {told}, the stored case in {folder} shows {expected}", stored_case=True)
    if not _whole(folder, record):
        raise WorkspaceError(
            f"image and label in {folder} are not those that {_RECORD} tells of; a run may just be storing "
            f"them, else remove {folder} to serve without a stored case"
        )
    volume = formats.read_image(folder / _IMAGE)
    label_DHW = formats.read_label(folder / _LABEL, volume.grid, len(record.structures))
    answer, why = _answered(predictor, volume.image_CDHW, volume.grid)
    if answer is None:
        return Tested(why, stored_case=True)
    values = range(1, len(record.structures) + 1)
    found = float(np.mean([dice(answer.mask_DHW == value, label_DHW == value) for value in values]))
    own = record.dice.get(predictor.digest)
    recorded = float(np.mean(list((own or record.dice[record.champion]).values())))
    least = recorded - MARGIN
    if found < least:
        whose = "it had when it was promoted" if own else f"champion {record.champion} had"
        why = f"mean Dice {found:.3f} on the stored case, {whose} {recorded:.3f}; {MARGIN} may be missed"
    return Tested(why, True, round(found, 4), round(least, 4))


def _answered(
    predictor: "Predictor", image_CDHW: Any, grid: Grid
) -> "tuple[Answer, None] | tuple[None, str]":
    """The answer, or why it is none."""
    try:
        answer = predictor.answer(predictor.prepared(image_CDHW, grid), grid)
    except TutelageError as error:
        return None, str(error)
    if not answer.finite:
        return None, "its probabilities are no numbers"
    return answer, None


def _whole(folder: Place, record: Record) -> bool:
    wanted = {_IMAGE: record.image_digest, _LABEL: record.label_digest}
    return all(
        (folder / name).exists() and _digest(folder / name) == digest for name, digest in wanted.items()
    )


def _digest(place: Place) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()[:16]
