"""Layouts of archives: what is found in each, and descriptions that contradict themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.archive import structures_of
from tutelage.archive.importers import Found, found_in
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place


def touch(root: Path, *names: str) -> None:
    """Make files; importers never look inside."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"unread")


def describe(root: Path, **told: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(told))


def listed(root: Path, importer: str, **more: Any) -> tuple[list[Found], list[Quarantined]]:
    settings = ArchiveSettings.model_validate({"importer": importer, "root": str(root), **more})
    items = list(found_in(settings, Place.of(root)))
    return [i for i in items if isinstance(i, Found)], [i for i in items if isinstance(i, Quarantined)]


def structures(root: Path, importer: str, *names: str) -> tuple[str, ...]:
    return structures_of(
        ArchiveSettings.model_validate({"importer": importer, "root": str(root), "structures": names})
    )


# --- the Decathlon ------------------------------------------------------------------------

DECATHLON: dict[str, Any] = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTs/b.nii.gz"],
}


def test_the_decathlon_lists_its_files(tmp_path: Path) -> None:
    describe(tmp_path, **DECATHLON)
    found, bad = listed(tmp_path, "msd")
    assert found == [
        Found("a", "a", f"{tmp_path}/imagesTr/a.nii.gz", f"{tmp_path}/labelsTr/a.nii.gz", "MRI"),
        Found("b", "b", f"{tmp_path}/imagesTs/b.nii.gz", None, "MRI"),
    ]
    assert not bad
    assert structures(tmp_path, "msd") == ("Anterior", "Posterior")


def test_several_modalities_of_the_decathlon_are_one_image(tmp_path: Path) -> None:
    describe(tmp_path, **(DECATHLON | {"modality": {"0": "T2", "1": "ADC"}}))
    assert listed(tmp_path, "msd")[0][0].modality == "T2+ADC"


@pytest.mark.parametrize("outside", ["../secret.nii.gz", "/etc/secret.nii.gz", "a/../../secret.nii.gz", ""])
def test_files_outside_the_folder_are_set_aside(tmp_path: Path, outside: str) -> None:
    describe(tmp_path, **(DECATHLON | {"test": [outside]}))
    found, bad = listed(tmp_path, "msd")
    assert [f.case for f in found] == ["a"]
    assert "outside the dataset's folder" in bad[0].reason


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({"training": {"a": "b"}}, "training is"),
        ({"training": [7]}, "has an entry 7"),
        ({"test": [{}]}, "has an entry"),
    ],
    ids=["no list", "a number", "nothing"],
)
def test_lists_of_files_that_make_no_sense_are_refused(
    tmp_path: Path, told: dict[str, Any], complaint: str
) -> None:
    describe(tmp_path, **(DECATHLON | told))
    with pytest.raises(ArchiveError, match=complaint):
        listed(tmp_path, "msd")


# --- nnU-Net ------------------------------------------------------------------------------

NNUNET: dict[str, dict[str, Any]] = {
    "version 1": {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}},
    "version 2": {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "spleen": 2, "liver": 1},
        "file_ending": ".nii.gz",
    },
}


@pytest.mark.parametrize("told", NNUNET.values(), ids=NNUNET.keys())
def test_nnunet_pairs_channel_files_with_labels(tmp_path: Path, told: dict[str, Any]) -> None:
    describe(tmp_path, **told)
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b_0000.nii.gz")
    touch(tmp_path, "imagesTs/c_0000.nii.gz", "imagesTr/.DS_Store")
    found, bad = listed(tmp_path, "nnunet")
    assert [(f.case, f.label and Path(f.label).name, f.modality) for f in found] == [
        ("a", "a.nii.gz", "CT"),
        ("b", None, "CT"),
        ("c", None, "CT"),
    ]
    assert not bad
    assert structures(tmp_path, "nnunet") == ("liver", "spleen")


def test_nnunet_cases_of_several_files_are_set_aside(tmp_path: Path) -> None:
    describe(tmp_path, **NNUNET["version 2"])
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/b.nii.gz", "imagesTr/notes.txt", "labelsTr/lost.nii.gz")
    found, bad = listed(tmp_path, "nnunet")
    assert not found
    reasons = {Path(b.address).name: b.reason for b in bad}
    assert "case a has 2 channel files, expected one" in reasons["a_0000.nii.gz"]
    assert "expected CASE_0000" in reasons["b.nii.gz"]
    assert "expected CASE_0000" in reasons["notes.txt"]
    assert "no image in imagesTr" in reasons["lost.nii.gz"]


# --- pairs --------------------------------------------------------------------------------


