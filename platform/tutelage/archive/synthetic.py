"""A torso that never lived: labeled abdominal volumes made on the fly from a seed.

It decides where organs lie, how patients differ and how scanners show them. It knows
nothing about files, splits or learning; `phantom(seed, index)` is a pure function.

Frame: millimetres around the middle of the volume, x toward the patient's left, y toward
the back, z toward the head. Arrays are (D, H, W) = (z, y, x).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Field = tuple[Array, Array, Array]
"""x, y and z of every voxel in millimetres, each (D, H, W)."""

STRUCTURES = (
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "stomach",
    "gallbladder",
    "pancreas",
    "aorta",
    "vena_cava",
    "spine",
)
"""Label values 1 to 10, in this order."""

_ABSENT = {"gallbladder": 0.15, "spleen": 0.04, "kidney_right": 0.04, "kidney_left": 0.04}
"""How often surgery has removed an organ."""


@dataclass(frozen=True, slots=True)
class Style:
    """How one kind of scanner shows tissue: mean brightness in [0, 1] by tissue."""

    modality: str
    tissue: dict[str, float]
    bias: float
    """Strength of the smooth shading across the volume."""
    noise: float
    """Standard deviation of the noise."""
    scale: tuple[float, float]
    """Stored value of brightness 0 and 1."""


def _style(modality: str, bias: float, noise: float, scale: tuple[float, float], **tissue: float) -> Style:
    return Style(modality, tissue, bias, noise, scale)


STYLES: dict[str, Style] = {
    "ct": _style(
        "CT", 0.02, 0.035, (-200.0, 400.0),
        air=0.0, fat=0.16, muscle=0.38, lung=0.02, bowel=0.42,
        liver=0.54, spleen=0.60, kidney=0.68, stomach=0.40, gallbladder=0.30,
        pancreas=0.48, aorta=0.76, vena_cava=0.62, spine=0.90,
    ),
    "t1": _style(
        "MR", 0.22, 0.045, (0.0, 900.0),
        air=0.0, fat=0.90, muscle=0.34, lung=0.04, bowel=0.42,
        liver=0.58, spleen=0.40, kidney=0.44, stomach=0.26, gallbladder=0.18,
        pancreas=0.60, aorta=0.10, vena_cava=0.16, spine=0.52,
    ),
    "t2": _style(
        "MR", 0.22, 0.05, (0.0, 600.0),
        air=0.0, fat=0.14, muscle=0.24, lung=0.03, bowel=0.55,
        liver=0.40, spleen=0.62, kidney=0.70, stomach=0.80, gallbladder=0.98,
        pancreas=0.50, aorta=0.36, vena_cava=0.42, spine=0.46,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phantom:
    """One made-up patient."""

    image_DHW: NDArray[np.int16]
    label_DHW: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    """Millimetres along (D, H, W)."""
    modality: str
    style: str
    absent: tuple[str, ...] = field(default=())
    """Structures that this patient does not have."""


def phantom(
    seed: int,
    index: int,
    spacing: tuple[float, float, float] = (9.0, 3.0, 3.0),
    styles: Sequence[str] = tuple(STYLES),
    variety: float = 1.0,
) -> Phantom:
    """Make patient `index` of the archive that `seed` names.

    `variety` scales how much patients differ in shape and brightness.
    """
    rng = np.random.default_rng([seed, index])
    true_spacing = tuple(float(s * rng.uniform(0.9, 1.12)) for s in spacing)
    shape = tuple(round(extent / s) for extent, s in zip((225.0, 265.0, 355.0), true_spacing, strict=True))
    spacing_DHW = (true_spacing[0], true_spacing[1], true_spacing[1])
    shape_DHW = (shape[0], shape[1], round(355.0 / true_spacing[1]))
    absent = tuple(name for name, chance in _ABSENT.items() if rng.random() < chance)
    tissue_DHW, names = _anatomy(rng, _coordinates(rng, shape_DHW, spacing_DHW, variety), absent, variety)
    style = str(rng.choice(list(styles)))
    image_DHW = _image(rng, tissue_DHW, names, STYLES[style], spacing_DHW, variety)
    label_of = np.array([STRUCTURES.index(n) + 1 if n in STRUCTURES else 0 for n in names], np.uint8)
    return Phantom(image_DHW, label_of[tissue_DHW], spacing_DHW, STYLES[style].modality, style, absent)


# --- where organs lie ---------------------------------------------------------------------


def _coordinates(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    variety: float,
) -> Field:
    """Millimetre coordinates, bent by a smooth deformation and scaled to the patient's size."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    size = 1 + variety * rng.uniform(-0.1, 0.1)
    warped = []
    for axis in (x, y, z):
        bend = _smooth(rng, shape, spacing, reach_mm=45.0) * 7.0 * variety
        warped.append(((axis + bend) / size).astype(np.float32))
    return warped[0], warped[1], warped[2]


