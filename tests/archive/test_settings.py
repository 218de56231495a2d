"""What the archive room refuses before anything starts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tutelage.archive.settings import ArchiveSettings


def problems(**values: Any) -> list[tuple[str, str]]:
    return list(ArchiveSettings.model_validate(values).problems())


def test_a_synthetic_archive_needs_nothing() -> None:
    assert problems(importer="synthetic") == []


def test_a_dataset_is_checked_by_its_description(tmp_path: Path) -> None:
    told = {"labels": {"0": "background", "1": "liver"}, "training": [{}] * 20}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    assert problems(importer="msd", root=str(tmp_path)) == []


@pytest.mark.parametrize(
    ("values", "path", "complaint"),
    [
        ({"importer": "msd"}, "root", "missing; importer msd needs"),
        ({"importer": "msd", "root": "/nowhere"}, "root", "which does not exist"),
        ({"importer": "msd", "root": "HERE"}, "root", "dataset.json does not exist"),
        ({"importer": "pairs", "root": "HERE"}, "structures", "expected the names of label values"),
        ({"importer": "synthetic", "structures": ["liver"]}, "root", "liver by the settings"),
        (
            {"importer": "synthetic", "synthetic": {"patients": 12}},
            "split",
            "asks for 13 patients with labels .* expected at most the 12",
        ),
    ],
    ids=["no root", "no folder", "no description", "no names", "other names", "too large a split"],
)
def test_problems_are_told_with_their_path(
    tmp_path: Path, values: dict[str, Any], path: str, complaint: str
) -> None:
    if values.get("root") == "HERE":
        values = values | {"root": str(tmp_path)}
    [(where, what)] = problems(**values)
    assert where == path
    assert re.search(complaint, what)


def test_a_split_larger_than_the_list_is_refused_without_a_look_at_images(tmp_path: Path) -> None:
    told = {"labels": {"0": "background", "1": "liver"}, "training": [{}] * 5}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    [(where, what)] = problems(importer="msd", root=str(tmp_path))
    assert (where, "at most the 5 there are" in what) == ("split", True)


@pytest.mark.parametrize(
    "values",
    [{"styles": ["ct", "pet"]}, {"styles": []}, {"spacing": [0, 1, 1]}, {"spacing": [1, 1, 1e9]}],
    ids=["unknown style", "no style", "no spacing", "absurd spacing"],
)
def test_phantoms_that_cannot_be_painted_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ArchiveSettings.model_validate({"importer": "synthetic", "synthetic": values})
