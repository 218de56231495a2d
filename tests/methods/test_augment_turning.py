import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from tests.methods.learning import Lesson, learn
from tests.methods.test_semisam_plus import Listening, method, viewed
from tests.methods.test_semisam_plus import one as network
from tests.methods.toys import VOLUME, batch_of, sample
from tutelage.geometry import Grid
from tutelage.methods import semisam_plus, turning
from tutelage.methods.base import SPECIALIST, Patches, View
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.settings import AugmentSettings, TrainSettings
from tutelage.methods.turning import Matrix
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings

pytestmark = pytest.mark.torch

SPACING = (2.0, 1.0, 0.7)
LARGE: Triple = (20, 44, 56)
PATCH: Triple = (14, 28, 36)
SMALL: Triple = (6, 14, 14)
TURNED = AugmentSettings(rotation_degrees=30, scaling=0.2)


def plan_of(patch: Triple, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Plan:
    grid = Grid.from_spacing(patch, spacing)
    return make_plan([grid], ["a", "b"], 1, SpecialistSettings(channels=(8, 16), patch=patch))


def turn(degrees: float, axis: tuple[float, float, float] = (0.6, 0.48, 0.64)) -> NDArray[np.float64]:
    """As scipy's, which knows another formula, would have it."""
    return np.asarray(Rotation.from_rotvec(np.radians(degrees) * np.asarray(axis)).as_matrix())


def tilted(degrees: float = 25.0, larger: float = 1.0, start: Triple = (2, 8, 9)) -> View:
    matrix = turning.in_voxels(turn(degrees) / larger, SPACING)
    return View(LARGE, start, PATCH, tilt=matrix)


def places(shape: Triple) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float64)


def ball(shape: Triple, middle: tuple[float, ...], radius_mm: float) -> NDArray[np.bool_]:
    away = (places(shape) - np.reshape(middle, (3, 1, 1, 1))) * np.reshape(SPACING, (3, 1, 1, 1))
    return np.asarray(np.linalg.norm(away, axis=0) <= radius_mm)


def smooth(shape: Triple) -> NDArray[np.float32]:
    d, h, w = places(shape)
    return np.asarray(np.sin(d / 3) + np.cos(h / 5) * np.sin(w / 6), np.float32)


def batches(settings: AugmentSettings, *samples: Sample, rank: int = 0, world: int = 1) -> Batches:
    told = TrainSettings(steps=40, batch=4, augment=settings)
    return Batches(samples, plan_of(VOLUME, (2.0, 1.0, 1.0)), told, 5, rank, world)


def streams(drawn: Batches, steps: int = 12) -> Iterator[Patches]:
    for step in range(steps):
        batch = drawn.at(step)
        yield batch.labeled
        if batch.unlabeled is not None:
            yield batch.unlabeled


MIXED = (sample("g1"), sample("g2"), sample("u1", gold=False), sample("u2", gold=False))


# --- where voxels go ------------------------------------------------------------------------


@pytest.mark.parametrize("larger", [1.0, 1.2])
def test_a_ball_stays_a_ball_in_millimeters(larger: float) -> None:
    view, radius_mm = tilted(larger=larger), 7.0
    middle = np.add(view.start, (6.0, 13.0, 19.0))
    shares = np.asarray(view.of(ball(LARGE, tuple(middle), radius_mm).astype(np.float32)), np.float32)
    found = shares > 0.5
    where_mm = np.argwhere(found) * SPACING
    volume_mm3 = len(where_mm) * math.prod(SPACING)
    assert volume_mm3 == pytest.approx(4 / 3 * math.pi * (radius_mm * larger) ** 3, rel=0.06)
    along_mm2 = np.linalg.eigvalsh(np.cov(where_mm.T))
    assert along_mm2 == pytest.approx([(radius_mm * larger) ** 2 / 5] * 3, rel=0.1)
    center_mm = (np.subtract(PATCH, 1) / 2) * SPACING
    away_mm = (middle - view.start) * SPACING - center_mm
    expected_mm = center_mm + larger * turn(-25) @ away_mm
    assert np.allclose(where_mm.mean(0), expected_mm, atol=0.3)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
@pytest.mark.parametrize("start", [(2, 8, 9), (0, 0, 30)], ids=["inside", "at the rim"])
def test_voxels_are_those_that_a_slow_transform_finds(kind: type, start: Triple) -> None:
    view = tilted(start=start)
    volume: NDArray[Any] = (smooth(LARGE) * 20 + 50).astype(kind)
    wide = [(20, 20)] * 3
    middle = np.subtract(PATCH, 1) / 2
    offset = np.add(start, 20) + middle - np.asarray(view.tilt) @ middle
    order = 1 if kind is np.float32 else 0
    expected = ndimage.affine_transform(
        np.pad(volume, wide, constant_values=7), view.tilt, offset, PATCH, order=order
    )
    found = view.of(volume, 7)
    assert found.dtype == kind
    assert (np.abs(found.astype(float) - expected) < 1e-3).mean() > 0.999  # halves are rounded either way


