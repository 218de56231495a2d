"""Following a structure from slice to slice, starting from an answer instead of a prior.

An answer whose prompt carries `propagate` asks on by itself: the box of its mask, grown a
little, is put to the slices on both sides along the axis, their masks' boxes to the next,
until the mask vanishes, its area jumps or grows far beyond where it began, the generalist
doubts it, or a slice has a prompt of its own for the structure. An answer that ends the way
is not believed. It decides what is asked next, never how.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.geometry import Box
from tutelage.records import Answer, Prompt

MARGIN = 0.1
"""How far every side of a mask's box moves out on the next slice, as a share of its size."""

SMALLEST_PIXELS = 6
"""A mask with fewer pixels has vanished."""

LARGEST_JUMP = 2.0
"""How many times as large or as small the next mask may be."""

LARGEST_GROWTH = 4.0
"""How many times as large as the first mask any mask may be."""

LEAST_IOU = 0.7
"""Below this the generalist doubts its own mask. On two phantoms with LiteMedSAM 0.5 finds as much (mean Dice
of 19 structures from the box of one slice: 0.75; that slice alone: 0.19), but goes on beyond more ends."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How a prompt came about."""

    step: int
    """Up or down the axis: 1 or -1."""
    pixels: int
    """Of the mask before."""
    first: int
    """Pixels of the first mask."""


class Propagation:
    """Prompts that follow from answers about one volume."""

    def __init__(self, depths: Sequence[int], prompts: Sequence[Prompt]) -> None:
        """Start from the prompts that are given; `depths` counts the slices along each axis."""
        self._depths = depths
        self._asked = {_place(prompt) for prompt in prompts}
        self._ways: dict[Prompt, tuple[_Way, ...]] = {}
        self._next: dict[Prompt, tuple[_Way, ...]] = {}

    def believes(self, answer: Answer) -> bool:
        """Whether an answer counts; if it does and asks on, what it asks is noted."""
        prompt = answer.prompt
        before = self._ways.get(prompt)
        if before is None and not prompt.propagate:
            return True
        mask_HW = answer.logits_HW > 0
        pixels = int(mask_HW.sum())
        sure = pixels >= SMALLEST_PIXELS and answer.predicted_iou >= LEAST_IOU
        ways = [_Way(step, pixels, pixels) for step in (1, -1)]
        if before is not None:
            ways = [_Way(way.step, pixels, way.first) for way in before if sure and _goes_on(way, pixels)]
        box = Box.around(mask_HW) if sure else None
        if box is not None:
            for way in ways:
                self._note(prompt, box.grown(MARGIN).clipped(mask_HW.shape), way)
        return before is None or bool(ways)

    def onward(self) -> list[Prompt]:
        """Return what is to be asked next; nothing once every way has ended."""
        self._ways, self._next = self._next, {}
        self._asked |= {_place(prompt) for prompt in self._ways}
        return list(self._ways)

    def _note(self, prompt: Prompt, box: Box, way: _Way) -> None:
        index = prompt.index + way.step
        following = Prompt(prompt.structure, index, box, variant=prompt.variant, axis=prompt.axis)
        if 0 <= index < self._depths[prompt.axis] and _place(following) not in self._asked:
            self._next[following] = (*self._next.get(following, ()), way)


def _goes_on(way: _Way, pixels: int) -> bool:
    jump = max(pixels / way.pixels, way.pixels / pixels)
    return jump <= LARGEST_JUMP and pixels <= LARGEST_GROWTH * way.first


def _place(prompt: Prompt) -> tuple[int, int, int]:
    return prompt.structure, prompt.axis, prompt.index
