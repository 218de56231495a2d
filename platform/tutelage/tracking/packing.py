"""A folder as an MLflow model: what is put beside it so that it answers anywhere.

It decides the form: MLflow's generic flavor with a loader, this package's own code, exact versions of
what that needs, what goes in and comes out, and an example. Nothing is pickled, and the folder
lies in it as it was. It knows no specialist: who loads it, what it needs and what is told about it
come from the caller.
"""

import contextlib
import importlib.metadata
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.tracking.store import load_mlflow

_MODEL = "MLmodel"
"""What makes a folder an MLflow model."""

_CONTENT = "specialist"
"""What a packed folder is called; MLflow lays it into its own `data`."""

_CODE = Path(__file__).parents[1]
"""The whole package: it is small, and what prediction needs of it changes."""

_CALLED = ("mlflow-skinny", "pandas")
"""What loads any model, and the tables that it is called with."""


@dataclass(frozen=True)
class Packing:
    """What a folder is packed with. Types are MLflow's, by name."""

    loader: str
    """Module with MLflow's `_load_pyfunc`."""
    packages: Sequence[str]
    """What the loader imports; each is pinned to the version that is installed here."""
    inputs: Mapping[str, str]
    """Types by column."""
    outputs: Mapping[str, str]
    """Types by column."""
    parameters: Mapping[str, tuple[str, Any]]
    """Type and default of what a call may be told besides."""
    example: Mapping[str, str]
    """A row to try it with."""
    about: Mapping[str, Any]
    """Facts about what is packed, kept with the model."""


@contextlib.contextmanager
def packed(folder: Path, packing: Packing) -> Iterator[Path]:
    """Have a folder as an MLflow model, in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        named, model = Path(temporary) / _CONTENT, Path(temporary) / "model"
        named.symlink_to(folder.absolute())  # MLflow calls it what it is called here
        _save(named, packing, model)
        yield model


def content(fetched: Path) -> Path:
    """Return the folder that was packed, or the same if it never was."""
    return fetched / "data" / _CONTENT if (fetched / _MODEL).is_file() else fetched


def pinned(packages: Sequence[str]) -> list[str]:
    """Return requirements of exactly what is installed, but for a build's own mark, as +cpu."""
    versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]


def _save(folder: Path, packing: Packing, model: Path) -> None:
    mlflow = load_mlflow()
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    inputs, outputs = (
        Schema([ColSpec(kind, name) for name, kind in columns.items()])
        for columns in (packing.inputs, packing.outputs)
    )
    params = ParamSchema(
        [ParamSpec(name, kind, default) for name, (kind, default) in packing.parameters.items()]
    )
    with _quiet():
        mlflow.pyfunc.save_model(
            path=str(model),
            loader_module=packing.loader,
            data_path=str(folder),
            code_paths=[str(_CODE)],
            pip_requirements=pinned([*_CALLED, *packing.packages]),
            signature=ModelSignature(inputs, outputs, params),
            input_example=pd.DataFrame([dict(packing.example)]),
            metadata=dict(packing.about),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow wonders aloud about an environment that it has not made itself."""
    log = logging.getLogger("mlflow")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