def test_what_a_patch_is_made_of_is_as_large_as_it_has_to_be() -> None:
    view = tilted()
    assert view.tilt is not None
    rim = places(PATCH).reshape(3, -1) - (np.subtract(PATCH, 1) / 2)[:, None]
    reached = np.abs(np.asarray(view.tilt) @ rim).max(1) - np.subtract(PATCH, 1) / 2
    assert np.array_equal(turning.margins(view.tilt, PATCH), np.ceil(reached.clip(0)))
    assert view.box(smooth(LARGE)).shape == tuple(
        p + 2 * m for p, m in zip(PATCH, turning.margins(view.tilt, PATCH), strict=True)
    )


@pytest.mark.parametrize(("flips", "quarters"), [((False,) * 3, 0), ((True, False, True), 1)])
def test_turned_back_the_inside_is_what_it_was(flips: tuple[bool, bool, bool], quarters: int) -> None:
    matrix = turning.in_voxels(turn(20), (1.5, 1.0, 1.0))
    view = View((20, 40, 40), (2, 6, 7), (16, 24, 24), flips, quarters, matrix)
    volume = smooth(view.shape)
    back = np.asarray(view.back(view.of(volume), fill=9), np.float32)
    known = ndimage.binary_erosion(back < 5)
    assert known.sum() > 0.7 * math.prod(view.patch)
    assert np.abs(back - volume)[known].max() < 0.05
    label = (volume > 0.3).astype(np.uint8) * 3
    there = view.back(np.ones(view.patch, np.bool_)).astype(bool)
    carried = view.back(view.of(label))
    assert not carried[~there].any()
    assert (carried == label)[there].mean() > 0.96
    assert (view.of(carried) == view.of(label)).mean() > 0.96


def test_labels_stay_what_they_were() -> None:
    label = np.random.default_rng(0).choice(np.array([0, 3, 250], np.uint8), LARGE)
    assert set(np.unique(tilted().of(label))) == {0, 3, 250}


def test_nothing_of_it_depends_on_autocast() -> None:
    volume = torch.from_numpy(smooth(LARGE))
    view = tilted()
    assert view.tilt is not None
    expected = turning.taken(volume, view.tilt, PATCH, smooth=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turning.taken(volume, view.tilt, PATCH, smooth=True), expected)


# --- what is drawn --------------------------------------------------------------------------


def matrices(plan: Plan, settings: AugmentSettings = TURNED, count: int = 600) -> list[Matrix]:
    drawn = [turning.drawn(settings, plan, seed) for seed in range(count)]
    return [matrix for matrix in drawn if matrix is not None]


def test_three_of_ten_are_turned_and_scaled_within_bounds() -> None:
    found = np.array(matrices(plan_of((16, 16, 16))))
    assert len(found) == pytest.approx(180, abs=35)
    larger = 1 / np.cbrt(np.linalg.det(found))
    assert 1 / 1.2 <= larger.min() < 0.86
    assert 1.17 < larger.max() <= 1.2
    turns = np.degrees(np.arccos((np.trace(found, axis1=1, axis2=2) * larger - 1) / 2))
    assert 28 < turns.max() <= 30
    assert np.linalg.norm(np.abs(found - np.eye(3)).max(0)) > 0


@pytest.mark.parametrize(
    ("patch", "spacing", "plane"),
    [
        ((16, 16, 16), (1.0, 1.0, 1.0), {0, 1, 2}),
        ((16, 16, 16), (1.5, 1.0, 1.2), {0, 1, 2}),
        ((16, 16, 16), (3.0, 1.0, 0.8), {1, 2}),
        ((16, 16, 16), (1.0, 1.0, 3.0), {0, 1}),
        ((1, 16, 16), (1.0, 1.0, 1.0), {1, 2}),
        ((1, 16, 16), (1.0, 1.0, 4.0), {1, 2}),
    ],
    ids=["cubes", "nearly cubes", "thick slices", "thick the other way", "flat", "flat, pixels longer"],
)
def test_slices_far_apart_are_not_turned_out_of_their_plane(
    patch: Triple, spacing: tuple[float, float, float], plane: set[int]
) -> None:
    plan = plan_of(patch, spacing)
    found = np.array(matrices(plan, AugmentSettings(rotation_degrees=10))) - np.eye(3)
    moved = {axis for axis in range(3) if np.abs(found[:, axis]).max() > 1e-9}
    assert moved == plane


