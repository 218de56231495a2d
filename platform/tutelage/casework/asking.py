"""Which questions go to which generalist, and whether there is any it can answer.

The one place where settings of prompts meet settings of generalists. Loads no torch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tutelage.generalists.base import Capabilities
from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.generalists.settings import GeneralistSettings
from tutelage.prompts.drawing import Drawn, Takes, draw, nearest, suited
from tutelage.prompts.pieces import Labels
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Prompt


def problems(prompts: PromptSettings, generalist: GeneralistSettings) -> Iterator[tuple[str, str]]:
    """Complain about prompts that the generalist, or one that gives a second opinion, cannot answer.

    The first must be able to answer exactly what is set; the others get what they can take.
    """
    for number, one in enumerate((generalist, *generalist.second_opinions)):
        takes = CAPABILITIES[one.name]
        if (suited if number == 0 else nearest)(prompts, _taken(takes)) is None:
            yield (
                "prompts.kinds",
                f"found {prompts.kinds}, but {one.name} takes {_listed(takes)}; choose what it takes, or "
                "another generalist",
            )
        if prompts.propagate and not (takes.boxes or takes.volumes):
            yield (
                "prompts.propagate",
                f"found true, but {one.name} takes {_listed(takes)}, and answers ask on by boxes; set it "
                "to false, or choose another generalist",
            )


def questions(
    mask_DHW: Labels,
    classes: int,
    prompts: PromptSettings,
    seed: int,
    generalists: Sequence[Capabilities],
) -> list[list[Prompt]]:
    """Draw for each generalist the questions that it can take, on a mask that is clean."""
    kinds = [nearest(prompts, _taken(takes)) for takes in generalists]
    drawn: dict[Drawn, list[Prompt]] = {
        kind: draw(mask_DHW, classes, prompts, seed, kind) for kind in kinds if kind is not None
    }
    return [[] if kind is None else drawn[kind] for kind in kinds]


def told(questions: Sequence[Sequence[Prompt]], classes: int) -> list[dict[str, Any]]:
    """Return for each structure how many prompts of which kind were put to generalists, and their digest.

    Prompts themselves are not kept: they are drawn anew from the specialist's mask whenever
    somebody wants to see them, and the digest tells whether they are the same.
    """
    kinds = [{"boxes": 0, "points": 0, "masks": 0} for _ in range(1, classes)]
    digests = [hashlib.sha256() for _ in range(1, classes)]
    for member, prompts in enumerate(questions):
        for prompt in prompts:
            index, points = prompt.structure - 1, [(point.at, point.positive) for point in prompt.points]
            kinds[index]["boxes"] += prompt.box is not None
            kinds[index]["points"] += len(points)
            kinds[index]["masks"] += prompt.logits_HW is not None
            box = None if prompt.box is None else (prompt.box.start, prompt.box.stop)
            place = (member, prompt.axis, prompt.index, prompt.variant, prompt.propagate)
            digests[index].update(json.dumps([*place, box, points], default=float).encode())
            if prompt.logits_HW is not None:
                digests[index].update(prompt.logits_HW.tobytes())
    both = zip(kinds, digests, strict=True)
    return [{"kinds": kind, "digest": digest.hexdigest()[:16]} for kind, digest in both]


def _taken(takes: Capabilities) -> Takes:
    return Takes(takes.boxes, takes.points, takes.masks)


def _listed(takes: Capabilities) -> str:
    return " and ".join(kind for kind in ("boxes", "points", "masks") if getattr(takes, kind)) or "nothing"
