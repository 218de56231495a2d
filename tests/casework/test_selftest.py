"""The case that is stored for serving, and what a specialist has to show on it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tutelage.archive.catalog import Catalog, load
from tutelage.casework import selftest
from tutelage.errors import WorkspaceError
from tutelage.evaluation.scorecard import from_dict
from tutelage.records import Role, Scorecard
from tutelage.specialist import artifact
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.records import Case

pytestmark = pytest.mark.torch

Damage = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def workspace(tiny_campaign: Path) -> Path:
    return tiny_campaign.parent / "workspace"


@pytest.fixture
def stored(workspace: Path, tmp_path: Path) -> Place:
    """A copy of the stored case."""
    shutil.copytree(workspace / selftest.FOLDER, tmp_path / selftest.FOLDER)
    return Place.of(tmp_path / selftest.FOLDER)


@pytest.fixture(scope="module")
def champion(workspace: Path) -> Path:
    return workspace / str(json.loads((workspace / "champion.json").read_text())["folder"])


@pytest.fixture(scope="module")
def card(champion: Path) -> Scorecard:
    return from_dict(json.loads((champion.parent / "scorecard.validation.json").read_text()))


@pytest.fixture(scope="module")
def catalog(workspace: Path) -> Catalog:
    return load(Place.of(workspace / "catalog"))


def changed(champion: Path, folder: Path, damage: Damage) -> Predictor:
    """A specialist with other weights, stored as training would."""
    network, plan, _ = artifact.load(Place.of(champion))
    state = network.state_dict()
    damage(state)
    artifact.save(Place.of(folder), state, plan, {})
    return Predictor(str(folder))


def nan(state: dict[str, torch.Tensor]) -> None:
    next(iter(state.values())).view(-1)[0] = float("nan")


def forget(state: dict[str, torch.Tensor]) -> None:
    """Finite, and useless."""
    torch.manual_seed(1)
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1)


def test_a_run_leaves_a_validation_case_with_what_its_champion_had_on_it(
    workspace: Path, champion: Path, card: Scorecard, catalog: Catalog
) -> None:
    record = selftest.read(Place.of(workspace / selftest.FOLDER))
    assert record is not None
    assert catalog.case(record.case).role is Role.VALIDATION
    assert record.champion == artifact.digest_of(Place.of(champion))
    expected = {score.structure: score.dice for score in card.scores if score.case == record.case}
    assert record.dice[record.champion] == pytest.approx(expected)


def test_a_champion_reaches_what_it_had(stored: Place, champion: Path) -> None:
    tested = selftest.tested(Predictor(str(champion)), stored)
    assert tested.refused is None
    assert tested.stored_case
    record = selftest.read(stored)
    assert record is not None
    dice = list(record.dice[record.champion].values())
    assert tested.dice == pytest.approx(sum(dice) / len(dice), abs=1e-3)
    assert tested.least == pytest.approx(sum(dice) / len(dice) - selftest.MARGIN, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(nan, "probabilities are no numbers"), (forget, "mean Dice 0.0")],
    ids=["no numbers", "worse"],
)
def test_what_is_clearly_bad_is_refused(
    stored: Place, champion: Path, tmp_path: Path, damage: Damage, told: str
) -> None:
    bad = changed(champion, tmp_path / "bad", damage)
    refused = selftest.tested(bad, stored).refused
    assert refused is not None
    assert told in refused


def test_a_champion_of_old_is_held_against_itself(stored: Place, champion: Path, tmp_path: Path) -> None:
    """Else nobody could go back to it after a much better one."""
    old = changed(champion, tmp_path / "old", forget)
    record = selftest.read(stored)
    assert record is not None
    told = json.loads((stored / "selftest.json").read_text())
    told["dice"][old.digest] = dict.fromkeys(record.structures, 0.01)
    (stored / "selftest.json").write_text(json.dumps(told))
    assert selftest.tested(old, stored).refused is None


def test_a_specialist_of_other_structures_is_refused(stored: Place, tiny_specialist: Path) -> None:
    refused = selftest.tested(Predictor(str(tiny_specialist)), stored).refused
    assert refused is not None
    assert "liver, spleen, the stored case" in refused


def test_weights_that_are_not_what_the_description_says_are_refused(tiny_specialist: Path) -> None:
    predictor = Predictor(str(tiny_specialist))
    next(predictor.network.parameters()).data[0] += 1
    refused = selftest.tested(predictor, None).refused
    assert refused is not None
    assert predictor.digest in refused


def test_without_a_stored_case_noise_shows_that_it_answers(tiny_specialist: Path, tmp_path: Path) -> None:
    assert selftest.tested(Predictor(str(tiny_specialist)), None) == selftest.Tested(None, stored_case=False)
    nowhere = Place.of(tmp_path / "nothing")
    assert selftest.tested(Predictor(str(tiny_specialist)), nowhere).refused is None
    bad = changed(tiny_specialist, tmp_path / "bad", nan)
    assert selftest.tested(bad, None).refused == "its probabilities are no numbers"


@pytest.mark.parametrize("name", ["selftest.json", "image.nii.gz", "label.nii.gz"])
def test_a_stored_case_that_is_damaged_is_told_and_tests_nobody(
    stored: Place, champion: Path, name: str
) -> None:
    (stored / name).write_bytes((stored / name).read_bytes()[:-20])
    with pytest.raises(WorkspaceError, match="without a stored case"):
        selftest.tested(Predictor(str(champion)), stored)


# --- storing ------------------------------------------------------------------------------


def test_the_next_champion_is_recorded_on_the_same_case(
    stored: Place, card: Scorecard, catalog: Catalog
) -> None:
    before = selftest.read(stored)
    assert before is not None
    later = replace(card, specialist="next")
    selftest.keep(stored, catalog.of(Role.VALIDATION), [later, card], 2**20)
    after = selftest.read(stored)
    assert after is not None
    assert (after.case, after.image_digest, after.champion) == (before.case, before.image_digest, "next")
    assert set(after.dice) == {"next", before.champion}


def test_another_case_is_stored_when_the_image_was_changed(
    stored: Place, card: Scorecard, catalog: Catalog
) -> None:
    cases = [replace(case, stamp="1-1") for case in catalog.of(Role.VALIDATION)]
    selftest.keep(stored, cases, [replace(card, specialist="next")], 2**20)
    after = selftest.read(stored)
    assert after is not None
    assert (after.stamp, set(after.dice)) == ("1-1", {"next"})


def test_the_case_with_most_structures_is_chosen_and_of_these_the_smallest(
    card: Scorecard, catalog: Catalog
) -> None:
    (case,) = catalog.of(Role.VALIDATION)

    def like(name: str, depth: int) -> "Case":
        return replace(case, case=name, grid=replace(case.grid, shape=(depth, *case.grid.shape[1:])))

    cases = [like("large", 40), like("small", 20), like("poor", 10), like("failed", 5)]
    score = card.scores[0]
    scores = [
        replace(score, case=name, structure=structure, absent=(name, structure) == ("poor", "b"))
        for name in ("large", "small", "poor")
        for structure in ("a", "b")
    ]
    chosen = selftest.chosen(cases, replace(card, scores=tuple(scores)))
    assert chosen is not None
    assert chosen.case == "small"
    assert selftest.chosen([], card) is None
