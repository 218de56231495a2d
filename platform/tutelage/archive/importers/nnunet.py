"""nnU-Net raw: imagesTr, labelsTr and imagesTs, with a dataset.json of version 1 or 2.

Images end in _0000, one file a channel; cases of several channels are not supported and
said so. Neither are regions (a label that is a list) and the ignore label.
"""

import re
from collections.abc import Iterator

from tutelage.archive.formats import stem, suffix
from tutelage.archive.importers.base import Found, description, names_by_value
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
        labels = {stem(file.name): file for file in _visible(root / folder.replace("images", "labels"))}
        for case, files in _by_case(root / folder).items():
            label = labels.pop(case, None)
            if len(files) > 1 or case == "":
                yield from _unusable(case, files)
                continue
            yield Found(case, case, files[0].uri, label.uri if label else None, modality)
        for label in labels.values():
            yield Quarantined(
                label.uri, f"it has no image in {folder}, expected {stem(label.name)}_0000; add it"
            )


def _by_case(folder: Place) -> dict[str, list[Place]]:
    """Group files by case; those that are named otherwise come under an empty name."""
    grouped: dict[str, list[Place]] = {}
    for file in _visible(folder):
        match = _CHANNEL.match(stem(file.name)) if suffix(file.name) else None
        grouped.setdefault(match["case"] if match else "", []).append(file)
    return grouped


def _unusable(case: str, files: list[Place]) -> Iterator[Quarantined]:
    for file in files[: 1 if case else None]:
        if case:
            reason = f"case {case} has {len(files)} channel files, expected one; stack them into one file"
        else:
            reason = "it is not named like an image, expected CASE_0000 and a known suffix; rename it"
        yield Quarantined(file.uri, reason)


def _visible(folder: Place) -> list[Place]:
    return [file for file in folder.files() if not file.name.startswith(".")]
