"""Text for a campaign: vectors made once, shelves checked, priors held against masks, notes asked about."""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray

from tutelage.archive import formats
from tutelage.archive.settings import ArchiveSettings
from tutelage.archive.synthetic import STRUCTURES
from tutelage.curation.settings import CurationSettings
from tutelage.errors import SettingsError
from tutelage.evaluation.table import priors_table
from tutelage.geometry import Grid
from tutelage.labels.rows import read_table
from tutelage.priors import cases, shelf, vectors
from tutelage.priors.base import Question, Reply
from tutelage.priors.recorded import Replies
from tutelage.priors.settings import AskingSettings, PriorsSettings
from tutelage.records import Expectation, Note, Prior, Relation, Role
from tutelage.rounds import casewise, labeled, noting, steps, textual
from tutelage.rounds.asking_priors import Who
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.torch

TORSO = Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"


@pytest.fixture
def campaign(tiny_campaign: Path, tmp_path: Path) -> Iterator[Campaign]:
    """A finished campaign of this test's own: what is done to it no other test sees."""
    settings = load(tiny_campaign, RunSettings)
    shutil.copytree(settings.workspace, tmp_path / "campaign")
    settings = settings.model_copy(update={"workspace": str(tmp_path / "campaign")})
    with opened(settings, Reporter()) as campaign:
        yield campaign


def with_priors(campaign: Campaign, **values: object) -> Campaign:
    told = PriorsSettings.model_validate(values)
    return replace(campaign, settings=campaign.settings.model_copy(update={"priors": told}))


ORTHOGONAL = {"encoder": "orthogonal", "width": 32}


def test_vectors_are_made_once_and_again_when_shelf_or_settings_change(
    campaign: Campaign, tmp_path: Path
) -> None:
    copy = tmp_path / "torso.yaml"
    copy.write_text(TORSO.read_text())
    told = with_priors(campaign, shelf=str(copy), vectors=ORTHOGONAL)
    address, fingerprint = textual.vectors_of(told)
    stamp = Place.of(address).stamp()
    assert textual.vectors_of(told) == (address, fingerprint)
    assert Place.of(address).stamp() == stamp
    made = vectors.read(Place.of(address))
    assert made.structures == ("background", *campaign.catalog.structures)
    assert made.texts_KT[1][0] == "liver: a large wedge, thick on the right and thin on the left"
    copy.write_text(TORSO.read_text().replace("a large wedge", "a small wedge"))
    assert textual.vectors_of(told)[1] != fingerprint
    other = with_priors(campaign, shelf=str(TORSO), vectors=ORTHOGONAL | {"seed": 1})
    assert textual.vectors_of(other)[1] != fingerprint


def test_a_damaged_file_of_vectors_is_made_anew(campaign: Campaign) -> None:
    told = with_priors(campaign, vectors=ORTHOGONAL)
    address, fingerprint = textual.vectors_of(told)
    Place.of(address).write_text("nonsense")
    assert textual.vectors_of(told) == (address, fingerprint)


def test_a_tower_wants_a_shelf_and_takes_the_workspaces_own(campaign: Campaign) -> None:
    told = with_priors(campaign)
    with pytest.raises(SettingsError, match="no shelf of priors"):
        textual.vectors_of(told)
    place = campaign.workspace.root / "priors" / "shelf.yaml"
    place.write_text(TORSO.read_text())
    assert textual.shelf_of(told.settings.priors, told.workspace) == place


def test_only_a_shelf_that_settings_name_is_held_against_masks(campaign: Campaign) -> None:
    (campaign.workspace.root / "priors" / "shelf.yaml").write_text(TORSO.read_text())
    assert textual.known(with_priors(campaign)).priors == {}
    assert "liver" in textual.known(with_priors(campaign, shelf=str(TORSO))).priors


