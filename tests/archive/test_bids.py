"""BIDS: names, sidecars and derivatives of made-up datasets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.archive import formats, structures_of
from tutelage.archive.catalog import scan
from tutelage.archive.importers import Found, found_in
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.records import Quarantined, Role
from tutelage.storage import Place


def touch(root: Path, *names: str) -> None:
    """Make files; importers never look inside images."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"unread")


def settings_of(root: Path, *structures: str, **bids: Any) -> ArchiveSettings:
    values = {"importer": "bids", "root": str(root), "structures": structures, "bids": bids}
    return ArchiveSettings.model_validate(values)


def listed(root: Path, **bids: Any) -> tuple[list[Found], dict[str, str]]:
    items = list(found_in(settings_of(root, **bids), Place.of(root)))
    bad = {i.address.removeprefix(f"{root}/"): i.reason for i in items if isinstance(i, Quarantined)}
    return [i for i in items if isinstance(i, Found)], bad


def test_images_are_cases_and_subjects_are_patients(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_FLAIR.nii",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.json.bak/ignored",
        "sub-02/func/sub-02_task-rest_bold.nii.gz",
        "sub-02/anat/.DS_Store",
        "sourcedata/sub-03/anat/sub-03_T1w.nii.gz",
        "README",
    )
    found, bad = listed(tmp_path)
    assert [(f.case, f.patient, f.modality) for f in found] == [
        ("sub-01_ses-1_run-1_T1w", "sub-01", "T1w"),
        ("sub-01_ses-1_run-2_T1w", "sub-01", "T1w"),
        ("sub-01_ses-2_FLAIR", "sub-01", "FLAIR"),
        ("sub-02_T1w", "sub-02", "T1w"),
    ]
    assert found[0].image == f"{tmp_path}/sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz"
    assert not bad


def test_the_settings_choose_folders_and_suffixes(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz",
        "sub-01/pet/sub-01_trc-FDG_pet.nii.gz",
    )
    assert [f.modality for f in listed(tmp_path)[0]] == ["T1w", "T2w"]
    assert [f.modality for f in listed(tmp_path, suffixes=["T2w"])[0]] == ["T2w"]
    assert [f.modality for f in listed(tmp_path, datatypes=["pet"])[0]] == ["pet"]
    with pytest.raises(ArchiveError, match="has images of T1w, T2w, pet, expected some of FLAIR in anat"):
        listed(tmp_path, suffixes=["FLAIR"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01/anat/T1.nii.gz", "expected sub-01_KEY-VALUE_SUFFIX"),
        ("sub-01/anat/sub-02_T1w.nii.gz", "not named like an image of its subject"),
        ("sub-01/anat/sub-01_run1_T1w.nii.gz", "not named like an image of its subject"),
        ("sub-01/anat/sub-01_T1w.mgz", "suffix is unknown"),
    ],
)
def test_files_that_break_the_rules_are_set_aside(tmp_path: Path, name: str, reason: str) -> None:
    touch(tmp_path, name, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_FLAIR.json")
    (tmp_path / "sub-01/anat/sub-01_FLAIR.json").write_text("{}")
    found, bad = listed(tmp_path)
    assert [f.modality for f in found] == ["FLAIR"]
    assert list(bad) == [name]
    assert reason in bad[name]


def test_people_without_images_are_set_aside(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "derivatives/p/sub-03/anat/sub-03_dseg.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\nsub-02\tn/a\n")
    found, bad = listed(tmp_path)
    assert [f.patient for f in found] == ["sub-01"]
    assert set(bad) == {"sub-02", "derivatives/p/sub-03"}
    (tmp_path / "participants.tsv").write_text("id,age\nsub-01,61\n")
    with pytest.raises(ArchiveError, match="has columns id,age, expected participant_id with tabs"):
        listed(tmp_path)


def test_a_folder_without_subjects_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "anat/sub-01_T1w.nii.gz")
    with pytest.raises(ArchiveError, match="no folders sub-LABEL, expected a BIDS dataset"):
        listed(tmp_path)


def test_a_dataset_may_lie_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    touch(tmp_path, "derivatives/p/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz")
    root = Place(f"file://{tmp_path}")
    [found] = found_in(settings_of(tmp_path), root)
    assert isinstance(found, Found)
    assert found.image == f"{root}/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert found.label == f"{root}/derivatives/p/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz"


# --- sidecars -----------------------------------------------------------------------------


