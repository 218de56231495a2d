"""Asking with a model that says what it is told to, and counts."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import PriorsError, SettingsError
from tutelage.priors import shelf
from tutelage.priors.asking import Interview, interview
from tutelage.priors.base import Finish, Question, Reply
from tutelage.priors.questions import Region
from tutelage.priors.recorded import Replies
from tutelage.priors.settings import AskingSettings
from tutelage.records import Relation
from tutelage.storage import Place

REGION = Region(("liver", "spleen", "spine"), ("CT",))
ONCE = AskingSettings(samples=1, attempts=2)
SAID: dict[str, Any] = {
    "shape": "a large wedge",
    "location": "in the right upper abdomen",
    "appearance": "bright and even",
    "smallest_ml": 100,
    "largest_ml": 200,
    "fewest_pieces": 1,
    "most_pieces": 1,
    "may_be_absent": False,
    "relations": [],
    "confused_with": [],
}

Says = Callable[[str, int, str], object]
"""Structure, how often it was asked about before, and the prompt -> an answer, a text, or an error."""


class Model:
    """Answers from a function."""

    name, digest = "scripted", "0123456789ab"

    def __init__(self, says: Says) -> None:
        self._says = says
        self.asked: list[Question] = []

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        for question in reversed(list(questions)):
            structure = question.key.partition("|")[0]
            before = sum(one.key == question.key for one in self.asked)
            self.asked.append(question)
            found = self._says(structure, before, question.user)
            if isinstance(found, Exception):
                yield Reply(question.key, 0, finish=Finish.ERROR, error=str(found))
            else:
                text = found if isinstance(found, str) else json.dumps(found)
                yield Reply(question.key, 0, text, 10)

    def close(self) -> None:
        """Nothing is held."""


def _good(structure: str, before: int, prompt: str) -> object:
    return SAID


def _related(structure: str, kind: str, other: str) -> Says:
    """One structure says one thing, in every attempt; the others say nothing about relations."""
    relations = [{"kind": kind, "other": other}]
    return lambda asked, before, prompt: SAID | {"relations": relations if asked == structure else []}


def _ask(
    model: Model, folder: Path, settings: AskingSettings = ONCE, before: shelf.Shelf | None = None
) -> Interview:
    return interview(
        model, REGION, REGION.structures, settings, Replies(Place.of(folder)), before, "2026-11-21"
    )


def test_every_structure_gets_a_prior_and_its_origin(tmp_path: Path) -> None:
    found = _ask(Model(_good), tmp_path)
    assert tuple(found.shelf.priors) == REGION.structures
    assert found.refused == ()
    asked = found.shelf.asked["liver"]
    assert (asked.model, asked.weights, asked.date) == ("scripted", "0123456789ab", "2026-11-21")
    assert asked.claims == shelf.claims_of(found.shelf.priors["liver"])
    assert asked.sampling["samples"] == 1


def test_an_unusable_answer_is_asked_for_again_with_the_complaint(tmp_path: Path) -> None:
    model = Model(lambda structure, before, prompt: "Well, it depends." if not before else SAID)
    found = _ask(model, tmp_path)
    assert found.refused == ()
    assert found.again == 3
    assert all(
        "is not JSON" in question.user and "it depends" in question.user for question in model.asked[3:]
    )


def test_what_stays_unusable_is_refused_with_its_reason_and_the_rest_is_taken(tmp_path: Path) -> None:
    wrong = SAID | {"smallest_ml": "few"}
    model = Model(lambda structure, before, prompt: wrong if structure == "spleen" else SAID)
    found = _ask(model, tmp_path)
    assert set(found.shelf.priors) == {"liver", "spine"}
    (refused,) = found.refused
    assert (refused.structure, refused.claim) == ("spleen", "")
    assert "smallest_ml is 'few'" in refused.reason
    assert sum(question.key.startswith("spleen") for question in model.asked) == 1 + ONCE.attempts


def test_a_range_that_stays_reversed_is_struck_and_told(tmp_path: Path) -> None:
    wrong = SAID | {"smallest_ml": 300}
    found = _ask(Model(lambda structure, before, prompt: wrong if structure == "spleen" else SAID), tmp_path)
    assert "from low to high" in found.shelf.priors["spleen"].struck["volume_ml"]
    (refused,) = found.refused
    assert (refused.structure, refused.claim) == ("spleen", "some claims")


def test_two_structures_that_contradict_each_other_are_asked_again(tmp_path: Path) -> None:
    def says(structure: str, before: int, prompt: str) -> object:
        kind = "left-of" if structure == "liver" and not before else "right-of"
        other = {"liver": "spleen", "spleen": "spine", "spine": "liver"}[structure]
        relations = {
            "liver": [(kind, "spleen")],
            "spleen": [("left-of", "liver")],
            "spine": [("touching", other)],
        }
        return SAID | {"relations": [{"kind": k, "other": o} for k, o in relations[structure]]}

    model = Model(says)
    found = _ask(model, tmp_path)
    assert found.refused == ()
    asked_again = {question.key.partition("|")[0] for question in model.asked[3:]}
    assert asked_again == {"liver", "spleen"}
    assert '"liver left-of spleen"' in model.asked[-1].user
    assert [relation.kind for relation in found.shelf.priors["liver"].relations] == ["right-of"]


def test_a_contradiction_that_stays_costs_the_relations_and_nothing_else(tmp_path: Path) -> None:
    def says(structure: str, before: int, prompt: str) -> object:
        other = {"liver": "spleen", "spleen": "liver", "spine": "liver"}[structure]
        return SAID | {
            "relations": [{"kind": "touching" if structure == "spine" else "left-of", "other": other}]
        }

    model = Model(says)
    found = _ask(model, tmp_path)
    assert {(refused.structure, refused.claim) for refused in found.refused} == {
        ("liver", "left-of spleen"), ("spleen", "left-of liver")
    }  # fmt: skip
    assert found.shelf.priors["liver"].relations == ()
    assert found.shelf.priors["spine"].relations[0].kind == "touching"
    assert found.shelf.priors["liver"].volume_ml == (100, 200)
    assert len(model.asked) == 3 + 2 * ONCE.attempts


def test_an_unknown_structure_costs_the_relation_that_names_it(tmp_path: Path) -> None:
    found = _ask(Model(_related("liver", "left-of", "heart")), tmp_path)
    assert found.shelf.priors["liver"].relations == ()
    (refused,) = found.refused
    assert "unknown structure 'heart'" in refused.reason


def test_answers_are_not_asked_for_twice(tmp_path: Path) -> None:
    first = _ask(Model(_good), tmp_path)
    model = Model(_good)
    second = _ask(model, tmp_path)
    assert model.asked == []
    assert second.kept == 3
    assert second.shelf == first.shelf


def test_a_run_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    class Dying(Model):
        def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
            yield from list(super().answer(questions))[:2]
            raise PriorsError("the server is gone")

    with pytest.raises(PriorsError):
        _ask(Dying(_good), tmp_path)
    model = Model(_good)
    found = _ask(model, tmp_path)
    assert len(model.asked) == 1
    assert (found.kept, found.answered) == (2, 1)


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    _ask(Model(_good), tmp_path)
    other = Model(_good)
    other.digest = "ba9876543210"
    _ask(other, tmp_path)
    assert len(other.asked) == 3


def test_a_question_without_a_reply_is_refused_now_and_asked_next_time(tmp_path: Path) -> None:
    gone = Model(lambda structure, before, prompt: RuntimeError("gone") if structure == "liver" else SAID)
    found = _ask(gone, tmp_path)
    assert [(refused.structure, refused.reason) for refused in found.refused] == [("liver", "gone")]
    assert len(gone.asked) == 3
    model = Model(_good)
    assert _ask(model, tmp_path).refused == ()
    assert len(model.asked) == 1


def test_samples_differ_and_their_agreement_is_the_confidence(tmp_path: Path) -> None:
    def says(structure: str, before: int, prompt: str) -> object:
        return SAID | {"may_be_absent": len(model.asked) % 3 == 0}

    model = Model(says)
    found = _ask(model, tmp_path, AskingSettings(samples=3))
    assert len({question.seed for question in model.asked}) == 3
    assert found.shelf.priors["liver"].confidence["may_be_absent"] == pytest.approx(2 / 3)


def test_what_a_person_edited_stays_and_is_marked(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    shelf.write(place, _ask(Model(_good), tmp_path / "replies").shelf)
    place.write_text(place.read_text().replace("volume_ml: [100, 200]", "volume_ml: [700, 2400]", 1))
    edited = shelf.opened(place)
    assert edited.priors["liver"].edited == ("volume_ml",)
    other = Model(lambda structure, before, prompt: SAID | {"largest_ml": 999, "shape": "another shape"})
    other.digest = "ba9876543210"
    found = _ask(other, tmp_path / "replies", before=edited).shelf
    shelf.write(place, found)
    again = shelf.opened(place).priors
    assert (again["liver"].volume_ml, again["liver"].edited) == ((700, 2400), ("volume_ml",))
    assert again["liver"].text["shape"] == "another shape"
    assert (again["spleen"].volume_ml, again["spleen"].edited) == ((100, 999), ())


def test_entries_nobody_asked_about_stay(tmp_path: Path) -> None:
    before = _ask(Model(_good), tmp_path / "a").shelf
    mine = replace(before.priors["spine"], structure="spine", volume_ml=(1.0, 2.0))
    old = before.with_priors(before.priors | {"spine": mine})
    found = interview(
        Model(_good), REGION, ["liver"], ONCE, Replies(Place.of(tmp_path / "b")), old, "2026-11-21"
    )
    assert found.shelf.priors["spine"].volume_ml == (1.0, 2.0)


def test_nothing_is_asked_about_a_structure_the_archive_has_not(tmp_path: Path) -> None:
    model = Model(_good)
    with pytest.raises(SettingsError, match="no structure 'heart'"):
        interview(model, REGION, ["heart"], ONCE, Replies(Place.of(tmp_path)), None, "2026-11-21")
    assert model.asked == []


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    replies = Replies(Place.of(tmp_path))
    interview(
        Model(_good),
        REGION,
        REGION.structures,
        ONCE,
        replies,
        None,
        "2026-11-21",
        lambda n, _: told.append(n),
    )
    assert told == [1, 2, 3]


def test_an_answer_that_contradicts_what_was_on_the_shelf_gives_way_to_it(tmp_path: Path) -> None:
    before = _ask(Model(_good), tmp_path / "a").shelf
    mine = replace(before.priors["spine"], relations=(Relation("left-of", "liver"),), edited=("relations",))
    old = before.with_priors(before.priors | {"spine": mine})
    found = _ask(Model(_related("liver", "left-of", "spine")), tmp_path / "b", before=old)
    assert found.shelf.priors["spine"].relations == mine.relations
    assert found.shelf.priors["liver"].relations == ()
    assert [(one.structure, one.claim) for one in found.refused] == [("liver", "left-of spine")]
    place = Place.of(tmp_path / "shelf.yaml")
    shelf.write(place, found.shelf)
    assert shelf.opened(place).priors["liver"].edited == ()
