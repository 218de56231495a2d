"""One whole campaign of seconds, and what running it again does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.listening import Listener
from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Rows, read_table
from tutelage.records import Role
from tutelage.rounds import steps
from tutelage.rounds.campaign import opened
from tutelage.rounds.results import Finished
from tutelage.rounds.run import evaluate, report, run, step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.steps import STEPS
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> tuple[Path, Finished]:
    """A finished campaign: its configuration and what it came to."""
    config = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace")
    return config, run(load(config, RunSettings), Listener())


@pytest.fixture
def copied(finished: tuple[Path, Finished], tmp_path: Path) -> Callable[..., RunSettings]:
    """The settings of a copy of it, as a test wants them."""
    shutil.copytree(finished[1].workspace, tmp_path / "copy")
    return lambda *overrides: load(finished[0], RunSettings, [f"workspace={tmp_path / 'copy'}", *overrides])


def test_a_campaign_ends_with_a_champion_scores_and_a_page(finished: tuple[Path, Finished]) -> None:
    _, result = finished
    assert result.champion in ("labels-only", "r00")
    assert [name for name, _ in result.validation] == ["labels-only", "r00"]
    assert result.failed == 0
    assert "<html" in Path(result.report).read_text()
    assert Path(str(result.specialist)).is_dir()


def test_the_ledger_has_a_row_for_every_case_structure_and_round(finished: tuple[Path, Finished]) -> None:
    rows = list(read_table(Place.of(finished[1].workspace) / "ledger.parquet"))
    assert len({(row["round"], row["case"], row["structure"]) for row in rows}) == len(rows) == 4 * 10
    assert {row["ruling"] for row in rows} <= {"accept", "partial", "reject", "absent"}
    assert all(row["specialist"] and row["image"] and row["label"] for row in rows)


def test_running_again_does_nothing(finished: tuple[Path, Finished]) -> None:
    config, before = finished
    again = run(load(config, RunSettings), Listener())
    assert before.steps_done == 10
    assert again.steps_done == 0
    assert again.validation == before.validation


def test_another_curation_threshold_never_asks_the_generalist_again(
    finished: tuple[Path, Finished],
) -> None:
    config, before = finished
    listener = Listener()
    workspace = Path(before.workspace)
    label = (workspace / "rounds/r00/label.manifest.json").read_bytes()
    run(load(config, RunSettings, ["curation.min_agreement=0.35"]), listener)
    assert (workspace / "rounds/r00/label.manifest.json").read_bytes() == label
    assert "labels-only train: done before" in listener.said
    assert "r00 label: done before" in listener.said
    assert "r00 curate: done before" not in listener.said


def test_no_prompt_label_or_promotion_saw_a_test_patient_or_a_hidden_label(
    finished: tuple[Path, Finished],
) -> None:
    config, result = finished
    with opened(load(config, RunSettings), Listener()) as campaign:
        cases = {role: {c.case for c in campaign.catalog.of(role)} for role in Role}
        unlabeled = campaign.catalog.of(Role.UNLABELED)
    stage = Place.of(result.workspace) / "rounds" / "r00"
    assert Rows(stage / "label.rows").cases() == cases[Role.UNLABELED]
    assert Rows(stage / "curate.rows").cases() == cases[Role.UNLABELED]
    assert Rows(stage / "evaluate.rows").cases() == cases[Role.VALIDATION]
    assert all(case.label is None for case in unlabeled)
    promotion = json.loads((stage / "promote.manifest.json").read_text())
    assert promotion["inputs"]["challenger"]
    assert not cases[Role.TEST] & cases[Role.VALIDATION]


def test_the_test_split_is_scored_when_a_person_asks_and_never_before(
    finished: tuple[Path, Finished], copied: Callable[..., RunSettings]
) -> None:
    settings, before = copied(), finished[1]
    assert before.test == report(settings, Listener()).test == ()
    assert not [path for path in Path(settings.workspace, "rounds").rglob("*") if "test" in path.name]
    told = evaluate(settings, Listener(), Role.TEST)
    assert [name for name, _ in told.test] == ["labels-only", "r00"]
    assert told.validation == before.validation
    assert told.champion == before.champion
    assert run(settings, Listener()).test == told.test
    assert evaluate(settings, Listener(), Role.TEST).steps_done == 0


def test_scores_of_a_specialist_that_was_trained_anew_are_not_told(
    copied: Callable[..., RunSettings],
) -> None:
    settings = copied()
    evaluate(settings, Listener(), Role.TEST)
    step(copied("train.steps=20"), Listener(), "train", 0)
    assert [name for name, _ in report(settings, Listener()).test] == ["labels-only"]
    with opened(settings, Listener()) as campaign:
        assert ["test" in steps.done(campaign, number) for number in (LABELS_ONLY, 0)] == [True, False]


def test_hidden_labels_change_nothing_but_the_report(finished: tuple[Path, Finished], tmp_path: Path) -> None:
    config, before = finished
    settings = load(config, RunSettings, [f"workspace={tmp_path / 'other'}"])
    with opened(settings, Listener()) as campaign:
        hidden = [case.hidden for case in campaign.catalog.of(Role.UNLABELED)]
    for place in hidden:
        label = nibabel.load(str(place))
        empty = np.zeros(label.shape, label.get_data_dtype())
        nibabel.save(nibabel.Nifti1Image(empty, label.affine, label.header), str(place))
    result = run(settings, Listener())
    assert len(hidden) == 4
    assert result.validation == before.validation
    assert Path(result.report).read_text() != Path(before.report).read_text()


def test_a_step_without_what_it_needs_says_what_to_run_first(
    tiny_config: Callable[[str], Path],
) -> None:
    settings = load(tiny_config("empty"), RunSettings)
    with pytest.raises(WorkspaceError, match="labels-only has no finished `train` step"):
        step(settings, Listener(), "label", 0)


def test_a_second_run_in_the_same_workspace_is_kept_out(tiny_config: Callable[[str], Path]) -> None:
    settings = load(tiny_config("locked"), RunSettings)
    with opened(settings, Listener()), pytest.raises(WorkspaceError, match="in use by process"):
        run(settings, Listener())


def test_page_and_champion_can_be_looked_at_after_every_round(
    tiny_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(tiny_config("workspace"), RunSettings)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(STEPS, "label", killed)
    with pytest.raises(KeyboardInterrupt):
        run(settings, Listener())
    page = Path(settings.workspace, "report.html").read_text()
    assert "labels-only is the champion" in page
    assert "r00" not in page
