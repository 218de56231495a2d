"""nnU-Net raw: imagesTr, labelsTr and imagesTs, with a dataset.json of version 1 or 2.

Images end in _0000, one file a channel; cases of several channels are not supported and
said so. Neither are regions (a label that is a list) and the ignore label.
"""

import re
from collections.abc import Iterator, Sequence

from tutelage.archive.formats import stem, suffix
from tutelage.archive.importers.base import Found, description, names_by_value, visible
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return the dataset's labels by value; version 1 has names by value, version 2 values by name."""
    source = root / "dataset.json"
    labels = description(root).get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ArchiveError(f"{source}: labels are {labels!r}, expected names and values; correct it")
    by_value = all(str(key).isdigit() for key in labels)
    value_of = {str(v): int(k) for k, v in labels.items()} if by_value else dict(labels)
    for name, value in value_of.items():
        if not isinstance(value, int) or name == "ignore":
            raise ArchiveError(
                f"{source}: label {name} is {value!r}, expected one value a structure; "
                "regions and the ignore label are not supported, write labels without them"
            )
    return names_by_value(value_of, source)


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List cases of imagesTr and imagesTs; those of imagesTr may have a label in labelsTr."""
    told = description(root)
    channels = told.get("channel_names", told.get("modality"))
    modality = str(channels.get("0", "")) if isinstance(channels, dict) else ""
    modality = modality or settings.modality
    for folder in ("imagesTr", "imagesTs"):
        images, labels = root / folder, root / folder.replace("images", "labels")
        name_of = {stem(name): name for name in visible(labels)}
        for case, names in _by_case(images).items():
            label = name_of.pop(case, None)
            if len(names) > 1 or case == "":
                yield from _unusable(case, names, images)
                continue
            yield Found(case, case, f"{images}/{names[0]}", f"{labels}/{label}" if label else None, modality)
        for case, label in name_of.items():
            yield Quarantined(
                f"{labels}/{label}", f"it has no image in {folder}, expected {case}_0000; add it"
            )


def _by_case(folder: Place) -> dict[str, tuple[str, ...]]:
    """Group files by case; those that are named otherwise come under an empty name."""
    grouped: dict[str, tuple[str, ...]] = {}
    odd = []
    for name in visible(folder):
        match = _CHANNEL.match(stem(name)) if suffix(name) else None
        if match:
            grouped[match["case"]] = (*grouped.get(match["case"], ()), name)
        else:
            odd.append(name)
    return grouped | ({"": tuple(odd)} if odd else {})


def _unusable(case: str, names: Sequence[str], folder: Place) -> Iterator[Quarantined]:
    for name in names[: 1 if case else None]:
        if case:
            reason = f"case {case} has {len(names)} channel files, expected one; stack them into one file"
        else:
            reason = "it is not named like an image, expected CASE_0000 and a known suffix; rename it"
        yield Quarantined(f"{folder}/{name}", reason)
