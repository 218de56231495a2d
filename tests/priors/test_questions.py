import json

import pytest

from tutelage.errors import SettingsError
from tutelage.priors.questions import Region, again, longest, question, schema, system, topics, words
from tutelage.priors.relations import KINDS
from tutelage.priors.settings import AskingSettings

REGION = Region(("liver", "spleen", "left kidney"), ("CT", "MR"))
ONE = AskingSettings(samples=1)


def test_there_is_a_question_for_each_structure_modality_and_view() -> None:
    settings = AskingSettings(views=("axial", "coronal"))
    keys = [topic.key for topic in topics(REGION, REGION.structures, settings)]
    assert len(keys) == len(set(keys)) == 3 * 2 * 2
    assert "left kidney|MR|coronal" in keys


def test_all_questions_share_their_system_prompt() -> None:
    asked = [question(topic, REGION, ONE) for topic in topics(REGION, REGION.structures, ONE)]
    assert {one.system for one in asked} == {system(REGION)}
    assert len({one.user for one in asked}) == len(asked)


def test_the_prompt_names_all_structures_and_relations() -> None:
    assert all(word in system(REGION) for word in (*REGION.structures, *KINDS))


def test_a_question_names_structure_modality_and_view() -> None:
    topic = topics(REGION, ["left kidney"], ONE)[1]
    assert all(word in question(topic, REGION, ONE).user for word in ("left kidney", "MR", "axial"))


def test_a_structure_the_archive_has_not_is_not_asked_about() -> None:
    with pytest.raises(SettingsError, match=r"no structure 'heart'.*it has liver, spleen, left kidney"):
        topics(REGION, ["heart"], ONE)


def test_only_other_structures_can_be_named() -> None:
    fields = schema(REGION.others("liver"), ONE)["properties"]
    assert fields["relations"]["items"]["properties"]["other"]["enum"] == ["spleen", "left kidney"]
    assert fields["confused_with"]["items"]["enum"] == ["spleen", "left kidney"]


def test_a_structure_alone_has_no_relations() -> None:
    assert {"relations", "confused_with"}.isdisjoint(schema((), ONE)["properties"])


def test_a_single_sample_is_not_left_to_chance() -> None:
    (topic, *_) = topics(REGION, ["liver"], ONE)
    assert question(topic, REGION, ONE).temperature == 0
    assert question(topic, REGION, AskingSettings(samples=2)).temperature > 0


def test_the_longest_answer_that_a_schema_allows_has_room() -> None:
    others = tuple(f"a structure with a long name {n}" for n in range(9))
    settings = AskingSettings(letters=40)
    name = max(others, key=len)
    answer = {
        "shape": "x" * 40,
        "location": "x" * 40,
        "appearance": "x" * 40,
        "smallest_ml": 19999.123456,
        "largest_ml": 19999.123456,
        "fewest_pieces": 40,
        "most_pieces": 40,
        "may_be_absent": False,
        "relations": [{"kind": "posterior-to", "other": name}] * 6,
        "confused_with": [name] * 3,
    }
    assert longest(schema(others, settings)) >= len(json.dumps(answer))


def test_texts_are_bounded_in_the_pattern() -> None:
    assert words(3, 20)["pattern"].endswith("{3,20}$")
    assert longest(words(3, 20)) == 22


def test_a_question_asked_again_carries_answer_and_complaint() -> None:
    first = question(topics(REGION, ["liver"], ONE)[0], REGION, ONE)
    second = again(first, '{"shape": 1}', ["shape is 1"])
    assert second.user.startswith(first.user)
    assert '{"shape": 1}' in second.user
    assert "- shape is 1" in second.user
    assert second.digest != first.digest
    assert (second.key, second.system) == (first.key, first.system)