def test_the_nearest_sidecar_that_fits_tells_the_modality(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    touch(
        tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii"
    )
    sidecars = {
        "dataset_description.json": {"Name": "made up"},
        "T1w.json": {"Modality": "whole", "MagneticFieldStrength": 3},
        "sub-01/sub-01_T1w.json": {"Modality": "subject"},
        "sub-01/ses-1/sub-01_ses-1_T1w.json": {"FlipAngle": 9},
        "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.json": {"Modality": "image"},
    }
    for name, told in sidecars.items():
        (tmp_path / name).write_text(json.dumps(told))
    assert {f.case: f.modality for f in listed(tmp_path)[0]} == {
        "sub-01_ses-1_run-1_T1w": "subject T1w",
        "sub-01_ses-1_run-2_T1w": "image T1w",
        "sub-01_ses-1_T2w": "T2w",
        "sub-02_T1w": "whole T1w",
    }


def test_an_image_whose_sidecar_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-02/anat/sub-02_T1w.nii.gz",
    )
    found, bad = listed(tmp_path)
    assert [f.patient for f in found] == ["sub-02"]
    assert "sub-01_T1w.json is no JSON" in bad["sub-01/anat/sub-01_T1w.nii.gz"]


# --- labels -------------------------------------------------------------------------------

ANAT = "derivatives/{}/sub-01/anat/"


def labels(root: Path, *names: str, **bids: Any) -> tuple[dict[str, str | None], dict[str, str]]:
    """Return labels by case of one subject with these derivatives, and what was set aside."""
    touch(root, "sub-01/anat/sub-01_T1w.nii.gz", *names)
    found, bad = listed(root, **bids)
    return {f.case: f.label and f.label.removeprefix(f"{root}/") for f in found}, bad


@pytest.mark.parametrize(
    "name",
    [
        "derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-T1w_desc-liver_mask.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-orig_atlas-X_dseg.nrrd",
        "derivatives/manual/sub-01/sub-01_seg-organs_dseg.nii",
    ],
)
def test_labels_are_found_in_derivatives(tmp_path: Path, name: str) -> None:
    assert labels(tmp_path, name) == ({"sub-01_T1w": name}, {})


def test_a_label_of_values_counts_before_a_mask(tmp_path: Path) -> None:
    dseg = ANAT.format("p") + "sub-01_dseg.nii.gz"
    assert labels(tmp_path, dseg, ANAT.format("p") + "sub-01_desc-brain_mask.nii.gz") == (
        {"sub-01_T1w": dseg},
        {},
    )


def test_labels_in_other_spaces_are_none_of_ours(tmp_path: Path) -> None:
    name = ANAT.format("p") + "sub-01_space-MNI152NLin2009cAsym_dseg.nii.gz"
    assert labels(tmp_path, name) == ({"sub-01_T1w": None}, {})


def test_of_several_labels_the_settings_must_choose(tmp_path: Path) -> None:
    plain, other = (ANAT.format(p) + "sub-01_dseg.nii.gz" for p in ("a", "b"))
    aseg = ANAT.format("b") + "sub-01_desc-aseg_dseg.nii.gz"
    found, bad = labels(tmp_path, plain, other, aseg)
    assert not found
    assert "it has 3 labels, derivatives/a/" in bad["sub-01/anat/sub-01_T1w.nii.gz"]
    assert labels(tmp_path, pipeline="a") == ({"sub-01_T1w": plain}, {})
    assert labels(tmp_path, desc="aseg") == ({"sub-01_T1w": aseg}, {})
    assert labels(tmp_path, pipeline="b", desc="") == ({"sub-01_T1w": other}, {})
    with pytest.raises(
        ArchiveError, match=r"derivatives holds a, b, expected c; correct archive\.bids\.pipeline"
    ):
        labels(tmp_path, pipeline="c")