def _smooth(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    reach_mm: float,
) -> Array:
    """Smooth noise of unit variance whose correlation reaches `reach_mm`."""
    sigma = [reach_mm / s for s in spacing]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def _ellipsoid(at: Field, centre: Sequence[float], radii: Sequence[float], tilt: float = 0.0) -> Array:
    """Below 1 inside; `tilt` turns it in the x-z plane, in radians."""
    x, y, z = (a - c for a, c in zip(at, centre, strict=True))
    turned_x, turned_z = x * np.cos(tilt) + z * np.sin(tilt), z * np.cos(tilt) - x * np.sin(tilt)
    rx, ry, rz = radii
    return np.asarray((turned_x / rx) ** 2 + (y / ry) ** 2 + (turned_z / rz) ** 2, np.float32)


def _tube(at: Field, path: Sequence[Sequence[float]], radii: Sequence[float]) -> Array:
    """Below 1 inside a tube along `path`, whose radius runs through `radii`."""
    knots = np.linspace(0, 1, len(path))
    steps = np.linspace(0, 1, 28)
    points = [np.interp(steps, knots, [p[i] for p in path]) for i in range(3)]
    widths = np.interp(steps, np.linspace(0, 1, len(radii)), radii)
    x, y, z = at
    nearest = np.full(x.shape, np.inf, np.float32)
    for px, py, pz, width in zip(*points, widths, strict=True):
        nearest = np.minimum(nearest, ((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / width**2)
    return nearest.astype(np.float32)


def _anatomy(
    rng: np.random.Generator, at: Field, absent: Sequence[str], variety: float
) -> tuple[NDArray[np.uint8], list[str]]:
    """A map of tissues, as indices into the list of their names."""

    def near(*mm: float) -> list[float]:
        return [v + variety * rng.normal(0, 5.0) for v in mm]

    def about(*mm: float) -> list[float]:
        return [v * float(np.exp(variety * rng.normal(0, 0.11))) for v in mm]

    x, y, z = at
    torso = (np.abs(x) / 158) ** 2.4 + (np.abs(y) / 108) ** 2.4
    cavity = (np.abs(x) / 132) ** 2.4 + (np.abs(y - 4) / 84) ** 2.4
    dome = z - 78 + 0.0035 * (x + 20) ** 2 + 0.004 * y**2 + variety * rng.normal(0, 6)
    names = ["air"]
    tissue = np.zeros(x.shape, np.uint8)

    def paint(name: str, inside: NDArray[np.bool_], within: NDArray[np.bool_] | None = None) -> None:
        if name in absent:
            return
        if name not in names:
            names.append(name)
        tissue[inside if within is None else inside & within] = names.index(name)

    in_cavity = (cavity < 0.84) & (dome < -4)
    paint("fat", torso < 1)
    paint("muscle", (torso < 0.86) & (cavity >= 0.92))
    paint("lung", (cavity < 1) & (dome >= 0))
    for _ in range(9):
        loop = near(*(rng.uniform(low, high) for low, high in ((-85, 85), (-65, 10), (-115, -25))))
        paint("bowel", _ellipsoid(at, loop, about(20, 15, 18), rng.uniform(-1, 1)) < 1, in_cavity)
    painters: dict[str, Callable[[], NDArray[np.bool_]]] = {
        "stomach": lambda: _tube(
            at,
            [near(58, -5, 62), near(72, -22, 38), near(52, -48, 4), near(6, -52, -6)],
            about(30, 30, 24, 13),
        ) < 1,
        "pancreas": lambda: _tube(
            at, [near(-26, 2, -12), near(6, -8, 2), near(42, 8, 12), near(80, 24, 26)],
            about(17, 11, 10, 9),
        ) < 1,
        "liver": lambda: (
            np.minimum(
                _ellipsoid(at, near(-72, -2, 32), about(66, 74, 70), 0.25),
                _ellipsoid(at, near(-2, -44, 48), about(66, 30, 34), -0.2),
            ) < 1
        ),
        "gallbladder": lambda: _ellipsoid(at, near(-44, -52, -18), about(11, 12, 18), 0.3) < 1,
        "spleen": lambda: (
            (_ellipsoid(at, centre := near(98, 38, 40), about(27, 46, 48), -0.2) < 1)
            & (_ellipsoid(at, [centre[0] - 34, centre[1] - 6, centre[2]], about(20, 26, 26)) > 1)
        ),
        "kidney_right": lambda: _kidney(at, near(-64, 52, -34), about(27, 28, 52), side=-1),
        "kidney_left": lambda: _kidney(at, near(64, 52, -22), about(27, 28, 52), side=1),
        "vena_cava": lambda: _tube(
            at, [near(-20, 26, -125), near(-22, 24, 0), near(-24, 16, 95)], about(12, 13),
        ) < 1,
        "aorta": lambda: _tube(
            at, [near(10, 32, -125), near(13, 30, 0), near(12, 38, 125)], about(10, 12),
        ) < 1,
    }  # fmt: skip
    for name, draw in painters.items():
        paint(name, draw(), in_cavity)
    spine = _tube(at, [near(0, 66, -130), near(0, 62, 0), near(0, 70, 130)], about(21, 22)) < 1
    process = (np.abs(x) < 5) & (y > 66) & (y < 92)
    paint("spine", (spine | process), torso < 0.86)
    return tissue, names


def _kidney(at: Field, centre: Sequence[float], radii: Sequence[float], side: int) -> NDArray[np.bool_]:
    """A bean: an ellipsoid with a notch on the side of the spine."""
    notch = [centre[0] - side * 24, centre[1] - 6, centre[2]]
    bean = (_ellipsoid(at, centre, radii, side * 0.2) < 1) & (_ellipsoid(at, notch, (12, 14, 16)) > 1)
    return np.asarray(bean)


# --- how scanners show them -----------------------------------------------------------------


def _image(
    rng: np.random.Generator,
    tissue_DHW: NDArray[np.uint8],
    names: Sequence[str],
    style: Style,
    spacing: tuple[float, float, float],
    variety: float,
) -> NDArray[np.int16]:
    """Brightness by tissue, texture, partial volume, shading and noise, as stored values."""
    shape = tissue_DHW.shape
    assert len(shape) == 3
    means = [float(np.clip(style.tissue[_tissue(n)] + variety * rng.normal(0, 0.05), 0, 1.1)) for n in names]
    image = np.asarray(means, np.float32)[tissue_DHW]
    fine, coarse = (_smooth(rng, shape, spacing, reach_mm=mm) for mm in (7.0, 25.0))
    image *= 1 + 0.06 * fine + 0.05 * coarse
    image = _lesions(rng, image, tissue_DHW, list(names), spacing)
    image = ndimage.gaussian_filter(image, [0.35, 0.55, 0.55])
    image *= np.exp(style.bias * _smooth(rng, shape, spacing, reach_mm=90.0))
    noise = style.noise * rng.uniform(0.6, 1.4)
    noisy = np.hypot(image + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
    low, high = style.scale
    return np.asarray(np.clip(low + (high - low) * noisy, -1024, 3000), np.int16)


def _tissue(name: str) -> str:
    return "kidney" if name.startswith("kidney") else name


def _lesions(
    rng: np.random.Generator,
    image: Array,
    tissue_DHW: NDArray[np.uint8],
    names: list[str],
    spacing: tuple[float, float, float],
) -> Array:
    """Round spots of another brightness in liver and kidneys; they still count as the organ."""
    for name, chance in (("liver", 0.5), ("kidney_left", 0.25), ("kidney_right", 0.25)):
        if name not in names or rng.random() > chance:
            continue
        inside = np.argwhere(tissue_DHW == names.index(name))
        if len(inside) == 0:
            continue
        for _ in range(int(rng.integers(1, 4))):
            centre = inside[rng.integers(len(inside))]
            radius = rng.uniform(7, 15)
            axes = [(np.arange(n) - c) * s for n, c, s in zip(image.shape, centre, spacing, strict=True)]
            z, y, x = np.meshgrid(*axes, indexing="ij")
            spot = (x**2 + y**2 + z**2 < radius**2) & (tissue_DHW == names.index(name))
            image[spot] *= rng.choice([0.55, 1.4])
    return image
