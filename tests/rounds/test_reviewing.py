"""Cases out to a person and corrected masks back in, with a campaign of seconds."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.archive.catalog import load as load_catalog
from tutelage.archive.synthetic import STRUCTURES
from tutelage.errors import SettingsError, WorkspaceError
from tutelage.labels.rows import Rows, read_table
from tutelage.records import Role
from tutelage.rounds import reviewing, taking, tracing
from tutelage.rounds.campaign import opened
from tutelage.rounds.corrected import Corrections
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import run
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.taking import Imported
from tutelage.rounds.workspace import Workspace, read_manifest
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.torch

Out = tuple[RunSettings, Workspace, Path]


def campaign_of(config: Path) -> tuple[RunSettings, Workspace]:
    settings = load(config, RunSettings)
    return settings, Workspace(Place.of(settings.workspace))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]) -> Path:
    """The YAML of a finished campaign that tests of this file may go on with."""
    config = write_tiny(tmp_path_factory.mktemp("reviewed"), "workspace")
    run(load(config, RunSettings, ["train.steps=8"]), Reporter())
    config.write_text(config.read_text().replace("steps: 24", "steps: 8"))
    return config


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Out:
    """Two cases handed out; whatever comes in is forgotten afterwards."""
    settings, workspace = campaign_of(finished)
    reviewing.export(settings, workspace, reviewing.queue(workspace, 2), Place.of(tmp_path / "out"))
    return settings, workspace, tmp_path / "out"


@pytest.fixture(autouse=True)
def forgotten(finished: Path) -> None:
    (campaign_of(finished)[1].root / "reviewed").remove()


def correct(folder: Path, number: int = 0) -> str:
    """Do what a person does: erase what is proposed of the last slice, draw a little, and save it."""
    entry = json.loads((folder / "review.json").read_text())["cases"][number]
    image = nibabel.load(folder / entry["proposed"])
    mask = np.asarray(image.dataobj).copy()
    mask[2:4, 2:4, 0] = 2
    nibabel.save(nibabel.Nifti1Image(mask, image.affine, image.header), folder / entry["corrected"])
    return str(entry["case"])


def take(out: Out, by: str | None = "Ada") -> Imported:
    settings, workspace, folder = out
    return taking.take_in(settings, workspace, Place.of(folder), by)


# --- ranking ------------------------------------------------------------------------------


def test_the_queue_is_of_unlabeled_cases_and_its_gains_fall(finished: Path) -> None:
    _, workspace = campaign_of(finished)
    ranked = reviewing.queue(workspace, 3)
    names = [chosen.gain.case for chosen in ranked.cases]
    catalog = load_catalog(workspace.catalog)
    assert ranked.round == "r00"
    assert len(set(names)) == 3
    assert {catalog.case(name).role for name in names} == {Role.UNLABELED}
    assert ranked.cases[0].gain.total == max(chosen.gain.total for chosen in ranked.cases)
    assert all(chosen.gain.reasons for chosen in ranked.cases)


def test_no_hidden_label_is_opened_or_hinted_at(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, workspace = campaign_of(finished)
    before = reviewing.queue(workspace, 4)
    hidden = {case.hidden for case in load_catalog(workspace.catalog).of(Role.UNLABELED)}
    assert None not in hidden
    opened_: list[str] = []
    read, really_open = Place.read_bytes, Place.open

    def watched(self: Place) -> bytes:
        opened_.append(self.uri)
        return read(self)

    def watched_open(self: Place) -> object:
        opened_.append(self.uri)
        return really_open(self)

    monkeypatch.setattr(Place, "read_bytes", watched)
    monkeypatch.setattr(Place, "open", watched_open)
    aside = workspace.root / "rounds" / "truth-aside"
    (workspace.stage(0) / "truth.rows").move(aside)
    try:
        assert reviewing.queue(workspace, 4) == before
        reviewing.export(settings, workspace, before, Place.of(tmp_path))
    finally:
        aside.move(workspace.stage(0) / "truth.rows")
    assert opened_
    assert not hidden & set(opened_)
    assert not [uri for uri in opened_ if "labelsTr" in uri]


def test_a_workspace_in_which_nothing_was_curated_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no ledger yet"):
        reviewing.queue(Workspace(Place.of(tmp_path)), 5)


# --- out ----------------------------------------------------------------------------------


def test_a_case_goes_out_as_it_is_with_a_proposal_on_its_grid(out: Out) -> None:
    _, workspace, folder = out
    told = json.loads((folder / "review.json").read_text())
    catalog = load_catalog(workspace.catalog)
    assert told["labels"] == {name: value for value, name in enumerate(("background", *catalog.structures))}
    for entry in told["cases"]:
        case = catalog.case(entry["case"])
        assert (folder / entry["image"]).read_bytes() == Path(case.image).read_bytes()
        assert entry["image_digest"] == formats.read_image(case.image).digest
        proposed = nibabel.load(folder / entry["proposed"])
        assert proposed.shape == nibabel.load(folder / entry["image"]).shape
        mask_DHW = formats.read_label(folder / entry["proposed"], case.grid, len(catalog.structures))
        assert mask_DHW.any()


def test_the_color_table_is_what_slicer_reads(out: Out) -> None:
    lines = (out[2] / "structures.ctbl").read_text().splitlines()
    rows = [line.split(" ") for line in lines if not line.startswith("#")]
    assert lines[0].startswith("# Color table file")
    assert [row[:2] for row in rows[:2]] == [["0", "background"], ["1", "liver"]]
    assert all(len(row) == 6 and all(0 <= int(v) <= 255 for v in row[2:]) for row in rows)
    assert len({tuple(row[2:]) for row in rows}) == len(rows)


def test_going_out_again_keeps_what_was_corrected(out: Out) -> None:
    settings, workspace, folder = out
    correct(folder)
    saved = {file.name: file.read_bytes() for file in (folder / "labels/final").iterdir()}
    reviewing.export(settings, workspace, reviewing.queue(workspace, 2), Place.of(folder))
    assert {file.name: file.read_bytes() for file in (folder / "labels/final").iterdir()} == saved


def test_a_folder_of_something_else_is_not_written_into(finished: Path, tmp_path: Path) -> None:
    settings, workspace = campaign_of(finished)
    (tmp_path / "thesis.doc").write_text("years")
    with pytest.raises(SettingsError, match=r"holds other files, as thesis\.doc"):
        reviewing.export(settings, workspace, reviewing.queue(workspace, 1), Place.of(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.doc"]


# --- back in ------------------------------------------------------------------------------


def test_what_comes_in_is_kept_and_who_did_it(out: Out) -> None:
    entry = json.loads((out[2] / "review.json").read_text())["cases"][0]
    covered = set(
        np.unique(np.asarray(nibabel.load(out[2] / entry["proposed"]).dataobj)[2:4, 2:4, 0]).tolist()
    )
    name = correct(out[2])
    done = take(out)
    assert [(one.case, one.by, one.since, one.round) for one in done.taken] == [(name, "Ada", 1, "r00")]
    assert done.taken[0].changed == tuple(STRUCTURES[value - 1] for value in sorted({2, *covered} - {0}))
    assert len(done.waiting) == 1
    held = Corrections.of(out[1].root)
    label = formats.read_label(
        held.folder / done.taken[0].label, load_catalog(out[1].catalog).case(name).grid, 10
    )
    assert (label == 2).sum() >= 4
    rows = [row for row in read_table(out[1].ledger) if row["corrected_by"] == "Ada"]
    assert {row["case"] for row in rows} == {name}


def test_the_same_mask_comes_in_once_and_a_better_one_again(out: Out) -> None:
    name = correct(out[2])
    take(out)
    assert take(out).known == (name,)
    folder = out[2] / "labels/final"
    (file,) = folder.iterdir()
    image = nibabel.load(file)
    mask = np.asarray(image.dataobj).copy()
    mask[4:6, 2:4, 0] = 3
    nibabel.save(nibabel.Nifti1Image(mask, image.affine, image.header), file)
    assert take(out, "Bob").taken[0].by == "Bob"
    held = Corrections.of(out[1].root)
    assert [one.by for one in held.every] == ["Ada", "Bob"]
    assert held.latest()[name].by == "Bob"
    assert all((held.folder / one.label).exists() for one in held.every)


def test_a_corrected_case_leaves_the_queue(out: Out) -> None:
    name = correct(out[2])
    take(out)
    assert name not in {chosen.gain.case for chosen in reviewing.queue(out[1], 9).cases}


def wrong_grid(file: Path, folder: Path) -> None:
    image = nibabel.load(file)
    moved = image.affine.copy()
    moved[0, 3] += 20
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), file)


def other_values(file: Path, folder: Path) -> None:
    image = nibabel.load(file)
    mask = np.asarray(image.dataobj).copy()
    mask[0, 0, 0] = 77
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), file)


def emptied(file: Path, folder: Path) -> None:
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)


def cut_off(file: Path, folder: Path) -> None:
    file.write_bytes(file.read_bytes()[:90])


def other_image(file: Path, folder: Path) -> None:
    table = folder / "review.json"
    told = json.loads(table.read_text())
    told["cases"][0]["image_digest"] = "0" * 16
    table.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (wrong_grid, "does not lie on its image"),
        (other_values, "values run from 0 to 77, expected 0 to 10"),
        (emptied, "it is empty, expected at least one structure"),
        (cut_off, "cannot be decoded|cut off"),
        (other_image, "is not the image that went out"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused_with_its_reason_and_the_others_come_in(
    out: Out, spoil: Callable[[Path, Path], None], why: str
) -> None:
    bad, good = correct(out[2], 0), correct(out[2], 1)
    file = out[2] / "labels/final" / f"{bad}.nii.gz"
    spoil(file, out[2])
    spoiled = file.read_bytes()
    done = take(out)
    assert [one.case for one in done.taken] == [good]
    assert [case for case, _ in done.refused] == [bad]
    assert re.search(why, done.refused[0][1])
    assert file.read_bytes() == spoiled
    assert set(Corrections.of(out[1].root).latest()) == {good}


@pytest.mark.parametrize("role", [Role.VALIDATION, Role.TEST, Role.GOLD])
def test_a_case_that_is_scored_or_has_a_label_never_comes_in(out: Out, role: Role) -> None:
    _, workspace, folder = out
    correct(folder)
    other = load_catalog(workspace.catalog).of(role)[0]
    told = json.loads((folder / "review.json").read_text())
    told["cases"][0] |= {"case": other.case, "image_digest": formats.read_image(other.image).digest}
    (folder / "review.json").write_text(json.dumps(told))
    shutil.copy(next((folder / "labels/final").iterdir()), folder / f"labels/final/{other.case}.nii.gz")
    done = take(out)
    assert not done.taken
    assert f"{other.case} is for {role.value}, expected an unlabeled case" in done.refused[0][1]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda told: told["labels"].pop("spleen"), "is about liver, .* the archive has liver, spleen"),
        (lambda told: told.pop("cases"), "is damaged .*'cases'"),
        (lambda told: told["cases"].append({}), "cases without a name"),
    ],
)
def test_a_table_that_is_of_something_else_is_refused_as_a_whole(
    out: Out, damage: Callable[[dict[str, object]], object], why: str
) -> None:
    table = out[2] / "review.json"
    told = json.loads(table.read_text())
    damage(told)
    table.write_text(json.dumps(told))
    with pytest.raises(SettingsError, match=why):
        take(out)
    assert not (out[1].root / "reviewed").exists()


def test_nobody_is_not_somebody_and_a_folder_without_a_table_is_no_review(out: Out, tmp_path: Path) -> None:
    correct(out[2])
    with pytest.raises(SettingsError, match="nobody says who corrected"):
        take(out, by=None)
    with pytest.raises(SettingsError, match=r"has no review\.json"):
        taking.take_in(out[0], out[1], Place.of(tmp_path / "nothing"), "Ada")


def test_an_image_that_changes_after_its_correction_is_not_learned_from(out: Out) -> None:
    name = correct(out[2])
    take(out)
    catalog, held = load_catalog(out[1].catalog), Corrections.of(out[1].root)
    assert held.usable(catalog, 2**29)[1] == []
    place = Place.of(catalog.case(name).image)
    before = place.read_bytes()
    image = nibabel.load(place.uri)
    try:
        nibabel.save(
            nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine, image.header), place.uri
        )
        rows = catalog.cases.table.to_pylist()
        stamps = [formats.stamp(row["image"]) for row in rows]
        table = catalog.cases.table
        changed = type(catalog.cases)(table.set_column(table.column_names.index("stamp"), "stamp", [stamps]))
        kept, why = held.usable(type(catalog)(changed, (), catalog.structures), 2**29)
    finally:
        place.write_bytes(before)
    assert kept.latest() == {}
    assert "its image has changed" in why[0]


# --- the next run -------------------------------------------------------------------------


def test_the_next_run_learns_from_it_in_a_round_of_its_own(finished: Path, out: Out) -> None:
    settings, workspace = campaign_of(finished)
    name = correct(out[2])
    take(out)
    before = {n: read_manifest(workspace.stage(n), "train") for n in (-1, 0)}
    try:
        result = run(settings, Reporter())
        assert [stage for stage, _ in result.validation] == ["labels-only", "r00", "r01"]
        assert {n: read_manifest(workspace.stage(n), "train") for n in (-1, 0)} == before
        assert name not in Rows(workspace.stage(1) / "label.rows").cases()
        told = tracing.story(workspace, name)
        assert [one.saw for one in told.learned][2] == "its label, corrected by Ada"
        assert told.learned[2].label == told.corrections[0].digest
        assert [row["ruling"] for row in told.asked[1].rows] == ["corrected"] * 10
        with opened(settings, Reporter()) as campaign:
            roles = [campaign.at(n).catalog.case(name).role for n in (0, 1)]
            others = [{r: len(campaign.at(n).catalog.of(r)) for r in Role} for n in (0, 1)]
        assert roles == [Role.UNLABELED, Role.GOLD]
        assert others[1] == others[0] | {Role.GOLD: 3, Role.UNLABELED: 3}
        assert run(settings, Reporter()).steps_done == 0
    finally:
        workspace.stage(1).remove()
