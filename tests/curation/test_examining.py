"""Finished masks held against what is known: as curation would, where nobody else has an opinion."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.curation import CurationSettings, curate
from tutelage.curation.examining import examine
from tutelage.geometry import Grid
from tutelage.records import Candidate, Prior, Region, Relation, Ruling

GRID = Grid.from_spacing((6, 24, 24), (10.0, 10.0, 10.0))  # one voxel is one millilitre
NAMES = ("liver", "spleen", "spine")
PLACES = {"liver": (2, 8), "spleen": (16, 20), "spine": (11, 13)}
SHELF = {
    "liver": Prior(
        "liver", (10, 120), relations=(Relation("right-of", "spleen"), Relation("right-of", "spine"))
    ),
    "spleen": Prior("spleen", (10, 100), relations=(Relation("left-of", "spine"),), may_be_absent=True),
    "spine": Prior("spine", (1, 500)),
}
SETTINGS = CurationSettings()


def mask(**moved: tuple[int, int] | None) -> NDArray[np.uint8]:
    mask_DHW = np.zeros(GRID.shape, np.uint8)
    for value, name in enumerate(NAMES, start=1):
        if (place := moved.get(name, PLACES[name])) is not None:
            mask_DHW[1:5, 8:12, slice(*place)] = value
    return mask_DHW


def reasons(
    mask_DHW: NDArray[np.uint8], shelf: Mapping[str, Prior] = SHELF, settings: CurationSettings = SETTINGS
) -> dict[str, tuple[str, ...]]:
    return {name: one.reasons for name, one in examine(mask_DHW, GRID, NAMES, shelf, settings).items()}


def in_pieces() -> NDArray[np.uint8]:
    mask_DHW = mask()
    mask_DHW[2:4, 8:12, 2:8] = 0
    return mask_DHW


MASKS = {
    "as it should be": mask(),
    "on the wrong side": mask(liver=(21, 24)),
    "too large": mask(liver=(0, 10)),
    "in pieces": in_pieces(),
    "absent, which it may be": mask(spleen=None),
    "absent": mask(spine=None),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_judged_as_a_candidate_on_which_all_agree(name: str) -> None:
    """By curation itself: what it would reject is what a person should look at."""
    mask_DHW = MASKS[name]
    empty = np.zeros((0, 0, 0), np.uint8)
    regions = [Region((0, 0, 0), empty, empty)]
    for value in range(1, 4):
        mean_DHW = np.where(mask_DHW == value, 255, 0).astype(np.uint8)
        regions.append(Region((0, 0, 0), mean_DHW, np.zeros_like(mean_DHW)))
    pooled = np.zeros((4, 1), np.float16)
    candidate = Candidate("a", mask_DHW, tuple(regions), (0.0, *[0.9] * 3), (1.0,) * 4, pooled)
    found = examine(mask_DHW, GRID, NAMES, SHELF, SETTINGS)
    for verdict in curate(candidate, GRID, NAMES, SHELF, SETTINGS).verdicts:
        one = found[verdict.structure]
        assert bool(one.reasons) == (verdict.ruling is Ruling.REJECT)
        assert one.components == verdict.features["components"]
        assert one.volume_ml == pytest.approx(verdict.features["generalist_ml"])
        if one.voxels:
            assert one.reasons == verdict.reasons


def test_what_is_missing_is_told_by_what_is_known_of_it() -> None:
    told = reasons(mask(liver=None, spleen=None, spine=None), {name: SHELF[name] for name in NAMES[:2]})
    assert told == {
        "liver": ("liver was not found, expected in every patient",),
        "spleen": (),
        "spine": ("spine was not found, and nothing is known of whether it may be absent",),
    }


def test_what_settings_do_not_believe_is_not_said() -> None:
    assert reasons(mask(liver=(0, 10)))["liver"]
    assert not reasons(mask(liver=(0, 10)), settings=CurationSettings(priors=False))["liver"]
    doubted = {**SHELF, "liver": replace(SHELF["liver"], confidence={"volume_ml": 0.4})}
    assert not reasons(mask(liver=(0, 10)), doubted)["liver"]


def test_without_priors_a_mask_that_is_there_raises_no_question() -> None:
    found = examine(in_pieces(), GRID, NAMES, {}, SETTINGS)
    assert found["liver"].components == 2
    assert all(one.reasons == () for one in found.values())
    assert found["liver"].voxels == 2 * 4 * 6
    assert found["liver"].volume_ml == pytest.approx(48)
