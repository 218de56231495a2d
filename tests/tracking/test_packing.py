"""A registered specialist as others get it: by MLflow alone, where nothing of ours is."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.tracking.elsewhere import segmented
from tutelage.archive import formats
from tutelage.errors import SettingsError
from tutelage.geometry import Grid
from tutelage.rounds.packing import packing
from tutelage.storage import Place
from tutelage.tracking.campaign import Tracker
from tutelage.tracking.packing import content, packed, pinned
from tutelage.tracking.registry import Registry
from tutelage.tracking.settings import TrackingSettings

# Starting MLflow, and once a process that knows nothing else.
pytestmark = [pytest.mark.torch, pytest.mark.process]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan whose file has other axes than ours, on another spacing than the specialist's."""
    image = np.random.default_rng(0).normal(0, 50, (12, 30, 36)).astype(np.float32)
    formats.write_image(tmp_path / "scan.nii.gz", image, Grid.from_spacing((12, 30, 36), (16.0, 10.0, 9.0)))
    return tmp_path / "scan.nii.gz"


def registered(root: Path, folder: Path) -> str:
    """Register a specialist in a workspace's own MLflow and return the address of that."""
    place = Place.of(folder)
    with Tracker(TrackingSettings(), Place.of(root), "quick", {}) as tracker:
        version = tracker.register(tracker.stage("r00"), place, "d1", {"round": "0"}, packing(place))
        tracker.registry.promote(version.version)
        tracker.registry.challenge(version.version)
    return f"sqlite:///{root}/mlflow.db"


