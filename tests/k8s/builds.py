"""All that k8s/ makes, rendered once, and ways to look into it."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.render import Object, render

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("kind", "gpu-single", "gpu-cluster")
PARTS = ("", "cluster", "jobs", "serving")
BUILDS = tuple(f"{overlay}/{part}".rstrip("/") for overlay in OVERLAYS for part in PARTS)


@functools.cache
def build(name: str) -> tuple[Object, ...]:
    """Return the objects of an overlay's folder; not to be changed."""
    return tuple(render(K8S / "overlays" / name))


def everything() -> Iterator[tuple[str, Object]]:
    """Yield all objects with the build that makes them."""
    for name in BUILDS:
        for each in build(name):
            yield name, each


def named(name: str, kind: str, called: str) -> Object:
    """Return one object."""
    (one,) = (each for each in build(name) if each["kind"] == kind and each["metadata"]["name"] == called)
    return one


def of(name: str, kind: str) -> list[Object]:
    """Return all objects of a kind."""
    return [each for each in build(name) if each["kind"] == kind]


def inside(value: Any, key: str) -> Iterator[Any]:
    """Yield every value of a key, however deep."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if name == key:
            yield inner
        if isinstance(inner, dict | list):
            yield from inside(inner, key)


def pods(each: Object) -> Iterator[Object]:
    """Yield the pod templates of an object, each with its `spec`."""
    for template in [*inside(each, "template"), *inside(each, "submitterPodTemplate")]:
        if "containers" in template.get("spec", {}):
            yield template


def clusters() -> Iterator[tuple[str, Object, Object]]:
    """Yield build, object and specification of every Ray cluster."""
    for name, each in everything():
        spec = each.get("spec", {})
        if each["kind"] == "RayCluster":
            yield name, each, spec
        elif each["kind"] in ("RayJob", "RayService"):
            yield name, each, spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def serve_config(each: Object) -> Any:
    """Return what a RayService tells Ray Serve."""
    return yaml.safe_load(each["spec"]["serveConfigV2"])


def amount(quantity: str | int) -> float:
    """Return a quantity of Kubernetes as a number."""
    text = str(quantity)
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