def test_a_line_of_voxels_cannot_be_turned_and_can_be_scaled() -> None:
    plan = plan_of((16, 16, 16)).model_copy(update={"patch": (1, 1, 16)})
    assert all(np.array_equal(one, np.eye(3)) for one in matrices(plan, AugmentSettings(rotation_degrees=20)))
    assert len({one[2][2] for one in matrices(plan, AugmentSettings(scaling=0.2))}) > 50


def test_zero_draws_nothing_and_what_is_not_tilted_is_as_it_was() -> None:
    assert not matrices(plan_of((16, 16, 16)), AugmentSettings())
    mirrored = AugmentSettings(flips=(True, True, True), quarter_turns=True)
    told = mirrored.model_copy(update={"rotation_degrees": 10.0})
    tilts = 0
    for as_ever, patches in zip(*(streams(batches(one, *MIXED)) for one in (mirrored, told)), strict=True):
        assert as_ever.cases == patches.cases
        assert as_ever.seeds == patches.seeds
        assert as_ever.views == tuple(replace(view, tilt=None) for view in patches.views)
        for place, view in enumerate(patches.views):
            same = torch.equal(as_ever.image[place], patches.image[place])
            assert same == (view.tilt is None)
            tilts += view.tilt is not None
    assert tilts > 5


def test_zero_is_not_told_so_that_what_was_learned_before_still_holds() -> None:
    before = {"foreground_share", "flips", "quarter_turns", "brightness", "contrast", "noise", "gamma"}
    assert set(AugmentSettings().model_dump()) == before
    assert set(TrainSettings().effective()["augment"]) == before
    assert set(TURNED.model_dump(mode="json")) == before | {"rotation_degrees", "scaling"}
    assert AugmentSettings.model_validate(TURNED.model_dump(mode="json")) == TURNED
    assert TrainSettings(augment=TURNED).effective()["augment"]["rotation_degrees"] == 30


@pytest.mark.parametrize(("key", "value"), [("rotation_degrees", -1), ("scaling", 1), ("scaling", -0.1)])
def test_what_cannot_be_drawn_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        AugmentSettings.model_validate({key: value})


