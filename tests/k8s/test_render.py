"""What is applied: the same as kubectl's, and as it was when somebody last looked at it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.builds import BUILDS, K8S, build
from tests.k8s.render import Object, render
from tests.k8s.showing import shown, whole

SNAPSHOT = Path(__file__).with_name("snapshot.yaml")


def _by_name(objects: list[Object] | tuple[Object, ...]) -> dict[tuple[str, str], Object]:
    named = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(named) == len(objects), "two objects of one kind and name"
    return named


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here to compare with")
@pytest.mark.parametrize("name", BUILDS)
def test_our_renderer_makes_what_kubectl_makes(name: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / name)], capture_output=True, text=True, check=True
    )
    assert _by_name(build(name)) == _by_name(list(yaml.safe_load_all(done.stdout)))


def test_the_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


def test_what_is_applied_is_what_was_looked_at() -> None:
    now = shown()
    if "TUTELAGE_SNAPSHOT" in os.environ:
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), "look at the difference; TUTELAGE_SNAPSHOT=1 writes it anew"


def test_the_snapshot_has_every_field_of_every_object() -> None:
    told = yaml.safe_load(SNAPSHOT.read_text())
    for name in BUILDS:
        for each in build(name):
            found = told[name][f"{each['kind']} {each['metadata']['name']}"]
            assert whole(found, told) == each, name
