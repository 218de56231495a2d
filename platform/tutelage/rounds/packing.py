"""What a registered specialist is packed with, so that it segments a scan where nothing of ours is.

It decides what MLflow is told of it: who loads it, what that imports, what a call looks like, and an
example of one. It loads neither torch nor the specialist.
"""

import json
from typing import TYPE_CHECKING

import numpy as np

from tutelage.archive import formats
from tutelage.archive.addresses import address_of
from tutelage.geometry import Grid
from tutelage.settings import load
from tutelage.specialist.plan import Plan
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.tracking.packing import Packing

_LOADER = "tutelage.casework.packaged"

_PACKAGES = (
    "monai", "nibabel", "numpy", "pillow", "pyarrow", "pydantic", "pynrrd", "pyyaml", "scipy", "torch",
)  # fmt: skip
"""What prediction imports: of every format that is read, and of every place that scans may be in."""

_SIDES = (8, 16, 16)
"""Voxels of the example: it only has to be a scan."""


def packing(folder: Place) -> "Packing":
    """Return what a specialist's folder is packed with."""
    from tutelage.tracking.packing import Packing

    plan = load(folder / "plan.yaml", Plan)
    described = json.loads((folder / "specialist.json").read_text())
    return Packing(
        loader=_LOADER,
        packages=_PACKAGES,
        inputs={"image": "string"},
        outputs={"mask": "string", "reason": "string", "volumes_ml": "string"},
        parameters={"output": ("string", ""), "max_voxels": ("long", formats.MAX_VOXELS)},
        example={"image": _example(plan)},
        about={
            "specialist": described["digest"],
            "plan_sha256": described["plan_sha256"],
            "structures": list(plan.structures),
            "spacing_DHW_mm": list(plan.spacing),
            "channels": plan.channels_in,
            "tutelage": described["version"],
        },
    )


def _example(plan: Plan) -> str:
    """A ball in noise with as many channels as a scan has, as an address that holds it."""
    rng = np.random.default_rng(0)
    image_CDHW = rng.normal(0, 20, (plan.channels_in, *_SIDES))
    away_DHW = sum(((np.arange(n) - n / 2).reshape(shape) / n) ** 2 for n, shape in _axes())
    image_CDHW[:, away_DHW < 0.1] += 200
    grid = Grid.from_spacing(_SIDES, plan.spacing)
    return address_of(formats.image_bytes(image_CDHW.astype(np.int16), grid, ".nii.gz"))


def _axes() -> list[tuple[int, tuple[int, ...]]]:
    """Each side, and the shape in which it is spread over a volume."""
    return [(n, tuple(n if axis == own else 1 for axis in range(3))) for own, n in enumerate(_SIDES)]
