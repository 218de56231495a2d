import math
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tutelage.errors import SettingsError, TrainingError
from tutelage.geometry import Grid
from tutelage.specialist.plan import Plan, Triple, make_plan, read_plan, write_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

Spacing = tuple[float, float, float]


def planned(shape: Triple, spacing: Spacing, settings: SpecialistSettings | None = None) -> Plan:
    grid = Grid.from_spacing(shape, spacing)
    return make_plan([grid], ["liver", "spleen"], 1, settings or SpecialistSettings())


@pytest.mark.parametrize(
    ("shape", "spacing", "patch", "strides"),
    [
        ((24, 72, 96), (9, 3, 3), (24, 72, 96), ((1, 2, 2), (1, 2, 2), (2, 2, 2))),
        ((20, 44, 56), (9, 6, 6), (20, 48, 56), ((1, 2, 2), (2, 2, 2), (2, 2, 2))),
        ((48, 48, 48), (1, 1, 1), (48, 48, 48), ((2, 2, 2),) * 3),
        ((30, 50, 70), (1, 1, 1), (32, 48, 72), ((2, 2, 2), (2, 2, 2), (1, 2, 2))),
        ((1, 128, 96), (1, 1, 1), (1, 128, 96), ((1, 2, 2),) * 3),
        ((3, 64, 64), (1, 1, 1), (3, 64, 64), ((1, 2, 2),) * 3),
        ((5, 6, 7), (2, 2, 2), (5, 6, 7), ((1, 1, 1),) * 3),
        ((2, 3, 3), (3, 1, 1), (2, 3, 3), ((1, 1, 1),) * 3),
        ((1, 1, 40), (1, 1, 1), (1, 1, 40), ((1, 1, 2),) * 3),
    ],
    ids=[
        "coarse slices wait until the others are as coarse",
        "moderately coarse slices",
        "isotropic",
        "sides that are no multiples go to the nearest",
        "flat",
        "a few fine slices do not hold up the rest",
        "too small to halve",
        "tiny",
        "a line",
    ],
)
def test_plans(shape: Triple, spacing: Spacing, patch: Triple, strides: tuple[Triple, ...]) -> None:
    plan = planned(shape, spacing)
    assert plan.strides == strides
    assert plan.patch == patch


