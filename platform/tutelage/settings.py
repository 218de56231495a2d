"""YAML in, frozen and checked settings out. Rooms own their settings classes.

One YAML is one complete run. It may name one other file with `extends:`, which it then
overrides key by key; there is no interpolation and no code. Every problem of a file is
found and told at once. This module knows no room and no key.
"""

import difflib
import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tutelage.errors import SettingsError


class Settings(BaseModel):
    """Base of every settings class: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def fingerprint(self) -> str:
        """Twelve hex digits that change whenever any value does."""
        return fingerprint(self.model_dump(mode="json"))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, complaint) of what only the world outside the file can tell."""
        yield from ()

    def to_yaml(self) -> str:
        """Every value, defaults included, as a file that loads to the same settings."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class File(Protocol):
    """A file that can be read and named, for example a Path."""

    @property
    def parent(self) -> Self:
        """The folder it lies in."""
        ...

    def __truediv__(self, name: str) -> Self: ...

    def read_text(self) -> str:
        """Return what is in it."""
        ...


S = TypeVar("S", bound=Settings)

_MERGE = "tag:yaml.org,2002:merge"
"""What `<<` is: YAML's own way to repeat keys, which may not be refused as a key written twice."""


def fingerprint(*parts: object) -> str:
    """Twelve hex digits of anything JSON can hold."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load(path: File, cls: type[S], overrides: Sequence[str] = (), elsewhere: bool = False) -> S:
    """Read one YAML file, apply `key.key=value` overrides, and check all of it.

    `elsewhere` leaves out what only the machine can tell that settings are for, as whether folders exist.

    Raises:
        SettingsError: one message that lists every problem with its path, what was
            found, what was expected and what to do.
    """
    values = written(path)
    for override in overrides:
        _apply(values, override)
    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        complaints = [_complaint(e, cls) for e in error.errors()]
    else:
        complaints = [] if elsewhere else [f"{where}: {what}" for where, what in settings.problems()]
        if not complaints:
            return settings
    listed = "\n".join(f"  {line}" for line in complaints)
    raise SettingsError(f"{path} is not usable, nothing was started:\n{listed}")


def written(path: File) -> dict[str, Any]:
    """Return what a file and the one that it extends say, unchecked.

    Raises:
        SettingsError: one of them is not there or no YAML.
    """
    values = _read(path)
    base = values.pop("extends", None)
    return values if base is None else _merged(_base(path, base), values)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise SettingsError(f"key {key!r} on line {line} is not a word; write name: value")
            if key in seen:
                raise SettingsError(f"key {key!r} is written twice, again on line {line}; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: File) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _StrictLoader)
    except FileNotFoundError:
        raise SettingsError(
            f"{path} does not exist; give the path of a YAML file, a relative one from where the command runs"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds {_shown(values)}, expected keys and values")
    return values


def _base(path: File, base: object) -> dict[str, Any]:
    if not isinstance(base, str):
        raise SettingsError(f"{path}: extends is {_shown(base)}, expected the name of a file beside it")
    values = _read(path.parent / base)
    if "extends" in values:
        raise SettingsError(
            f"{path} extends {base}, which extends {values['extends']}; only one level is allowed"
        )
    return values


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise SettingsError(f"override {override!r} is not key=value; write for example train.steps=200")
    *parents, last = dotted.split(".")
    for parent in parents:
        below = values.setdefault(parent, {})
        if not isinstance(below, dict):
            raise SettingsError(f"override {override!r}: {parent} is {_shown(below)} and has no keys")
        values = below
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"override {override!r}: {text!r} is not a YAML value; quote it") from None


# --- telling what is wrong ---------------------------------------------------------------


def _complaint(error: ErrorDetails, cls: type[Settings]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(top)"
    if error["type"] == "extra_forbidden":
        known = _known_keys(cls, error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {advice}"
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    expected = error["msg"][0].lower() + error["msg"][1:]
    return f"{where}: found {_shown(error['input'])}, {expected.removeprefix('value error, ')}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the settings class that a path leads to."""
    for part in loc:
        field = cls.model_fields.get(str(part))
        inner = next(_classes(field.annotation), None) if field else None
        if inner is None:
            continue
        cls = inner
    return sorted(cls.model_fields)


def _classes(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)
