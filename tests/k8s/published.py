"""The operators' own schemas: where they are published, and what our manifests use of them.

It decides which versions count. The files are megabytes and not ours, so they are not kept here: they come
from a folder that TUTELAGE_CRDS names, or from where they are published, once, by digest. What they say of
the fields that manifests use is kept in `fields.yaml`, and holds where the files cannot be had: a field
that nobody has looked up in them is refused. It does not know what a field is for.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import yaml

from tests.k8s.builds import everything
from tests.k8s.crds import CUSTOM
from tests.k8s.render import Object

FIELDS = Path(__file__).with_name("fields.yaml")
CACHE = Path.home() / ".cache/tutelage/crds"
_PATIENCE_S = 10
_GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """A file of CustomResourceDefinitions; all are under the Apache License 2.0."""

    folder: str
    """Of the repository, at the version that counts."""

    name: str
    sha256: str


_PROMETHEUS = "prometheus-operator/prometheus-operator"
_FOLDERS = {
    "ray.io": "ray-project/kuberay/v1.7.0/helm-chart/kuberay-operator/crds",
    "kueue.x-k8s.io": "kubernetes-sigs/kueue/v0.19.2/config/components/crd/bases",
    "monitoring.coreos.com": f"{_PROMETHEUS}/v0.93.0/example/prometheus-operator-crd",
}
_DIGESTS = {
    "ray.io": {
        "rayclusters": "c44704442eef0c6721ad40c1d66782c8bd3fdab9d3344306a5820910a679baa1",
        "rayjobs": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
        "rayservices": "0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab",
    },
    "kueue.x-k8s.io": {
        "clusterqueues": "e0a5fc9b370c70f3d993d4f599865817338ecf94187b30b15b12ff33c579bd55",
        "localqueues": "dd10ef8d3578e7212fa52763549e7b6be0949793a5b924495fcd293330109fed",
        "resourceflavors": "19e339c47e9ca3fa2c9eeddd27715a512f765c4794ed859733408a9715720173",
    },
    "monitoring.coreos.com": {
        "podmonitors": "45a93443daa687d3654f7e9631909ff7edcdf3ec09c5e60251b74aa2722aee5d",
        "servicemonitors": "a99047972c9dd7679ce2050b9968e8a08773492e671b3e17abd476d42aa78a32",
    },
}
SOURCES = tuple(
    Source(_FOLDERS[group], f"{group}_{kinds}.yaml", digest)
    for group, digests in _DIGESTS.items()
    for kinds, digest in digests.items()
)


def at_hand() -> Path:
    """Return a folder with the files, fetched if need be.

    Raises:
        OSError: they can be had nowhere.
        ValueError: what came is not what was published.
    """
    if named := os.environ.get("TUTELAGE_CRDS"):
        return Path(named)
    for source in SOURCES:
        _fetch(source)
    return CACHE


def _fetch(source: Source) -> None:
    file = CACHE / source.name
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256:
        return
    with urlopen(f"{_GITHUB}/{source.folder}/{source.name}", timeout=_PATIENCE_S) as answer:
        data = answer.read()
    if (found := hashlib.sha256(data).hexdigest()) != source.sha256:
        raise ValueError(f"{source.name} of {source.folder} has digest {found}, expected {source.sha256}")
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(file)


# --- validating by the files --------------------------------------------------------------------------


def kind_of(each: Object) -> str:
    """Return what tells a kind from all others, of any version."""
    return f"{each['apiVersion']} {each['kind']}"


def validate(each: Object, folder: Path) -> None:
    """Check an object of an operator's as the API server would."""
    jsonschema.Draft7Validator(_strict(schemas(folder)[kind_of(each)])).validate(each)


