"""Which cases are shown of a structure, where planes cut, and what a picture is made of."""

import base64
import io

import numpy as np
from PIL import Image

from tutelage.evaluation.campaign import Overlay
from tutelage.evaluation.pictures import address
from tutelage.evaluation.planes import MOST_CASES, MOST_STRUCTURES, chosen, planes
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.geometry import Grid
from tutelage.records import Role, Score, Scorecard

GRID = Grid.from_spacing((20, 40, 60), (6.0, 3.0, 2.0))


def card(dice: dict[str, tuple[float | None, ...]]) -> Scorecard:
    """Make a card of structures with a Dice for each case; None is absent."""
    scores = [
        Score(f"case {i}", name, 1.0 if d is None else d, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0, d is None)
        for name, row in dice.items()
        for i, d in enumerate(row)
    ]
    return scorecard("abc", Role.VALIDATION, scores, list(dice), EvaluationSettings(bootstrap=1))


def test_the_best_and_the_worst_case_of_the_weakest_structure_come_first() -> None:
    found = chosen(card({"liver": (0.9, 0.8, None), "spleen": (0.2, 0.7, 0.1), "never": (None,) * 3}))
    assert [(c.structure, c.rank, c.case) for c in found] == [
        ("spleen", "worst", "case 2"),
        ("spleen", "best", "case 1"),
        ("liver", "worst", "case 1"),
        ("liver", "best", "case 0"),
    ]


def test_a_structure_that_one_case_has_is_shown_once() -> None:
    assert [choice.rank for choice in chosen(card({"liver": (0.5, None)}))] == ["only"]


def test_many_structures_cost_few_predictions() -> None:
    rng = np.random.default_rng(0)
    found = chosen(card({f"s{i}": tuple(rng.random(60).tolist()) for i in range(100)}))
    assert len({choice.case for choice in found}) == MOST_CASES
    assert len({choice.structure for choice in found}) <= MOST_STRUCTURES


def test_planes_cut_where_people_drew_most_and_the_head_is_up() -> None:
    reference = np.zeros(GRID.shape, bool)
    reference[10:15, 10:14, 20:30] = True
    reference[12, 8:18, 20:30] = True
    image = np.broadcast_to(np.arange(20.0)[:, None, None], GRID.shape)
    axial, coronal, sagittal = planes(image, reference, reference, GRID)
    assert np.unique(axial.image_HW[axial.reference_HW]).tolist() == [12.0]
    for upright in (coronal, sagittal):
        rows = np.flatnonzero(upright.reference_HW.any(axis=1))
        assert upright.image_HW[rows[0]].max() > upright.image_HW[rows[-1]].max(), "the head is at the top"
    sizes = [np.multiply(plane.image_HW.shape, plane.spacing_HW) for plane in (axial, coronal, sagittal)]
    assert np.ptp(sizes) <= 6.0, "squares of one size, to the voxel"
    assert axial.reference_HW.sum() == reference[12].sum(), "nothing that was drawn is cut off"


def test_what_only_the_specialist_draws_is_shown_too() -> None:
    nothing, drawn = np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool)
    drawn[3, 5:9, 5:9] = True
    shown = planes(np.zeros(GRID.shape), nothing, drawn, GRID)
    assert [bool(plane.prediction_HW.any()) for plane in shown] == [True] * 3


def test_a_flat_image_has_one_plane() -> None:
    flat = Grid.from_spacing((1, 40, 60), (1.0, 1.0, 1.0))
    mask = np.zeros(flat.shape, bool)
    mask[0, 10:20, 10:20] = True
    assert len(planes(np.zeros(flat.shape), mask, mask, flat)) == 1


def test_a_picture_is_a_png_with_the_prediction_tinted_and_peoples_line_white() -> None:
    reference, prediction = np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool)
    reference[5:15, 10:30, 20:40] = True
    prediction[5:15, 14:34, 20:40] = True
    image = np.random.default_rng(0).random(GRID.shape)
    cut = planes(image, reference, prediction, GRID)
    told = address(Overlay("a", "liver", 0, "best", 0.8, cut), "#0000ff")
    data = base64.b64decode(told.removeprefix("data:image/png;base64,"))
    assert len(data) < 80_000
    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape == (168, 3 * 168 + 2 * 3, 3)
    red, _, blue = np.moveaxis(pixels, -1, 0)
    assert (blue - red > 60).mean() > 0.05, "tinted"
    assert (pixels.min(axis=-1) == 255).sum() > 200, "a line"