def test_two_processes_draw_what_one_does() -> None:
    whole, *shares = (batches(TURNED, *MIXED, rank=rank, world=n) for rank, n in ((0, 1), (0, 2), (1, 2)))
    tilts = 0
    for step in range(8):
        one_batch, dealt = whole.at(step), [share.at(step) for share in shares]
        for place, view in enumerate(one_batch.labeled.views):
            theirs = dealt[place % 2].labeled
            assert theirs.views[place // 2] == view
            for name in ("image", "label", "weight"):
                mine = getattr(one_batch.labeled, name)[place]
                assert torch.equal(getattr(theirs, name)[place // 2], mine)
            tilts += view.tilt is not None
    assert tilts > 2


# --- what is in a patch ---------------------------------------------------------------------


def test_image_label_and_weight_move_together() -> None:
    label = ball((24, 40, 40), (12.0, 20.0, 20.0), 12.0).astype(np.uint8)
    label[:, 24:, :] *= 2
    weight = (label / 2).astype(np.float32)
    exact = Sample("one", label[None].astype(np.float32), label, weight, (), gold=True)
    turned = AugmentSettings(
        rotation_degrees=40,
        scaling=0.2,
        flips=(True, True, True),
        quarter_turns=True,
        brightness=0,
        contrast=0,
        noise=0,
        gamma=(1, 1),
    )
    seen = 0
    for patches in streams(batches(turned, exact), 12):
        for image, cut, counted, view in zip(
            patches.image, patches.label, patches.weight, patches.views, strict=True
        ):
            if view.tilt is None:
                continue
            seen += len(cut.unique()) == 3
            assert torch.equal(counted, cut / 2)
            shown = cut[None, None].float()
            most, least = (sign * F.max_pool3d(sign * shown, 5, 1)[0, 0] for sign in (1, -1))
            apart = (image[0] - cut)[2:-2, 2:-2, 2:-2].abs()
            assert (most == least).any()
            assert apart[most == least].max() < 1e-3
            assert apart[most != least].mean() < 0.4
    assert seen > 8


def test_what_comes_from_beyond_the_volume_is_dark_and_does_not_count() -> None:
    beyond = 0
    for patches in streams(batches(TURNED, sample("g", shape=VOLUME), sample("u", gold=False, shape=VOLUME))):
        for image, label, weight, view in zip(
            patches.image, patches.label, patches.weight, patches.views, strict=True
        ):
            if view.tilt is None:
                continue
            there = torch.from_numpy(np.asarray(view.of(np.ones(view.shape, np.uint8)))) > 0
            far = torch.from_numpy(np.asarray(view.of(np.ones(view.shape, np.float32)))) == 0
            assert not weight[~there].any()
            assert not label[~there].any()
            assert bool((weight[there] > 0).all())
            if far.any():
                beyond += 1
                assert image[0][far].mean() < image[0][there].mean()
    assert beyond > 3


def test_corners_hold_what_the_volume_has_there() -> None:
    """A patch in the middle of a larger volume is turned without anything from beyond."""
    volume = (16, 48, 48)
    turned = AugmentSettings(rotation_degrees=15, foreground_share=1)
    label = np.ones(volume, np.uint8)
    label[:, 20:28, 20:28] = 2
    exact = Sample("one", label[None].astype(np.float32), label, None, (), gold=True)
    inner = 0
    for patches in streams(batches(turned, exact), 20):
        for cut, view in zip(patches.label, patches.views, strict=True):
            roomy = all(
                4 <= a <= n - p - 4 for a, n, p in zip(view.start[1:], (48, 48), (16, 16), strict=True)
            )
            if view.tilt is not None and roomy:
                inner += 1
                assert bool((cut > 0).all())
    assert inner > 3


def test_features_lie_where_their_tilted_patch_lies() -> None:
    shape = (16, 32, 48)
    grid = np.empty((32, 3, 16, 16), np.float16)
    grid[:, 0] = ((np.arange(32) + 0.5) / 32)[:, None, None]
    grid[:, 1], grid[:, 2] = ((np.arange(16) + 0.5) / 16)[:, None], ((np.arange(16) + 0.5) / 16)[None]
    given = replace(sample("u", gold=False, shape=shape), features_DCHW=grid)
    settings = TURNED.model_copy(update={"flips": (True, True, True), "quarter_turns": True})
    shares = ((places(shape) + 0.5) / np.reshape(shape, (3, 1, 1, 1))).astype(np.float32)
    seen = 0
    for patches in streams(batches(settings, sample("g", shape=shape), given), 16):
        if patches.cases[0] != "u":
            continue
        assert patches.features is not None
        for features, view in zip(patches.features, patches.views, strict=True):
            sizes = [p // n for p, n in zip(VOLUME, features.shape[1:], strict=True)]
            inside = torch.from_numpy(np.asarray(view.of(np.ones(shape, np.float32))))
            whole = F.avg_pool3d(inside[None, None], sizes)[0, 0] > 0.999
            there = torch.from_numpy(np.asarray(view.of(shares)))
            expected = F.avg_pool3d(there[None], sizes)[0].clamp(1 / 32, 1 - 1 / 32)
            assert (features - expected)[:, whole].abs().max() < 0.03
            if view.tilt is not None:
                seen += 1
                beyond = F.max_pool3d(inside[None, None], sizes)[0, 0] == 0
                assert not features[:, beyond].any()
    assert seen > 3


# --- masks that come from elsewhere ---------------------------------------------------------


def test_questions_and_answers_are_carried_through_a_tilt() -> None:
    listening, networks = Listening(), network()
    tilt = turning.in_voxels(turn(20, (1.0, 0.0, 0.0)) / 1.1, (2.0, 1.0, 1.0))
    view = View((10, 28, 28), (1, 5, 6), VOLUME, (False, True, False), 1, tilt)
    batch = viewed(batch_of(), view, view)
    assert batch.unlabeled is not None
    found = method(listening)
    term = found.losses(batch, networks, 0)["generalist"]
    assert term.item() > 0
    labels = semisam_plus.foreground(networks[SPECIALIST](batch.unlabeled.image).softmax(1))
    for mask_DHW, label_DHW in zip(listening.masks, labels, strict=True):
        assert mask_DHW.shape == view.shape
        assert set(np.unique(mask_DHW)) <= set(np.unique(label_DHW))
        assert (view.of(mask_DHW) == label_DHW).mean() > 0.85
        assert (replace(view, tilt=None).of(mask_DHW) == label_DHW).mean() < 0.8


@pytest.mark.parametrize("name", ["semisam_plus", "tutelage", "bcp"])
def test_methods_learn_from_tilted_patches(name: str) -> None:
    options = {"semisam_plus": {"semisam_plus": {"base": "bcp", "ask_every": 1}}}.get(name, {})
    options |= {"tutelage": {"distillation": 0.1}} if name == "tutelage" else {}
    turned = {"augment": {"rotation_degrees": 20, "scaling": 0.1}}
    still, tilted_too = (learn(Lesson(name, options | more)) for more in ({}, turned))  # type: ignore[arg-type]
    assert np.isfinite(np.concatenate(tilted_too.told)).all()
    assert still.told != tilted_too.told