@functools.cache
def schemas(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the schema of every kind and version in a folder."""
    return {kind: schema for file in sorted(folder.glob("*.yaml")) for kind, schema in _read(file)}


def _read(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for told in yaml.load_all(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        spec = told["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            # A CRD says of it only that it is there; the API server knows the rest.
            schema["properties"]["metadata"] = {"x-kubernetes-preserve-unknown-fields": True}
            yield f"{spec['group']}/{version['name']} {spec['names']['kind']}", schema


def _strict(schema: Any) -> Any:
    """Refuse unknown fields, as the API server's strict validation does, and know Kubernetes' words."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        made["type"] = ["integer", "string"]
    closed = isinstance(schema.get("properties"), dict) and "type" in schema
    if (
        closed
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        made["additionalProperties"] = False
    return made


# --- what is used of them -----------------------------------------------------------------------------

Known = dict[str, Any] | list[Any] | str
"""What a field may hold: fields by name, `*` for any name; a list of one thing; or a type."""

ANY = "anything"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "integer or string": (int, str),
    "object": (dict,),
    "array": (list,),
    ANY: (object,),
}


def fields(folder: Path) -> dict[str, Known]:
    """Return what the schemas say of every field that manifests use, by kind."""
    found: dict[str, Known] = {}
    for _, each in everything():
        if each["kind"] in CUSTOM:
            kind = kind_of(each)
            found[kind] = _joined(found.get(kind), _used(each, schemas(folder)[kind]))
    return found


def _used(value: Any, schema: dict[str, Any]) -> Known:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if isinstance(value, dict) and value and "properties" in schema:
        return {key: _used(inner, schema["properties"][key]) for key, inner in value.items()}
    if isinstance(value, dict) and value and "additionalProperties" in schema:
        return {"*": _all_used(value.values(), schema["additionalProperties"])}
    if isinstance(value, list) and value and "items" in schema:
        return [_all_used(value, schema["items"])]
    return str(schema.get("type", ANY)) if not schema.get("x-kubernetes-preserve-unknown-fields") else ANY


def _all_used(values: Any, schema: dict[str, Any]) -> Known:
    joined: Known | None = None
    for each in values:
        joined = _joined(joined, _used(each, schema))
    assert joined is not None
    return joined


def _joined(one: Known | None, other: Known) -> Known:
    """Join what two objects use. Of an empty one only the type is known."""
    if one is None or isinstance(one, str):
        return other
    if isinstance(other, str):
        return one
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **{key: _joined(one.get(key), known) for key, known in other.items()}}
    assert isinstance(one, list)
    assert isinstance(other, list)
    return [_joined(one[0], other[0])]


def unknown(value: Any, known: Known, path: str = "") -> Iterator[str]:
    """Say which fields of a value nobody has looked up, and which are not of the type that was found."""
    if isinstance(known, str):
        fits = isinstance(value, _TYPES[known]) and isinstance(value, bool) <= (known in ("boolean", ANY))
        if not fits:
            yield f"{path} is {value!r}, expected {known}"
    elif isinstance(known, list):
        yield from _unknown_in_list(value, known, path)
    elif not isinstance(value, dict):
        yield f"{path} is {value!r}, expected fields"
    else:
        for key, inner in value.items():
            at = f"{path}.{key}" if path else key
            below = known.get(key, known.get("*"))
            yield from [f"{at} was not looked up"] if below is None else unknown(inner, below, at)


def _unknown_in_list(value: Any, known: list[Any], path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path} is {value!r}, expected a list"
        return
    for number, inner in enumerate(value):
        yield from unknown(inner, known[0], f"{path}.{number}")


def kept() -> dict[str, Known]:
    """Return what is kept of the schemas."""
    told: dict[str, Known] = yaml.safe_load(FIELDS.read_text())
    return told


def keep(folder: Path) -> None:
    """Write what is kept anew."""
    FIELDS.write_text(written(fields(folder)))


def written(found: dict[str, Known]) -> str:
    """Return it as text, with what it is."""
    versions = sorted({"/".join(source.folder.split("/")[:3]) for source in SOURCES})
    head = "".join(f"#   {version}\n" for version in versions)
    return (
        "# Fields of operators' kinds that manifests use, with the types that the published schemas give\n"
        f"# them; made by test_published.py from\n{head}" + yaml.safe_dump(found, width=200)
    )
