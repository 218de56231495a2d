"""A volume in, a mask with findings out, by one specialist that stays loaded. Knows no HTTP and no Ray.

Volumes that come at the same time share the network window by window, so a small one is not held
up by a large one. What a person should look at again is decided as curation decides what training
may believe: by what is known of anatomy, where the model brings that along, and by how sure the
specialist is.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.archive.formats import Volume
from tutelage.curation.examining import Examined, examine
from tutelage.curation.settings import CurationSettings
from tutelage.errors import TrainingError
from tutelage.records import Prior
from tutelage.specialist.looking import AT_ONCE, Looking, Stop, never
from tutelage.specialist.predictor import Predictor, Progress

LOW_CONFIDENCE = 0.75
"""Mean probability inside a mask below which a person should look. Of 108 masks of phantoms, by a specialist
of four labels, two thirds of those with a Dice below 0.7 had less, and one in sixteen of those above 0.8:
small structures, which are nearly all border, and a border is half in and half out."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Finding:
    """One structure of one mask, absent ones included."""

    structure: str
    value: int
    """Label value."""
    voxels: int
    volume_ml: float
    components: int
    """Separate pieces, crumbs not counted."""
    confidence: float | None
    """Mean probability inside the mask; None where there is none."""
    needs_review: bool
    reasons: tuple[str, ...]
    """Why a person should look; empty if nothing that is known speaks for it."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """The answer to one volume, and who gave it."""

    mask_DHW: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    """One a structure, by label value."""
    model: str
    version: str
    digest: str
    """Of the specialist's weights."""
    seconds: Mapping[str, float]
    """By stage: prepare, network, judge."""


@dataclass(frozen=True)
class Known:
    """What is known of a model's patients besides their images."""

    priors: Mapping[str, Prior] = field(default_factory=dict)
    """By structure; empty where the model comes without any."""
    curation: CurationSettings = field(default_factory=CurationSettings)
    """How much of it is believed."""


class Segmenter:
    """A loaded specialist for any number of threads."""

    def __init__(
        self,
        predictor: Predictor,
        name: str = "",
        version: str = "",
        known: Known | None = None,
        told: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """`told` is what else `describe` says of the model."""
        self.name, self.version = name, version
        self.digest = predictor.digest
        self.structures = predictor.structures
        self._predictor, self._known, self._told = predictor, known or Known(), told
        self._looking = Looking(predictor.logits, AT_ONCE[predictor.device.type])

    def __call__(self, volume: Volume, stop: Stop = never, progress: Progress | None = None) -> Segmented:
        """Segment a volume; `stop` is asked between windows, `progress` told of them.

        Raises:
            ArchiveError: the specialist learned from images with another number of channels.
            StoppedError: `stop` said so.
            TrainingError: the specialist's probabilities are no numbers.
        """
        started = time.perf_counter()
        prepared_CDHW = self._predictor.prepared(volume.image_CDHW, volume.grid)
        seen = time.perf_counter()
        answer = self._predictor.answer(
            prepared_CDHW, volume.grid, lambda windows: self._looking(windows, stop), stop, progress
        )
        if not answer.finite:
            raise TrainingError(
                f"specialist {self.digest} found probabilities that are no numbers, expected 0 to 1; "
                "serve another version of it"
            )
        answered = time.perf_counter()
        curation, priors = self._known.curation, self._known.priors
        examined = examine(answer.mask_DHW, volume.grid, self.structures, priors, curation)
        findings = tuple(
            _finding(name, value, examined[name], answer.confidence[value])
            for value, name in enumerate(self.structures, start=1)
        )
        seconds = {
            "prepare": seen - started,
            "network": answered - seen,
            "judge": time.perf_counter() - answered,
        }
        return Segmented(answer.mask_DHW, findings, self.name, self.version, self.digest, seconds)

    @property
    def windows_seen(self) -> int:
        """Windows that were looked at so far."""
        return self._looking.windows

    @property
    def batches(self) -> int:
        """How often the network was run for them; their mean number is what it looked at together."""
        return self._looking.batches

    def describe(self) -> dict[str, Any]:
        """Say which specialist answers, what its label values mean, and what is known of anatomy."""
        plan = self._predictor.plan
        return {
            "name": self.name,
            "version": self.version,
            "specialist": self.digest,
            "structures": [
                {"value": value, "structure": name} for value, name in enumerate(self.structures, start=1)
            ],
            "spacing_DHW_mm": list(plan.spacing),
            "channels": plan.channels_in,
            "anatomy": [name for name in self.structures if name in self._known.priors],
            **self._told,
        }


def _finding(name: str, value: int, seen: Examined, confidence: float | None) -> Finding:
    reasons = list(seen.reasons)
    if confidence is not None and confidence < LOW_CONFIDENCE:
        reasons.append(
            f"the specialist is unsure of {name}: mean probability {confidence:.2f} < {LOW_CONFIDENCE:.2f}"
        )
    return Finding(
        name,
        value,
        seen.voxels,
        round(seen.volume_ml, 4),
        seen.components,
        None if confidence is None else round(confidence, 4),
        bool(reasons),
        tuple(reasons),
    )