@pytest.mark.parametrize(
    "shape", [(100, 512, 512), (64, 64, 64), (1, 2000, 2000), (7, 9, 301), (3, 1000, 900)]
)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 2.0, 1.0)])
def test_every_patch_divides_is_affordable_and_leaves_something_at_the_bottom(
    shape: Triple, spacing: Spacing
) -> None:
    plan = planned(shape, spacing)
    assert all(n % m == 0 for n, m in zip(plan.patch, plan.multiple, strict=True))
    assert math.prod(plan.patch) <= 1.5 * SpecialistSettings().max_patch_voxels
    bottom = [n // m for n, m in zip(plan.patch, plan.multiple, strict=True)]
    assert all(n >= 4 for n, m in zip(bottom, plan.multiple, strict=True) if m > 1)
    assert math.prod(bottom) > 1


def test_the_middle_image_decides() -> None:
    grids = [Grid.from_spacing((n, 8 * n, 8 * n), (s, 1, 1)) for n, s in ((4, 2), (8, 3), (90, 11))]
    plan = make_plan(grids, ["a"], 1, SpecialistSettings())
    assert plan.spacing == (3.0, 1.0, 1.0)
    assert plan.patch == (8, 64, 64)


def test_settings_have_the_last_word() -> None:
    settings = SpecialistSettings(channels=(8, 16), spacing=(4.0, 2.0, 2.0), patch=(9, 30, 31))
    plan = planned((40, 96, 128), (2.0, 2.0, 2.0), settings)
    assert (plan.spacing, plan.channels, plan.strides) == ((4.0, 2.0, 2.0), (8, 16), ((1, 2, 2),))
    assert plan.patch == (9, 30, 32)


def test_a_small_patch_makes_a_shallow_network_however_large_the_volumes() -> None:
    plan = planned((64, 64, 64), (1, 1, 1), SpecialistSettings(patch=(8, 8, 16)))
    assert plan.strides == ((2, 2, 2), (1, 1, 2), (1, 1, 1))


def test_fine_spacings_survive_rounding() -> None:
    assert planned((1, 64, 64), (1.0, 0.00001, 0.00002)).spacing == (1.0, 0.00001, 0.00002)


def test_a_plan_is_a_yaml_that_loads_to_the_same_plan() -> None:
    plan = planned((20, 44, 56), (9, 6, 6))
    assert Plan.model_validate(yaml.safe_load(plan.to_yaml())) == plan
    assert plan.classes == 3


def test_a_plan_from_when_plans_had_a_batch_is_still_one() -> None:
    plan = planned((20, 44, 56), (9, 6, 6))
    old = plan.model_dump(mode="json") | {"batch": 2}
    assert Plan.model_validate(old) == plan
    assert "batch" not in plan.model_dump()


def test_norm_and_dropout_are_those_of_the_settings() -> None:
    plan = planned((8, 32, 32), (1, 1, 1), SpecialistSettings(network="vnet", norm="batch", dropout=0.5))
    assert (plan.network, plan.norm, plan.dropout) == ("vnet", "batch", 0.5)


@pytest.mark.parametrize(
    ("grids", "structures", "message"),
    [
        ([], ["a"], "no image to plan"),
        ([Grid.from_spacing((8, 8, 8), (1, 1, 1))], [], "0 structures, expected 1 to 255"),
        ([Grid.from_spacing((8, 8, 8), (1, 1, 1))], ["a"] * 256, "256 structures"),
        ([Grid.from_spacing((1, 1, 1), (1, 1, 1))], ["a"], "patches of one voxel"),
    ],
    ids=["no image", "no structure", "more structures than bytes have values", "one voxel"],
)
def test_what_cannot_be_planned_is_refused(grids: list[Grid], structures: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make_plan(grids, structures, 1, SpecialistSettings())


@pytest.mark.parametrize(
    "values",
    [{"spacing": (0.0, 1.0, 1.0)}, {"patch": (0, 8, 8)}, {"channels": (8, 0)}, {"channels": (8,)}],
    ids=["spacing", "patch", "channels", "one level"],
)
def test_sizes_of_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpecialistSettings.model_validate(values)


# --- as a file that a person edits --------------------------------------------------------


def written(tmp_path: Path, **changes: object) -> Place:
    plan = planned((20, 44, 56), (9, 6, 6))
    place = Place.of(tmp_path / "plan.yaml")
    write_plan(place, plan)
    values = yaml.safe_load(place.read_text()) | changes
    if changes:
        place.write_text(yaml.safe_dump({key: value for key, value in values.items() if value != "gone"}))
    return place


def test_a_plan_is_written_for_a_person_and_read_back(tmp_path: Path) -> None:
    place = written(tmp_path)
    assert "patch: [20, 48, 56]" in place.read_text()
    assert place.read_text().startswith("# What specialists of this workspace are")
    assert read_plan(place) == planned((20, 44, 56), (9, 6, 6))


def test_a_file_that_is_not_there_is_no_plan(tmp_path: Path) -> None:
    assert read_plan(Place.of(tmp_path / "plan.yaml")) is None


def test_what_a_person_changes_counts(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, network="resvnet", patch=[40, 64, 64], norm="batch"))
    assert plan is not None
    assert (plan.network, plan.patch, plan.norm) == ("resvnet", (40, 64, 64), "batch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pach": [1, 2, 3]}, "pach: unknown key; did you mean patch?"),
        ({"spacing": "gone"}, "spacing: missing"),
        ({"norm": "group"}, "norm: found 'group', input should be 'instance' or 'batch'"),
        ({"network": "wnet"}, "network: found 'wnet', expected one of unet, vnet, resvnet, unetplusplus"),
        ({"patch": [20, 50, 56]}, r"patch: found \[20, 50, 56\], expected multiples of \[4, 8, 8\]"),
        ({"patch": [20, 50, 56]}, r"take for example \[20, 48, 56\]"),
        ({"patch": [0, 48, 56]}, "patch: found"),
        ({"channels": [16, 32]}, "strides: found 3, expected 1"),
        ({"channels": [16], "strides": []}, "channels: found .* two or more"),
        ({"strides": [[1, 2, 2], [1, 0, 2], [1, 1, 1]]}, "strides: found .* expected positive numbers"),
        ({"spacing": [9, -6, 6]}, "spacing: found .* expected positive numbers"),
        ({"patch": [4, 8, 8]}, "strides: nothing but one cell is left"),
    ],
)
def test_a_file_that_is_no_plan_is_told_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read_plan(written(tmp_path, **changes))
    assert "plan.yaml is not usable, nothing was started" in str(caught.value)


def test_half_a_file_is_told(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "plan.yaml")
    place.write_text("patch: [1, 2")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_plan(place)