def test_pairs_have_the_same_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "labels/a.png", "images/b.nii.gz", "labels/b.nrrd", "images/c.nrrd")
    found, bad = listed(tmp_path, "pairs", structures=["polyp"], modality="endoscopy")
    assert [(f.case, f.label and Path(f.label).name, f.modality) for f in found] == [
        ("a", "a.png", "endoscopy"),
        ("b", "b.nrrd", "endoscopy"),
        ("c", None, "endoscopy"),
    ]
    assert not bad


def test_what_does_not_pair_is_set_aside(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.dcm", "images/b.png", "labels/b.png", "labels/b.nrrd", "labels/lost.png")
    found, bad = listed(tmp_path, "pairs", structures=["polyp"])
    assert not found
    reasons = {Path(b.address).name: b.reason for b in bad}
    assert "suffix is unknown, expected one of .nii," in reasons["a.dcm"]
    assert "it has 2 labels, b.nrrd and b.png" in reasons["b.png"]
    assert "no image of its name" in reasons["lost.png"]


# --- names of structures ------------------------------------------------------------------

BAD_LABELS: dict[str, tuple[str, Any, str]] = {
    "gap": ("msd", {"0": "background", "2": "liver"}, "expected 0, 1, 2 and so on"),
    "no background": ("msd", {"1": "liver"}, "expected 0, 1, 2 and so on"),
    "background alone": ("msd", {"0": "background"}, "expected 0, 1, 2 and so on"),
    "one name twice": ("msd", {"0": "background", "1": "liver", "2": "liver"}, "two labels share a name"),
    "names first": ("msd", {"background": 0, "liver": 1}, 'expected {"0": "background"'),
    "a list": ("msd", ["background", "liver"], 'expected {"0": "background"'),
    "gap in nnU-Net": ("nnunet", {"background": 0, "liver": 2}, "expected 0, 1, 2 and so on"),
    "regions": ("nnunet", {"background": 0, "whole": [1, 2], "core": 2}, "regions and the ignore label"),
    "ignore": ("nnunet", {"background": 0, "liver": 1, "ignore": 2}, "regions and the ignore label"),
    "nothing": ("nnunet", {}, "expected names and values"),
}


@pytest.mark.parametrize(("importer", "labels", "complaint"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_labels_that_make_no_sense_are_refused(
    tmp_path: Path, importer: str, labels: Any, complaint: str
) -> None:
    describe(tmp_path, labels=labels)
    with pytest.raises(ArchiveError, match=complaint):
        structures(tmp_path, importer)


def test_structures_of_the_settings_must_be_the_datasets(tmp_path: Path) -> None:
    describe(tmp_path, **DECATHLON)
    assert structures(tmp_path, "msd", "Anterior", "Posterior") == ("Anterior", "Posterior")
    with pytest.raises(ArchiveError, match="Posterior, Anterior by the settings and Anterior, Posterior"):
        structures(tmp_path, "msd", "Posterior", "Anterior")


def test_a_synthetic_archive_knows_its_structures() -> None:
    assert structures_of(ArchiveSettings(importer="synthetic"))[:2] == ("liver", "spleen")


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (lambda file: None, "does not exist, expected a description"),
    "no JSON": (lambda file: file.write_text("{labels:"), "is no JSON"),
    "no text": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "is no JSON"),
    "a list": (lambda file: file.write_text("[]"), "holds a list"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_description_that_cannot_be_read_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(tmp_path / "dataset.json")
    with pytest.raises(ArchiveError, match=complaint):
        structures(tmp_path, "msd")


# --- patients.csv -------------------------------------------------------------------------


def test_patients_and_modalities_can_be_told(tmp_path: Path) -> None:
    describe(tmp_path, **DECATHLON)
    (tmp_path / "patients.csv").write_text("case,patient,modality\na,anna,T1\nb,anna,\nunknown,x,\n")
    found, _ = listed(tmp_path, "msd")
    assert [(f.case, f.patient, f.modality) for f in found] == [("a", "anna", "T1"), ("b", "anna", "MRI")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,who\na,anna\n", "has columns id, who, expected case and patient"),
        ("", "has columns none"),
        ("case,patient\na,anna\na,bert\n", "line 3: case 'a' of patient 'bert' is incomplete or told twice"),
        ("case,patient\na\n", "line 2: case 'a' of patient None is incomplete"),
    ],
    ids=["other columns", "empty", "twice", "incomplete"],
)
def test_a_table_of_patients_that_makes_no_sense_is_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    describe(tmp_path, **DECATHLON)
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(ArchiveError, match=complaint):
        listed(tmp_path, "msd")
