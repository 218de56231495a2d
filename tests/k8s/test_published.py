"""Objects of operators' kinds, held against what the operators publish: whole where that can be had.

Where it cannot, every field must be one that somebody looked up where it could.
"""

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.k8s import published
from tests.k8s.builds import BUILDS, build, everything, named
from tests.k8s.crds import CUSTOM

pytestmark = pytest.mark.files  # the schemas are megabytes of YAML


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return published.at_hand()
    except OSError as error:
        pytest.skip(f"operators' CRDs cannot be fetched ({error}), and TUTELAGE_CRDS names no folder of them")


def test_what_is_kept_of_the_schemas_is_what_they_say(folder: Path) -> None:
    if "TUTELAGE_SNAPSHOT" in os.environ:
        published.keep(folder)
    assert published.FIELDS.read_text() == published.written(published.fields(folder))


@pytest.mark.parametrize("name", BUILDS)
def test_every_field_of_an_operators_kind_was_looked_up_in_its_published_schema(name: str) -> None:
    kept = published.kept()
    for each in build(name):
        if each["kind"] in CUSTOM:
            wrong = list(published.unknown(each, kept[published.kind_of(each)]))
            assert not wrong, (
                f"{each['kind']} {each['metadata']['name']}: {'; '.join(wrong)}. Where the published files "
                "are at hand, TUTELAGE_SNAPSHOT=1 looks up new fields"
            )


@pytest.mark.parametrize("name", BUILDS)
def test_every_object_of_an_operators_kind_is_valid_by_its_published_schema(name: str, folder: Path) -> None:
    for each in build(name):
        if each["kind"] in CUSTOM:
            published.validate(each, folder)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec.rayClusterSpec.headGroupSpec.rayParams", {}, "rayParams was not looked up"),
        (
            "spec.submitterPodTemplate.spec.containers.0.imagePolicy",
            "Always",
            "imagePolicy was not looked up",
        ),
        ("spec.backoffLimit", "2", "spec.backoffLimit is '2', expected integer"),
        ("spec.backoffLimit", True, "spec.backoffLimit is True, expected integer"),
        ("spec.shutdownAfterJobFinishes", "true", "expected boolean"),
        ("spec.rayClusterSpec.workerGroupSpecs", {}, "expected a list"),
        ("spec.rayClusterSpec", "small", "expected fields"),
    ],
)
def test_a_field_that_operators_do_not_have_is_refused_without_their_schemas(
    path: str, value: Any, told: str
) -> None:
    wrong = _with("gpu-cluster/jobs", path, value)
    (found,) = published.unknown(wrong, published.kept()["ray.io/v1 RayJob"])
    assert told in found


def test_a_field_that_operators_do_not_have_is_refused_by_their_schemas(folder: Path) -> None:
    wrong = _with("gpu-cluster/jobs", "spec.rayClusterSpec.headGroupSpec.rayParams", {})
    with pytest.raises(jsonschema.ValidationError, match="rayParams"):
        published.validate(wrong, folder)


def _with(name: str, path: str, value: Any) -> Any:
    changed = copy.deepcopy(named(name, "RayJob", "label"))
    *above, last = path.split(".")
    at: Any = changed
    for step in above:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = value
    return changed


def test_labels_and_amounts_may_have_any_name() -> None:
    changed = _with("gpu-cluster/jobs", "spec.rayClusterSpec.headGroupSpec.rayStartParams", {"new": "1"})
    assert not list(published.unknown(changed, published.kept()["ray.io/v1 RayJob"]))


def test_a_published_file_that_is_another_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there/crds").mkdir(parents=True)
    (tmp_path / "there/crds/a.yaml").write_text("spec: {}\n")
    right = hashlib.sha256(b"spec: {}\n").hexdigest()
    monkeypatch.setattr(published, "_GITHUB", tmp_path.joinpath("there").as_uri())
    monkeypatch.setattr(published, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("TUTELAGE_CRDS", raising=False)
    monkeypatch.setattr(published, "SOURCES", (published.Source("crds", "a.yaml", "0" * 64),))
    with pytest.raises(ValueError, match=f"has digest {right}, expected 000"):
        published.at_hand()
    monkeypatch.setattr(published, "SOURCES", (published.Source("crds", "a.yaml", right),))
    assert (published.at_hand() / "a.yaml").read_text() == "spec: {}\n"
    (tmp_path / "there/crds/a.yaml").unlink()
    assert published.at_hand(), "what was fetched is not fetched again"


def test_there_is_a_source_for_every_kind_that_is_no_kubernetes_own() -> None:
    used = {each["kind"] for _, each in everything() if each["kind"] in CUSTOM}
    files = {source.name.partition("_")[2] for source in published.SOURCES}
    assert {f"{kind.lower()}s.yaml" for kind in used} == files