def test_a_shelf_is_checked_against_annotated_cases_and_keeps_what_was_seen(campaign: Campaign) -> None:
    orders = (Relation("left-of", "spine"), Relation("anterior-to", "spine"))
    wrong = {
        "liver": Prior("liver", (1.0, 2.0), source="a test", relations=orders),
        "aorta": Prior("aorta", (1.0, 2.0), source="a test", edited=("volume_ml",)),
    }
    checked = textual.check(campaign, shelf.Shelf("a test", wrong, {}))
    liver = checked.priors["liver"]
    assert set(liver.struck) == {"volume_ml", "left-of spine"}
    assert liver.struck["left-of spine"] == "seen in 0 of 2 annotated cases"
    assert checked.priors["aorta"].struck == {}
    assert "a person wrote it" in checked.priors["aorta"].contradicted["volume_ml"]
    place = campaign.workspace.root / "priors" / "checked.yaml"
    shelf.write(place, checked)
    again = shelf.opened(place)
    assert again.priors == checked.priors
    assert textual.check(campaign, again).priors == checked.priors


def test_who_serves_a_campaign_holds_against_masks_what_it_held_and_reads_no_label(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    orders = (Relation("left-of", "spine"), Relation("anterior-to", "spine", weight=0.5))
    shelf.write(place, shelf.Shelf("me", {"liver": Prior("liver", (1, 2), relations=orders)}, {}))
    told = with_priors(campaign, shelf=str(place))
    written = shelf.opened(place).priors
    assert textual.reviewed(told.settings.priors, told.workspace) == written, "nobody has looked yet"
    held = textual.known(told).priors
    assert held["liver"].struck
    monkeypatch.delattr(formats, "read_label")
    assert textual.reviewed(told.settings.priors, told.workspace) == held
    unchecked = with_priors(campaign, shelf=str(place), check=False)
    assert textual.reviewed(unchecked.settings.priors, told.workspace) == written
    shelf.write(place, shelf.Shelf("me", {"liver": Prior("liver", (1, 3), relations=orders)}, {}))
    assert not textual.reviewed(told.settings.priors, told.workspace)["liver"].struck, "of other claims"
    assert textual.reviewed(with_priors(campaign).settings.priors, told.workspace) == {}


class Listening(Reporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.said = list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_shelf_that_settings_name_is_checked_once_in_memory_and_believed_less(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    orders = (Relation("left-of", "spine"), Relation("anterior-to", "spine", weight=0.5))
    shelf.write(place, shelf.Shelf("me", {"liver": Prior("liver", (1, 2), relations=orders)}, {}))
    written, read = place.read_text(), list[str]()
    read_label = formats.read_label

    def reading(path: str, grid: Grid, structures: int) -> NDArray[np.integer]:
        read.append(path)
        return read_label(path, grid, structures)

    monkeypatch.setattr(formats, "read_label", reading)
    told = replace(with_priors(campaign, shelf=str(place)), reporter=(reporter := Listening()))
    known = textual.known(told)
    assert set(known.priors["liver"].struck) == {"volume_ml", "left-of spine"}
    assert known.priors["liver"].relations == orders  # a weight that a person set is not raised
    assert any(line.startswith("struck    liver left-of spine") for line in reporter.said)
    assert place.read_text() == written
    gold = [str(case.label) for case in campaign.catalog.of(Role.GOLD)]
    assert sorted(read) == sorted(gold)
    heard = len(reporter.said)
    assert textual.known(told) == known
    assert (len(read), len(reporter.said)) == (len(gold), heard)
    off = textual.known(with_priors(campaign, shelf=str(place), check=False))
    assert off.priors["liver"].struck == {}
    assert off.fingerprint != known.fingerprint


def test_labeling_is_done_again_when_what_is_known_about_pieces_changes_and_only_then(
    campaign: Campaign, tmp_path: Path
) -> None:
    plain = steps.label(campaign, 0)["fingerprint"]  # of this copy's addresses
    assert steps.label(campaign, 0)["fingerprint"] == plain
    told = with_priors(campaign, shelf=str(TORSO), limit_prompts=False)
    assert steps.label(told, 0)["fingerprint"] == plain
    place = Place.of(tmp_path / "shelf.yaml")
    liver = Prior("liver", (1, 5000), text={"shape": "a wedge"})
    shelf.write(place, shelf.Shelf("me", {"liver": liver}, {}))
    told = with_priors(campaign, shelf=str(place), check=False)
    assert textual.limits(told).most == {"liver": 1}
    again = steps.label(told, 0)
    assert again["inputs"]["priors"] == textual.limits(told).fingerprint
    assert again["fingerprint"] != plain
    shelf.write(place, shelf.Shelf("me", {"liver": replace(liver, volume_ml=(2, 5000))}, {}))
    assert steps.label(told, 0)["fingerprint"] == again["fingerprint"]
    shelf.write(place, shelf.Shelf("me", {"liver": replace(liver, components=(1, 2))}, {}))
    assert steps.label(told, 0)["fingerprint"] != again["fingerprint"]


def test_a_count_of_pieces_that_is_struck_or_hardly_believed_limits_no_prompts(
    campaign: Campaign, tmp_path: Path
) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    entries = {
        "liver": Prior("liver", (1, 5000), struck={"components": "a person struck it"}),
        "spleen": Prior("spleen", (1, 5000), confidence={"components": 0.3}),
    }
    shelf.write(place, shelf.Shelf("me", entries, {}))
    assert textual.limits(with_priors(campaign, shelf=str(place), check=False)).most == {}


def test_findings_of_another_shelf_or_none_are_not_used(campaign: Campaign, tmp_path: Path) -> None:
    copy = tmp_path / "torso.yaml"
    copy.write_text(TORSO.read_text())
    told = with_priors(campaign, shelf=str(copy))
    known = textual.known(told)
    findings = campaign.workspace.root / "priors" / "findings.json"
    before = findings.read_text()
    findings.write_text("nonsense")
    assert textual.known(told) == known
    assert findings.read_text() == before
    entry = yaml.safe_load(copy.read_text())
    entry["structures"]["liver"]["volume_ml"] = [1, 2]
    copy.write_text(yaml.safe_dump(entry))
    assert "volume_ml" in textual.known(told).priors["liver"].struck


def test_vectors_of_a_shelf_that_nobody_named_say_so(campaign: Campaign) -> None:
    own = campaign.workspace.root / "priors" / "shelf.yaml"
    own.write_text(TORSO.read_text())
    reporter = Listening()
    textual.vectors_of(replace(with_priors(campaign, vectors=ORTHOGONAL), reporter=reporter))
    assert any(str(own) in line and "priors.shelf" in line for line in reporter.said)
    reporter.said.clear()
    named = with_priors(campaign, vectors=ORTHOGONAL, shelf=str(TORSO))
    textual.vectors_of(replace(named, reporter=reporter))
    assert not any("priors.shelf" in line for line in reporter.said)


def test_what_priors_change_is_shown_beside_what_would_be_without_them(
    campaign: Campaign, tmp_path: Path
) -> None:
    place = Place.of(tmp_path / "shelf.yaml")
    shelf.write(place, shelf.Shelf("a test", {"liver": Prior("liver", (1, 2))}, {}))
    told = with_priors(campaign, shelf=str(place), check=False)
    steps.curate(told, 0)
    steps.truth(told, 0)
    manifest = casewise.needed(told, 0, "label")
    rulings = labeled.told(told, 0, manifest).rulings
    liver = next(row for row in rulings if row.structure == "liver")
    assert liver.without_priors is not None
    assert liver.with_priors is not None
    assert liver.without_priors.accepted > liver.with_priors.accepted == 0
    assert liver.accepted == 0
    assert liver.without_priors.true_dice is not None
    assert priors_table(rulings) is not None
    off = told.settings.model_copy(
        update={
            "curation": CurationSettings.model_validate(
                told.settings.curation.model_dump() | {"priors": False}
            )
        }
    )
    steps.curate(replace(told, settings=off), 0)
    rows = list(read_table(told.workspace.stage(0) / "ledger.parquet"))
    livers = [row for row in rows if row["structure"] == "liver"]
    assert {row["with_priors"] for row in livers} == {"reject"}
    assert [row["ruling"] for row in livers] == [row["without_priors"] for row in livers]


class Surgeon:
    """A model by whose word every spleen was removed."""

    name, digest = "surgeon", "abc"

    def __init__(self) -> None:
        self.heard = list[Question]()

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        for question in questions:
            self.heard.append(question)
            words = dict.fromkeys(question.schema["properties"], "expected")
            yield Reply(question.key, 0, json.dumps(words | {"spleen": "absent", "why": ""}), 9)

    def close(self) -> None:
        pass


def test_nothing_is_asked_where_nothing_but_the_modality_is_noted(campaign: Campaign) -> None:
    asked = noting.ask_about_cases(campaign, Surgeon())
    assert (asked.cases, asked.questions) == (0, 0)
    assert (campaign.workspace.catalog / "notes.parquet").exists()


def test_what_notes_call_absent_is_not_believed_in_that_case_alone(campaign: Campaign) -> None:
    names = campaign.catalog.structures
    rows = [
        row
        for row in read_table(campaign.workspace.stage(0) / "ledger.parquet")
        if row["structure"] == "spleen"
    ]
    first = rows[0]["case"]
    place = campaign.workspace.root / "priors" / "cases.parquet"
    note = Note(first, {"report": "spleen removed"})
    cases.ask(
        Surgeon(), [note], names, AskingSettings(), Replies(place.parent / "replies"), place, "2026-11-21"
    )
    steps.curate(campaign, 0)
    after = [
        row
        for row in read_table(campaign.workspace.stage(0) / "ledger.parquet")
        if row["structure"] == "spleen"
    ]
    told = next(row for row in after if row["case"] == first)
    assert told["ruling"] in ("reject", "absent")
    assert "the case's notes say it is absent" in " ".join(told["reasons"])
    assert told["notes_expect"] == 0
    others = {row["case"]: row["ruling"] for row in rows if row["case"] != first}
    assert {row["case"]: row["ruling"] for row in after if row["case"] != first} == others


def test_only_unlabeled_cases_are_asked_about_and_names_stay_home(
    tiny_campaign: Path, tmp_path: Path
) -> None:
    made = tiny_campaign.parent / "workspace" / "archive"
    lines = ["image,case,label,patient,role,report,patient_name"]
    for number, role in enumerate(["gold", "gold", "validation", "test", "unlabeled", "unlabeled"]):
        file = f"patient_{number:03}.nii.gz"
        text = f"Jane Doe{number}: spleen removed" if number != 5 else ""
        parts = f"{made}/imagesTr/{file},c{number},{made}/labelsTr/{file},p{number},{role}"
        lines.append(f'{parts},{text},"Doe{number}^Jane"')
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    settings = load(tiny_campaign, RunSettings)
    archive = ArchiveSettings.model_validate(
        {"importer": "list", "root": str(tmp_path / "list.csv"), "structures": STRUCTURES, "modality": "CT"}
    )
    settings = settings.model_copy(update={"archive": archive, "workspace": str(tmp_path / "workspace")})
    model = Surgeon()
    with opened(settings, Reporter()) as campaign:
        asked = noting.ask_about_cases(campaign, model)
        known = textual.known(campaign)
    assert (asked.cases, asked.questions, asked.failed) == (1, 1, 0)
    assert known.cases is not None
    assert cases.Answered.of(Place.of(known.cases)).about("c4")["spleen"] is Expectation.ABSENT
    assert "spleen removed" in model.heard[0].user
    for path in (tmp_path / "workspace").rglob("*.parquet"):
        if path.name in ("notes.parquet", "cases.parquet"):
            assert "doe" not in json.dumps(pq.read_table(path).to_pylist()).lower()
    assert "doe" not in (model.heard[0].user + model.heard[0].system).lower()


def test_a_recording_knows_no_cases(tiny_campaign: Path) -> None:
    with pytest.raises(SettingsError, match="knows no cases"):
        noting.ask(load(tiny_campaign, RunSettings), Reporter(), Who(recorded=TORSO))
