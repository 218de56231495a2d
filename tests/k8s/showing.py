"""What is applied as a person reads it, so that a change of k8s/ is seen where it takes effect.

It shows every field of every object of every build, and each thing once: what is the same as something
further up is said to be, and texts that are files of k8s/ are named. It does not say what should be there.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.builds import BUILDS, K8S, ROOT, build

_LONG = 150
"""Characters of JSON from which on something is not shown twice."""

_SAME = "same as "
_FILE = "content of "


_STEP = " > "


def shown() -> str:
    """Return all builds as text."""
    files = {path.read_text(): str(path.relative_to(ROOT)) for path in _texts()}
    seen: dict[str, str] = {}
    told: dict[str, Any] = {}
    for name in BUILDS:
        objects = {f"{each['kind']} {each['metadata']['name']}": each for each in build(name)}
        told[name] = _short(objects, name, seen, files)
    text = yaml.safe_dump(told, width=200, sort_keys=False)
    return f"# What k8s/ makes; TUTELAGE_SNAPSHOT=1 writes it anew.\n{text}"


def _texts() -> list[Path]:
    return [path for kind in ("yaml", "json") for path in sorted(K8S.rglob(f"*.{kind}"))]


def _short(value: Any, path: str, seen: dict[str, str], files: dict[str, str]) -> Any:
    """Return a value with what was shown before left out; what is shown now is remembered."""
    if isinstance(value, str) and value in files:
        return _FILE + files[value]
    text = json.dumps(value, sort_keys=True)
    if len(text) > _LONG:
        if text in seen:
            return _SAME + seen[text]
        seen[text] = path
    if isinstance(value, dict):
        return {key: _short(value[key], f"{path}{_STEP}{key}", seen, files) for key in sorted(value)}
    if isinstance(value, list):
        return [_short(inner, f"{path}{_STEP}{number}", seen, files) for number, inner in enumerate(value)]
    return value


def whole(value: Any, told: Any) -> Any:
    """Return a value with all that was left out, by the text of which it is a part."""
    if isinstance(value, str) and value.startswith(_FILE):
        return (ROOT / value.removeprefix(_FILE)).read_text()
    if isinstance(value, str) and value.startswith(_SAME):
        at = told
        for step in value.removeprefix(_SAME).split(_STEP):
            at = at[int(step)] if isinstance(at, list) else at[step]
        return whole(at, told)
    if isinstance(value, dict):
        return {key: whole(inner, told) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner, told) for inner in value]
    return value
