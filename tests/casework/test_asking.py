"""Which questions go to which generalist."""

import numpy as np
import pytest

from tutelage.casework import asking
from tutelage.casework.asking import problems, questions
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Capabilities
from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.prompts import PromptSettings
from tutelage.prompts.settings import Kind

THRESHOLD, LITEMEDSAM = GeneralistSettings(name="threshold"), GeneralistSettings(name="litemedsam")


@pytest.mark.parametrize(
    ("kind", "generalist", "told"),
    [
        ("boxes", LITEMEDSAM, []),
        ("points", LITEMEDSAM, []),
        ("points", THRESHOLD, []),
        ("boxes+points", THRESHOLD, []),
        ("boxes+points", LITEMEDSAM, ["found boxes+points, but litemedsam takes boxes"]),
        ("mask", THRESHOLD, ["found mask, but threshold takes boxes and points"]),
        ("boxes+points", THRESHOLD.model_copy(update={"second_opinions": (LITEMEDSAM,)}), []),
    ],
)
def test_a_kind_that_the_first_generalist_cannot_answer_is_a_problem(
    kind: Kind, generalist: GeneralistSettings, told: list[str]
) -> None:
    found = list(problems(PromptSettings(kinds=kind), generalist))
    assert [where for where, _ in found] == ["prompts.kinds"] * len(told)
    assert all(what.startswith(words) for (_, what), words in zip(found, told, strict=True))


def test_clicks_that_may_not_become_boxes_are_a_problem_for_one_without_clicks() -> None:
    ((where, what),) = problems(PromptSettings(kinds="points", box_from_points=None), LITEMEDSAM)
    assert where == "prompts.kinds"
    assert "litemedsam takes boxes; choose" in what


def test_asking_on_wants_boxes_or_a_look_at_the_whole_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PromptSettings(kinds="points", propagate=True)
    assert list(problems(settings, GeneralistSettings(name="sammed3d"))) == []
    monkeypatch.setitem(CAPABILITIES, "threshold", Capabilities(points=True))
    ((where, what),) = problems(settings, THRESHOLD)
    assert where == "prompts.propagate"
    assert "threshold takes points, and answers ask on by boxes" in what


def test_everyone_gets_what_it_can_take() -> None:
    mask_DHW = np.zeros((2, 30, 30), np.uint8)
    mask_DHW[:, 5:20, 5:20] = 1
    takes = [Capabilities(boxes=True, points=True), Capabilities(boxes=True), Capabilities(points=True)]
    both, boxes, points = questions(mask_DHW, 2, PromptSettings(kinds="boxes+points"), 0, takes)
    assert all(prompt.box and prompt.points for prompt in both)
    assert all(prompt.box and not prompt.points for prompt in boxes)
    assert all(prompt.points and not prompt.box for prompt in points)
    assert [p.box for p in both] == [p.box for p in boxes]
    assert [p.points for p in both] == [p.points for p in points]


def drawn(kind: Kind, seed: int = 0, shift: int = 0) -> list[dict[str, object]]:
    """What is told of prompts on two structures, of which the second has nothing."""
    mask_DHW = np.zeros((2, 30, 30), np.uint8)
    mask_DHW[:, 5 + shift : 20 + shift, 5:20] = 1
    takes = [Capabilities(boxes=True, points=True, masks=True)]
    return asking.told(questions(mask_DHW, 3, PromptSettings(kinds=kind), seed, takes), 3)


def test_prompts_are_told_by_structure_and_kind() -> None:
    liver, spleen = drawn("boxes")
    assert liver["kinds"] == {"boxes": 2, "points": 0, "masks": 0}
    assert spleen["kinds"] == {"boxes": 0, "points": 0, "masks": 0}
    clicks = drawn("boxes+points")[0]["kinds"]
    assert isinstance(clicks, dict)
    assert clicks["points"] >= 2
    assert drawn("mask")[0]["kinds"] == {"boxes": 2, "points": 0, "masks": 2}


def test_the_digest_of_prompts_tells_other_prompts_from_the_same() -> None:
    assert drawn("boxes") == drawn("boxes")
    digests = [drawn("boxes")[0], drawn("boxes", shift=1)[0], drawn("points")[0], drawn("mask")[0]]
    digests += [drawn("points", seed=1)[0], drawn("mask", shift=1)[0]]
    assert len({told["digest"] for told in digests}) == len(digests)