@pytest.mark.slow
def test_plain_mlflow_loads_the_champion_without_us_and_its_mask_is_the_one_that_predict_writes(
    tiny_specialist: Path, model: Path, scan: Path, tmp_path: Path, call: Any
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tracking = registered(tmp_path / "workspace", tiny_specialist)
    required = [*requirements(model), "mlflow"]  # all of MLflow: here it asks a database, no server
    scans, uri = [str(scan), "gone.nii"], "models:/quick@champion"
    rows, there = segmented(uri, required, scans, elsewhere, tracking=tracking, output=str(elsewhere))
    assert not there.is_relative_to(Path(formats.__file__).parents[2])
    code, _, _ = call("predict", "-i", scan, "-o", tmp_path / "here", "-m", tiny_specialist)
    assert code == 0
    ours, theirs = tmp_path / "here" / "scan.nii.gz", elsewhere / "scan.nii.gz"
    good, bad = rows
    assert (good["mask"], good["reason"]) == (str(theirs), "")
    assert theirs.read_bytes() == ours.read_bytes()
    found = json.loads((tmp_path / "here" / "scan.json").read_text())["structures"]
    assert json.loads(good["volumes_ml"]) == {one["structure"]: one["volume_ml"] for one in found}
    assert bad["mask"] == ""
    assert "gone.nii: it does not exist" in bad["reason"]


def requirements(model: Path) -> list[str]:
    return (model / "requirements.txt").read_text().split()


@pytest.fixture(scope="module")
def model(tiny_specialist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same specialist as an MLflow model's folder."""
    kept = tmp_path_factory.mktemp("packed") / "model"
    with packed(tiny_specialist, packing(Place.of(tiny_specialist))) as made:
        shutil.copytree(made, kept)
    return kept


@pytest.mark.slow
def test_its_own_example_is_a_scan_that_it_segments_with_nothing_but_what_it_requires(
    model: Path, tmp_path: Path
) -> None:
    [row], _ = segmented(str(model), requirements(model), [], tmp_path)
    assert row["reason"] == ""
    data = base64.b64decode(row["mask"].removeprefix("data:application/gzip;base64,"))
    assert formats.read_image_bytes(data, "mask.nii.gz").grid.shape == (8, 16, 16)


def test_the_folder_that_was_packed_lies_in_it_as_it_was(model: Path, tiny_specialist: Path) -> None:
    inside = content(model)
    assert sorted(path.name for path in inside.iterdir()) == sorted(p.name for p in tiny_specialist.iterdir())
    assert all((inside / p.name).read_bytes() == p.read_bytes() for p in tiny_specialist.iterdir())
    assert content(inside) == inside


def test_nothing_in_it_is_pickled_but_tensors(model: Path) -> None:
    assert not [path for path in model.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert [path.name for path in model.rglob("*.pt")] == ["weights.pt"]


def test_it_says_what_goes_in_and_comes_out_and_what_it_is(model: Path, tiny_specialist: Path) -> None:
    told = yaml.safe_load((model / "MLmodel").read_text())
    named = {
        part: [column["name"] for column in json.loads(told["signature"][part])]
        for part in ("inputs", "outputs", "params")
    }
    assert named == {
        "inputs": ["image"],
        "outputs": ["mask", "reason", "volumes_ml"],
        "params": ["output", "max_voxels"],
    }
    described = json.loads((tiny_specialist / "specialist.json").read_text())
    about = told["metadata"]
    assert (about["specialist"], about["plan_sha256"]) == (described["digest"], described["plan_sha256"])
    assert (about["structures"], about["spacing_DHW_mm"]) == (["liver", "spleen"], [18.0, 9.0, 9.0])


def test_its_requirements_are_versions_and_without_a_builds_own_mark(model: Path) -> None:
    lines = requirements(model)
    assert all("==" in line and "+" not in line for line in lines)
    assert {"torch", "monai", "nibabel", "numpy"} <= {line.partition("==")[0] for line in lines}
    assert not {"ray", "mlflow", "tutelage"} & {line.partition("==")[0] for line in lines}
    assert pinned(["torch"])[0] in lines


def test_the_registry_gives_back_the_specialists_own_folder(tiny_specialist: Path, tmp_path: Path) -> None:
    registered(tmp_path / "workspace", tiny_specialist)
    registry = Registry.of(TrackingSettings(), Place.of(tmp_path / "workspace"))
    for alias in ("champion", "challenger"):
        folder = registry.download(f"models:/quick@{alias}", tmp_path / alias)
        assert (folder / "weights.pt").read_bytes() == (tiny_specialist / "weights.pt").read_bytes()


def test_a_version_from_before_specialists_were_packed_comes_back_and_predicts(
    tiny_specialist: Path, scan: Path, tmp_path: Path, call: Any
) -> None:
    place, root = Place.of(tiny_specialist), Place.of(tmp_path / "workspace")
    with Tracker(TrackingSettings(), root, "quick", {}) as tracker:
        old = tracker.register(tracker.stage("r00"), place, "d0", {"round": "0"})  # files only, as it was
        tracker.registry.promote(old.version)
    kept = {item.path for item in tracker.store.client.list_artifacts(tracker.stage("r00"), "specialist")}
    assert kept == {f"specialist/{path.name}" for path in tiny_specialist.iterdir()}
    registry = Registry.of(TrackingSettings(), root)
    for number, uri in enumerate(("models:/quick@champion", f"models:/quick/{old.version}")):
        folder = registry.download(uri, tmp_path / f"fetched{number}")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in tiny_specialist.iterdir()
        }
    code, _, _ = call("predict", "-i", scan, "-o", tmp_path / "out", "-m", folder)
    assert code == 0
    assert (tmp_path / "out" / "scan.nii.gz").is_file()


def test_a_version_from_before_is_known_by_its_digest_beside_packed_ones(
    tiny_specialist: Path, tmp_path: Path
) -> None:
    place, root = Place.of(tiny_specialist), Place.of(tmp_path / "workspace")
    with Tracker(TrackingSettings(), root, "quick", {}) as tracker:
        run = tracker.stage("r00")
        old = tracker.register(run, place, "d0", {})
        assert tracker.register(run, place, "d0", {}, packing(place)) == old
        new = tracker.register(tracker.stage("r01"), place, "d1", {}, packing(place))
    registry = Registry.of(TrackingSettings(), root)
    for version in (old, new):
        folder = registry.download(version.uri, tmp_path / version.version)
        assert (folder / "weights.pt").read_bytes() == (tiny_specialist / "weights.pt").read_bytes()


def test_a_folder_without_its_plan_is_named_instead_of_packed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"plan\.yaml"):
        packing(Place.of(tmp_path))
