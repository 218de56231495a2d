import json
from typing import Any

import pytest

from tutelage.priors.answers import Said, joined, read
from tutelage.priors.base import Finish, Reply
from tutelage.records import Relation

OTHERS = ("spleen", "stomach", "spine")
SAID: dict[str, Any] = {
    "shape": "a large wedge",
    "location": "under the right half of the diaphragm",
    "appearance": "homogeneous and bright",
    "smallest_ml": 900,
    "largest_ml": 2100,
    "fewest_pieces": 1,
    "most_pieces": 1,
    "may_be_absent": False,
    "relations": [{"kind": "right-of", "other": "spleen"}, {"kind": "touching", "other": "stomach"}],
    "confused_with": ["spleen"],
}


def _reply(text: str, finish: Finish = Finish.STOP) -> Reply:
    return Reply("liver|CT|axial", 0, text, 99, finish)


def _wrong(**changed: object) -> tuple[Said | None, str]:
    found = read(_reply(json.dumps(SAID | changed)), "liver", OTHERS)
    return found.said, "; ".join(found.wrong)


def _said(**changed: object) -> Said:
    return Said.model_validate(SAID | changed)


def test_a_good_answer_is_taken_whole() -> None:
    assert _wrong() == (_said(), "")


def test_a_fence_around_json_is_forgiven() -> None:
    assert read(_reply(f"```json\n{json.dumps(SAID)}\n```"), "liver", OTHERS).said == _said()


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (_reply("The liver is large."), "is not JSON"),
        (_reply(json.dumps(SAID)[:100]), "is not JSON"),
        (_reply(json.dumps(SAID)[:100], Finish.LENGTH), "was cut after 99 tokens"),
        (_reply("  "), "is empty"),
        (_reply("[1, 2]"), "expected a JSON object"),
        (Reply("liver", 0, finish=Finish.ERROR, error="the server is gone"), "the server is gone"),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(reply: Reply, told: str) -> None:
    found = read(reply, "liver", OTHERS)
    assert found.said is None
    assert told in found.wrong[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"largest_ml": "big"}, "largest_ml is 'big'"),
        ({"largest_ml": 1e9}, "largest_ml is 1000000000.0"),
        ({"shape": ""}, "shape is ''"),
        ({"colour": "red"}, "colour is 'red'"),
        ({"relations": [{"kind": "left-of"}]}, "relations.0.other is missing"),
    ],
)
def test_an_answer_that_cannot_be_used_at_all(changed: dict[str, object], told: str) -> None:
    said, wrong = _wrong(**changed)
    assert said is None
    assert told in wrong


@pytest.mark.parametrize(
    ("changed", "told", "claim"),
    [
        ({"smallest_ml": 3000}, "are 3000 and 2100; a range runs from low to high", "volume_ml"),
        ({"smallest_ml": 0, "largest_ml": 0}, "a structure has a volume", "volume_ml"),
        ({"fewest_pieces": 5}, "fewest_pieces and most_pieces are 5 and 1", "components"),
    ],
)
def test_a_wrong_range_is_told_and_struck_and_the_rest_is_taken(
    changed: dict[str, object], told: str, claim: str
) -> None:
    said, wrong = _wrong(**changed)
    assert told in wrong
    assert said is not None
    prior = joined("liver", {"CT axial": [said]}, 1, "a model")
    assert told in prior.struck[claim]
    assert prior.volume_ml[0] <= prior.volume_ml[1]
    assert prior.components[0] <= prior.components[1]
    assert prior.text["shape"] == "a large wedge"


def test_a_wrong_range_does_not_count_beside_good_ones() -> None:
    samples = [_said(smallest_ml=3000), _said(smallest_ml=800), _said(fewest_pieces=9)]
    prior = joined("liver", {"CT axial": samples}, 3, "a model")
    assert (prior.volume_ml, prior.components, prior.struck) == ((850, 2100), (1, 1), {})


@pytest.mark.parametrize(
    ("relation", "told"),
    [
        (
            {"kind": "left-of", "other": "heart"},
            "unknown structure 'heart'; known are spleen, stomach, spine",
        ),
        ({"kind": "beside", "other": "spine"}, "unknown relation 'beside'"),
        ({"kind": "left-of", "other": "liver"}, "related to itself"),
    ],
)
def test_a_wrong_relation_is_taken_out_and_told(relation: dict[str, str], told: str) -> None:
    said, wrong = _wrong(relations=[relation, {"kind": "touching", "other": "stomach"}])
    assert told in wrong
    assert said is not None
    assert [(r.kind, r.other) for r in said.relations] == [("touching", "stomach")]


def test_two_sides_of_the_same_structure_cannot_both_be_true() -> None:
    said, wrong = _wrong(
        relations=[{"kind": kind, "other": "spine"} for kind in ("left-of", "right-of", "touching")]
    )
    assert "cannot all be true" in wrong
    assert said is not None
    assert [r.kind for r in said.relations] == ["touching"]


def test_a_relation_said_twice_counts_once() -> None:
    said, wrong = _wrong(relations=[{"kind": "touching", "other": "stomach"}] * 4)
    assert wrong == ""
    assert said is not None
    assert len(said.relations) == 1


def test_samples_are_joined_into_what_most_of_them_say() -> None:
    left = [{"kind": "left-of", "other": "spine"}]
    samples = [
        _said(smallest_ml=800, largest_ml=2000),
        _said(smallest_ml=1000, largest_ml=2200),
        _said(
            smallest_ml=10, largest_ml=20, may_be_absent=True, relations=left, confused_with=[], most_pieces=2
        ),
    ]
    prior = joined("liver", {"CT axial": samples}, 3, "a model")
    assert prior.volume_ml == (800, 2000)
    assert prior.components == (1, 1)
    assert prior.may_be_absent is False
    assert prior.confused_with == ("spleen",)
    assert prior.relations == (
        Relation("right-of", "spleen", 2 / 3),
        Relation("touching", "stomach", 2 / 3),
    )
    assert prior.confidence == {
        "volume_ml": 2 / 3, "components": 2 / 3, "may_be_absent": 2 / 3, "confused_with": 2 / 3
    }  # fmt: skip


def test_samples_that_could_not_be_used_lower_the_confidence() -> None:
    prior = joined("liver", {"CT axial": [_said()]}, 4, "a model")
    assert prior.confidence["volume_ml"] == 0.25
    assert prior.relations[0].confidence == 0.25


def test_one_sample_has_nothing_to_agree_with() -> None:
    prior = joined("liver", {"CT axial": [_said()]}, 1, "a model")
    assert prior.confidence == {}
    assert prior.relations[0].confidence == 1


def test_texts_are_those_of_the_sample_that_agrees_most() -> None:
    alone = _said(
        shape="a small sphere", relations=[{"kind": "left-of", "other": "spine"}], smallest_ml=1, largest_ml=2
    )
    prior = joined("liver", {"CT axial": [alone, _said(), _said()]}, 3, "a model")
    assert prior.text["shape"] == "a large wedge"


def test_each_modality_has_an_appearance_of_its_own() -> None:
    several = {"CT axial": [_said()], "MR axial": [_said(appearance="dark on T2")]}
    prior = joined("liver", several, 2, "a model")
    assert prior.text["appearance"] == "homogeneous and bright"
    assert prior.text["appearance, MR axial"] == "dark on T2"
