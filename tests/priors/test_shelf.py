from dataclasses import replace
from pathlib import Path

import pytest

from tutelage import priors
from tutelage.archive.synthetic import STRUCTURES
from tutelage.errors import SettingsError
from tutelage.priors import shelf as shelves
from tutelage.priors.claims import Finding, weighed
from tutelage.records import Prior, Relation
from tutelage.storage import Place

TORSO = Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"


def test_the_torso_shelf_knows_every_structure_of_the_phantom() -> None:
    assert set(priors.read(TORSO)) == set(STRUCTURES)


def test_no_shelf_means_no_priors() -> None:
    assert priors.read(None) == {}


def test_every_problem_of_a_shelf_is_told_at_once(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf.yaml"
    shelf.write_text("source: me\nstructures:\n  liver: {volume_ml: [9, 3]}\n  spleen: {volume: [1, 2]}\n")
    with pytest.raises(SettingsError) as caught:
        priors.read(shelf)
    message = str(caught.value)
    assert "structures.liver.volume_ml" in message
    assert "write [3, 9]" in message
    assert "did you mean volume_ml" in message


ASKED_LIVER = Prior(
    "liver",
    (500.0, 2400.0),
    text={"shape": "a wedge", "position": "under the diaphragm"},
    relations=(Relation("right-of", "spleen", 0.67, 0.5), Relation("touching", "stomach")),
    confused_with=("spleen",),
    confidence={"volume_ml": 0.67},
    struck={"components": "3 of 4 labeled cases have 2"},
)


def _written(place: Place) -> str:
    asked = shelves.Asked(
        model="m",
        weights="0123456789ab",
        prompt="p",
        sampling={"samples": 3.0, "temperature": 0.7},
        date="2026-11-21",
        claims=shelves.claims_of(ASKED_LIVER),
    )
    shelves.write(place, shelves.Shelf("m", {"liver": ASKED_LIVER}, {"liver": asked}))
    return place.read_text()


def test_a_shelf_that_was_written_reads_the_same(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    _written(place)
    again = shelves.opened(place)
    assert again.priors == {"liver": replace(ASKED_LIVER, source="m")}
    assert again.asked["liver"].weights == "0123456789ab"


@pytest.mark.parametrize(
    ("found", "changed", "claim"),
    [
        ("volume_ml: [500, 2400]", "volume_ml: [600, 2400]", "volume_ml"),
        ("shape: a wedge", "shape: a thick wedge", "text.shape"),
        ("touching stomach", "touching spine", "relations"),
        ("confused_with: [spleen]", "confused_with: []", "confused_with"),
        ("may_be_absent: false", "may_be_absent: true", "may_be_absent"),
    ],
)
def test_a_claim_that_a_person_changes_is_known_as_edited(
    tmp_path: Path, found: str, changed: str, claim: str
) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    text = _written(place)
    assert found in text
    place.write_text(text.replace(found, changed))
    prior = shelves.opened(place).priors["liver"]
    assert prior.edited == (claim,)
    assert claim not in prior.confidence


def test_a_claim_that_a_person_corrects_is_struck_no_longer(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    place.write_text(_written(place).replace("components: [1, 1]", "components: [1, 2]"))
    prior = shelves.opened(place).priors["liver"]
    assert (prior.edited, prior.struck) == (("components",), {})


def test_striking_a_claim_is_no_edit(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    place.write_text(_written(place).replace("3 of 4", "2 of 4"))
    assert shelves.opened(place).priors["liver"].edited == ()


def test_a_weight_that_a_person_sets_is_an_edit_and_outlives_asking_and_checking(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    text = _written(place)
    assert "weight: 0.5" in text
    place.write_text(
        text.replace("weight: 0.5", "weight: 0.1").replace(
            "    struck:", "    weights: {volume_ml: 0.2}\n    struck:"
        )
    )
    before = shelves.opened(place).priors["liver"]
    assert before.edited == ("relations", "volume_ml")
    asked_again = shelves.kept_edits(ASKED_LIVER, before)
    seen = [[Finding("liver", "volume_ml", True, ""), Finding("liver", "right-of spleen", True, "")]]
    after = weighed({"liver": asked_again}, seen)["liver"]
    assert after.weights == {"volume_ml": 0.2}
    assert after.relations == before.relations
    assert 0.1 in {related.weight for related in after.relations}


def test_a_weight_that_labeled_cases_set_is_no_edit(tmp_path: Path) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    _written(place)
    shelf = shelves.opened(place)
    seen = [[Finding("liver", "volume_ml", held, "9 ml")] for held in (True, True, False)]
    shelves.write(place, shelf.with_priors(weighed(shelf.priors, seen)))
    again = shelves.opened(place).priors["liver"]
    assert again.weights == {"volume_ml": 0.667}
    assert again.edited == ()


@pytest.mark.parametrize(
    "relations",
    [
        {"liver": "left-of spleen", "spleen": "left-of liver"},
        {"liver": "left-of spleen", "spleen": "left-of aorta", "aorta": "left-of liver"},
        {"liver": "left-of liver"},
    ],
)
def test_relations_that_cannot_all_be_true_are_refused_by_name(
    tmp_path: Path, relations: dict[str, str]
) -> None:
    lines = [f"  {name}: {{volume_ml: [1, 2], relations: [{told}]}}" for name, told in relations.items()]
    (shelf := tmp_path / "shelf.yaml").write_text("\n".join(["source: me", "structures:", *lines, ""]))
    with pytest.raises(SettingsError, match="contradicts itself") as caught:
        priors.read(shelf)
    for name, told in relations.items():
        assert f'"{name} {told}"' in str(caught.value)


def test_a_struck_relation_contradicts_nothing(tmp_path: Path) -> None:
    (shelf := tmp_path / "shelf.yaml").write_text(
        "source: me\nstructures:\n"
        "  liver: {volume_ml: [1, 2], relations: [left-of spleen], struck: {left-of spleen: wrong}}\n"
        "  spleen: {volume_ml: [1, 2], relations: [left-of liver]}\n"
    )
    assert set(priors.read(shelf)) == {"liver", "spleen"}


def test_a_relation_can_be_written_in_two_words(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf.yaml"
    shelf.write_text(
        "source: me\nstructures:\n  liver: {volume_ml: [1, 2], relations: [right-of left kidney]}\n"
    )
    assert priors.read(shelf)["liver"].relations == (Relation("right-of", "left kidney"),)


def test_a_relation_nobody_knows_is_told(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf.yaml"
    shelf.write_text("source: me\nstructures:\n  liver: {volume_ml: [1, 2], relations: [beside spleen]}\n")
    with pytest.raises(SettingsError, match="no such relation, expected one of left-of"):
        priors.read(shelf)
