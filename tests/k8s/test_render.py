"""What is applied: the same as kubectl's, and as it was when somebody last looked at it."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.builds import BUILDS, K8S, build, clusters, everything, pods
from tests.k8s.render import Object, render

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


@pytest.mark.process
@pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster to ask")
@pytest.mark.parametrize("name", BUILDS)
def test_a_cluster_at_hand_would_take_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(build(name)))
    done = subprocess.run(
        ["kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


def _summary() -> dict[str, Any]:
    """What a person wants to see change: objects, images, nodes, what is asked for, what is started."""
    told: dict[str, Any] = {}
    for name, each in everything():
        what = told.setdefault(name, {}).setdefault(f"{each['kind']} {each['metadata']['name']}", {})
        if images := sorted({c["image"] for pod in pods(each) for c in pod["spec"]["containers"]}):
            what["images"] = images
        if entrypoint := each.get("spec", {}).get("entrypoint"):
            what["runs"] = entrypoint
    for name, each, spec in clusters():
        what = told[name][f"{each['kind']} {each['metadata']['name']}"]
        for group in spec.get("workerGroupSpecs", []):
            (container,) = group["template"]["spec"]["containers"]
            asked = " ".join(f"{amount} {unit}" for unit, amount in container["resources"]["limits"].items())
            least, now, most = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
            gives = "".join(f", {name} {each}" for name, each in group.get("resources", {}).items())
            what[f"group {group['groupName']}"] = f"{least} to {most}, first {now}, of {asked}{gives}"
    return told


def test_what_is_applied_is_what_was_looked_at() -> None:
    now = re.sub(r": \{\}$", ":", yaml.safe_dump(_summary(), width=200), flags=re.MULTILINE)
    if "TUTELAGE_SNAPSHOT" in os.environ:
        SNAPSHOT.write_text(now)
    assert now == SNAPSHOT.read_text(), "look at the difference; TUTELAGE_SNAPSHOT=1 writes it anew"
