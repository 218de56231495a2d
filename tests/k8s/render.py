"""What `kubectl kustomize` makes of a folder, for machines without it: the subset that k8s/ uses.

It refuses what it does not know. test_render.py compares it with kubectl itself where there is one.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_KNOWN = {
    "apiVersion", "kind", "resources", "components", "configMapGenerator", "generatorOptions", "patches",
    "namespace", "images", "replacements",
}  # fmt: skip
_NO_NAMESPACE = {"Namespace"}
"""Kinds of the whole cluster among those that a kustomization here sets a namespace for."""

_ELEMENT = re.compile(r"\[(\w+)=([\w-]+)\]")
"""One element of a list, by what it is called."""

_LOCAL = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Object]:
    """Return the objects that a folder with a kustomization.yaml makes."""
    return _build(folder, [])


def _build(folder: Path, objects: list[Object]) -> list[Object]:
    """Build a folder; for a component `objects` are those that it works on."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(told) - _KNOWN:
        raise ValueError(f"{folder}: {sorted(unknown)} is beyond this renderer; teach it, or do without")
    for name in told.get("resources", []):
        objects = objects + _resources((folder / name).resolve())
    for name in told.get("components", []):
        objects = _build((folder / name).resolve(), objects)
    for generator in told.get("configMapGenerator", []):
        objects = _generated(folder, generator, told.get("generatorOptions", {}), objects)
    for patch in told.get("patches", []):
        objects = _patched(folder, patch, objects)
    if "namespace" in told:
        objects = [_placed(each, told["namespace"]) for each in objects]
    for image in told.get("images", []):
        for each in objects:
            _tagged(each, image)
    for replacement in told.get("replacements", []):
        _replaced(objects, replacement)
    return [each for each in objects if _LOCAL not in each["metadata"].get("annotations", {})]


def _resources(path: Path) -> list[Object]:
    if path.is_dir():
        return _build(path, [])
    return [copy.deepcopy(each) for each in yaml.safe_load_all(path.read_text()) if each]


def _generated(folder: Path, told: Object, options: Object, objects: list[Object]) -> list[Object]:
    options = options | told.get("options", {})
    if not options.get("disableNameSuffixHash"):
        raise ValueError(f"{folder}: names with hashes are beyond this renderer")
    data = dict(literal.split("=", 1) for literal in told.get("literals", []))
    data |= {Path(name).name: (folder / name).read_text() for name in told.get("files", [])}
    if told.get("behavior") == "merge":
        (base,) = (each for each in objects if each["kind"] == "ConfigMap" and _name(each) == told["name"])
        base["data"] |= data
        return objects
    metadata = {"name": told["name"]} | ({"labels": options["labels"]} if "labels" in options else {})
    return [*objects, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}]


def _placed(each: Object, namespace: str) -> Object:
    if each["kind"] not in _NO_NAMESPACE:
        each["metadata"]["namespace"] = namespace
    return each


# --- patches ---------------------------------------------------------------------------------


def _patched(folder: Path, told: Object, objects: list[Object]) -> list[Object]:
    change = yaml.safe_load((folder / told["path"]).read_text() if "path" in told else told["patch"])
    select = told.get("target") or {"kind": change["kind"], "name": _name(change)}
    chosen = [each for each in objects if _selected(each, select)]
    if not chosen:
        raise LookupError(f"{folder}: no object for the patch of {select}")
    if isinstance(change, list):
        for each in chosen:
            for operation in change:
                _operated(each, copy.deepcopy(operation))
        return objects
    if change.get("$patch") == "delete":
        return [each for each in objects if each not in chosen]
    change = {key: value for key, value in change.items() if key not in ("apiVersion", "kind")}
    change["metadata"] = {key: value for key, value in change.get("metadata", {}).items() if key != "name"}
    for each in chosen:
        _merged(each, copy.deepcopy(change))
    return objects


def _merged(into: Object, change: Object) -> None:
    """Apply a merge patch: lists are replaced whole, as kustomize does in custom resources."""
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merged(into[key], value)
        else:
            into[key] = value


def _operated(into: Object, operation: Object) -> None:
    """Apply one operation of a JSON patch."""
    *path, last = (part.replace("~1", "/") for part in operation["path"].split("/")[1:])
    at: Any = into
    for part in path:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if isinstance(at, list) and operation["op"] == "add":
        at.insert(len(at) if last == "-" else int(last), operation["value"])
    elif isinstance(at, dict) and (operation["op"] == "add" or last in at):
        at[last] = operation["value"]
    else:
        raise LookupError(f"{operation['op']} {operation['path']} leads nowhere in {_name(into)}")


# --- replacements -------------------------------------------------------------------------------


def _replaced(objects: list[Object], told: Object) -> None:
    (source,) = (
        each for each in objects if _selected(each, {k: told["source"][k] for k in ("kind", "name")})
    )
    (value,) = (_get(at, last) for at, last in _holders(source, told["source"]["fieldPath"], False))
    for target in told["targets"]:
        for each in objects:
            refused = any(_selected(each, select) for select in target.get("reject", []))
            if _selected(each, target["select"]) and not refused:
                for path in target["fieldPaths"]:
                    for at, last in list(
                        _holders(each, path, target.get("options", {}).get("create", False))
                    ):
                        _put(at, last, copy.deepcopy(value))


def _holders(into: Any, path: str, create: bool) -> Iterator[tuple[Any, str]]:
    """Yield what holds the end of a path of names, numbers, `*` and `[key=value]`, and that end."""
    first, dot, rest = path.partition(".")
    if not dot:
        yield into, first
    elif first == "*":
        for each in into:
            yield from _holders(each, rest, create)
    else:
        if create and isinstance(into, dict):
            into.setdefault(first, [] if rest.startswith("[") else {})
        yield from _holders(_get(into, first), rest, create)


def _get(at: Any, step: str) -> Any:
    if found := _ELEMENT.fullmatch(step):
        (one,) = (each for each in at if each.get(found[1]) == found[2])
        return one
    return at[int(step)] if isinstance(at, list) else at[step]


def _put(at: Any, step: str, value: Any) -> None:
    found = _ELEMENT.fullmatch(step)
    if not found:
        at[int(step) if isinstance(at, list) else step] = value
        return
    same = [place for place, each in enumerate(at) if each.get(found[1]) == found[2]]
    at[same[0] if same else len(at) : same[0] + 1 if same else len(at)] = [value]


# --- selecting, images ----------------------------------------------------------------------------


def _selected(each: Object, select: Object) -> bool:
    labels = each["metadata"].get("labels", {})
    return (
        select.get("kind", each["kind"]) == each["kind"]
        and select.get("name", _name(each)) == _name(each)
        and _labelled(labels, select.get("labelSelector"))
    )


def _labelled(labels: dict[str, str], selector: str | None) -> bool:
    if selector is None:
        return True
    found = re.fullmatch(r"(\S+) (in|notin) \(([\w, -]+)\)", selector)
    if not found:
        raise ValueError(f"the selector {selector!r} is beyond this renderer")
    inside = labels.get(found[1]) in found[3].split(", ")
    return inside is (found[2] == "in")


def _tagged(value: Any, image: dict[str, str]) -> None:
    """Rename an image wherever containers are listed."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key in ("containers", "initContainers") and isinstance(inner, list):
            for container in inner:
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
        if isinstance(inner, dict | list):
            _tagged(inner, image)


def _name(each: Object) -> str:
    return str(each["metadata"]["name"])