def test_a_label_that_fits_two_images_is_set_aside_and_they_are_unlabeled(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz")
    name = ANAT.format("p") + "sub-01_dseg.nii.gz"
    found, bad = labels(tmp_path, name)
    assert found == {"sub-01_T1w": None, "sub-01_FLAIR": None}
    assert "it fits 2 images, sub-01_FLAIR.nii.gz and sub-01_T1w.nii.gz, expected one" in bad[name]
    assert labels(tmp_path, suffixes=["T1w"]) == ({"sub-01_T1w": name}, {})


def test_a_label_without_an_image_is_set_aside(tmp_path: Path) -> None:
    name = ANAT.format("p") + "sub-01_run-2_dseg.nii.gz"
    found, bad = labels(tmp_path, name)
    assert found == {"sub-01_T1w": None}
    assert "no image of its entities" in bad[name]


def test_a_label_of_an_image_that_was_not_asked_for_is_no_complaint(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_run-2_T2w.nii.gz", ANAT.format("p") + "sub-01_run-2_dseg.nii.gz")
    assert labels(tmp_path, suffixes=["T1w"]) == ({"sub-01_T1w": None}, {})


# --- names of structures ------------------------------------------------------------------


def named(root: Path, **tables: str) -> Path:
    """Write a dataset with tables of label values by pipeline."""
    touch(root, "sub-01/anat/sub-01_T1w.nii.gz")
    for pipeline, text in tables.items():
        (root / "derivatives" / pipeline).mkdir(parents=True, exist_ok=True)
        (root / "derivatives" / pipeline / "dseg.tsv").write_text(text)
    return root


TABLE = "index\tname\tabbreviation\n1\tGray Matter\tGM\n2\tWhite Matter\tWM\n"


def test_a_table_of_label_values_names_structures(tmp_path: Path) -> None:
    root = named(tmp_path, p=TABLE)
    assert structures_of(settings_of(root)) == ("Gray Matter", "White Matter")
    assert structures_of(settings_of(root, "gray", "white")) == ("gray", "white")
    with_zero = named(tmp_path, p=TABLE.replace("\n1", "\n0\tbackground\tBG\n1", 1), q=TABLE)
    assert structures_of(settings_of(with_zero)) == ("Gray Matter", "White Matter")


def test_tables_that_differ_are_refused_unless_the_settings_choose(tmp_path: Path) -> None:
    root = named(tmp_path, p=TABLE, q="index\tname\n1\tliver\n")
    with pytest.raises(ArchiveError, match=r"p/dseg\.tsv and .*q/dseg\.tsv name different structures"):
        structures_of(settings_of(root))
    assert structures_of(settings_of(root, pipeline="q")) == ("liver",)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("index\tname\n1\tliver\n3\tspleen\n", "expected 0, 1, 2 and so on"),
        ("index\tname\n1\tliver\n2\tliver\n", "index '2' named 'liver'"),
        ("index\tname\none\tliver\n", "index 'one' named 'liver'"),
        ("index\tname\n1\n", "index '1' named ''"),
        ("value\tname\n1\tliver\n", "has columns value, name, expected index and name"),
        ("", "has columns none"),
        ("index\tname\n", "expected 0, 1, 2 and so on"),
    ],
    ids=["gap", "twice", "no number", "no name", "other columns", "empty", "no lines"],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, table: str, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint):
        structures_of(settings_of(named(tmp_path, p=table)))


def test_a_dataset_that_names_no_structures_says_so_before_anything_starts(tmp_path: Path) -> None:
    [(where, what)] = settings_of(named(tmp_path)).problems()
    assert (where, "has no dseg.tsv" in what) == ("structures", True)
    assert not list(settings_of(tmp_path, "liver").problems())


# --- a whole scan -------------------------------------------------------------------------


def test_a_scan_splits_by_subject_and_checks_labels(tmp_path: Path) -> None:
    grid = Grid.from_spacing((3, 4, 5), (3.0, 1.0, 1.0))
    root = named(tmp_path / "data", manual="index\tname\n1\tliver\n")
    (root / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    for subject in ("01", "02", "03", "04"):
        for session in ("1", "2"):
            name = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
            formats.write_image(root / f"{name}_T1w.nii.gz", np.zeros(grid.shape, "i2"), grid)
            formats.write_image(
                root / f"derivatives/manual/{name}_dseg.nii.gz", np.zeros(grid.shape, "u1"), grid
            )
    moved = Grid.from_spacing(grid.shape, (3.0, 1.0, 1.2))
    bad = root / "derivatives/manual/sub-04/ses-2/anat/sub-04_ses-2_dseg.nii.gz"
    formats.write_image(bad, np.zeros(grid.shape, "u1"), moved)
    values = {"importer": "bids", "root": str(root), "split": {"gold": 1, "validation": 1, "test": 1}}
    settings = ArchiveSettings.model_validate(values)
    catalog = scan(settings, Place.of(tmp_path / "catalog"), Place.of(tmp_path / "made"))
    assert catalog.structures == ("liver",)
    assert [b.address for b in catalog.quarantined] == [str(bad)]
    assert len(catalog.cases) == 7
    roles: dict[str, set[Role]] = {}
    for case in catalog.cases:
        roles.setdefault(case.patient, set()).add(case.role)
    assert {len(told) for told in roles.values()} == {1}
