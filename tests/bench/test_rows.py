"""Rows of the methods bench: done once, told apart by what they rest on, and joined over calls."""

import json
import os
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.bench import plans, rows, sets
from tutelage.bench.methods import MethodsBench, run
from tutelage.evaluation.scorecard import MEASURES
from tutelage.records import Role
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace, read_manifest
from tutelage.settings import load
from tutelage.storage import Place

METHODS = ("supervised", "mean_teacher")
WriteTiny = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, write_tiny: WriteTiny) -> Path:
    return write_tiny(tmp_path_factory.mktemp("config"), "small")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def bench(config: Path, out: Path) -> MethodsBench:
    return run([str(config)], seeds=2, methods=METHODS, out=out, jobs=0, say=lambda _: None)


def row_files(out: Path) -> dict[str, Mapping[str, Any]]:
    return {
        f"{path.parent.parent.name} {path.parent.name}": json.loads(path.read_text())
        for path in sorted(out.rglob("row.json"))
    }


@pytest.mark.torch
def test_two_methods_and_two_seeds_are_four_rows(bench: MethodsBench, out: Path) -> None:
    assert not bench.failed
    found = row_files(out)
    assert list(found) == [f"{method} seed{seed}" for method in sorted(METHODS) for seed in range(2)]
    for one in found.values():
        assert set(one["test"]) == {"last", "best"}
        for selection in one["test"].values():
            assert set(selection) == {"all", "largest"}
            assert set(selection["all"]["mean"]) == set(MEASURES)
        assert one["steps"] == 24, "of labels alone mean_teacher takes nothing"
        assert one["cases"] == {"gold": 2, "test": 1, "unlabeled": 4, "validation": 1}
        assert one["peak_mib"] > 0


@pytest.mark.torch
def test_time_and_memory_are_those_that_training_noted_down(
    bench: MethodsBench, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(out.rglob("mean_teacher/seed0"))
    noted = folder / "workspace/rounds/r00/training.json"
    before, told = noted.read_text(), (folder / "row.json").read_text()
    noted.write_text(json.dumps(json.loads(before) | {"seconds": 5000.0, "peak_mib": 77.0}))
    row = rows.Row(**json.loads((folder / "order.json").read_text()))
    monkeypatch.setattr(rows, "held", lambda *_: None)
    try:
        again = rows.work(row)
    finally:
        noted.write_text(before)
        (folder / "row.json").write_text(told)  # done anew it would tell other seconds
    assert again["seconds"]["train"] == 5000.0, "and nothing of the labels-only specialist"
    assert again["peak_mib"] == 77


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("mean_teacher", ["r00"]),
        ("semisam_plus", ["r00"]),
        ("supervised", ["labels-only", "r00"]),
        ("knowledge_mining", ["labels-only", "r00"]),
        ("tutelage", ["labels-only", "r00"]),
    ],
)
def test_the_specialist_of_labels_alone_costs_those_who_use_it(
    method: str, stages: list[str], config: Path
) -> None:
    settings = load(config, RunSettings, [f"train.method={method}", "generalist.keep_grid=true"])
    campaign: Any = SimpleNamespace(settings=settings, workspace=Workspace(Place.of("/nowhere")))
    assert [folder.name for folder in rows._charged(campaign, 0)] == stages
    assert [folder.name for folder in rows._charged(campaign, -1)] == ["labels-only"]


@pytest.mark.parametrize(
    ("method", "dices", "best"),
    [
        ("knowledge_mining", (0.7, 0.6, 0.5), "labels-only"),
        ("knowledge_mining", (0.5, 0.7, 0.6), "r00"),
        ("knowledge_mining", (0.5, 0.6, 0.6), "r00"),
        ("mean_teacher", (0.9, 0.6, 0.7), "r01"),
    ],
    ids=["no round helped", "the second made it worse", "equal: the first", "labels alone are no part of it"],
)
def test_the_best_weights_are_those_of_the_best_round(
    method: str, dices: tuple[float, ...], best: str, config: Path, tmp_path: Path
) -> None:
    workspace = Workspace(Place.of(tmp_path))
    settings = load(config, RunSettings, [f"train.method={method}", "generalist.keep_grid=true"])
    campaign: Any = SimpleNamespace(settings=settings, workspace=workspace)
    for number, dice in enumerate(dices, -1):
        stage = workspace.stage(number)
        for folder in ("specialist", "specialist.best"):
            (stage / folder / "weights").write_text("made")
        looks = {"validation_dice": [[100, dice - 0.1], [200, dice], [300, dice - 0.2]]}
        (stage / "training.json").write_text(json.dumps(looks))
    kept = rows._kept(campaign, 1)
    assert kept["last"] == workspace.specialist(1)
    assert str(kept["best"]).endswith(f"rounds/{best}/specialist.best")


@pytest.mark.torch
def test_the_table_says_what_the_rows_say(bench: MethodsBench, out: Path) -> None:
    found = row_files(out)
    written = json.loads((out / "methods.json").read_text())
    assert sorted(written["table"], key=lambda r: (r["method"], r["seed"])) == list(found.values())
    dices = {
        method: [found[f"{method} seed{s}"]["test"]["last"]["all"]["mean"]["dice"] for s in range(2)]
        for method in METHODS
    }
    text = (out / "methods.md").read_text()
    for method, values in dices.items():
        shown = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
        assert f"| {method} | {shown} |" in text
    ours = next(row for row in written["rows"] if row["measure"].endswith("mean_teacher.dice"))
    assert ours["ours"] == pytest.approx(statistics.fmean(dices["mean_teacher"]))
    assert ours["theirs"] == pytest.approx(statistics.fmean(dices["supervised"]))
    assert (out / "methods.svg").exists()


@pytest.mark.torch
def test_seeds_are_different_trainings_on_the_same_cases(bench: MethodsBench, out: Path) -> None:
    first, second = (row_files(out)[f"supervised seed{seed}"] for seed in range(2))
    assert first["cases"] == second["cases"]
    assert first["training"]["digests"] != second["training"]["digests"]


@pytest.mark.torch
def test_rows_of_a_seed_share_the_specialist_of_labels_alone(bench: MethodsBench, out: Path) -> None:
    for seed in range(2):
        digests = {
            method: read_manifest(
                Place.of(next(out.rglob(f"{method}/seed{seed}/workspace/rounds/labels-only"))), "train"
            )
            for method in METHODS
        }
        told = {json.dumps(one, sort_keys=True) for one in digests.values()}
        assert len(told) == 1
        assert None not in digests.values()


def test_a_stage_of_labels_alone_that_was_done_anew_is_taken_anew(tmp_path: Path) -> None:
    row = rows.Row("set", 2, "small", "tak", 0, str(tmp_path / "tak"), common=str(tmp_path / "supervised"))
    workspace = Workspace(Place.of(tmp_path / "tak" / "workspace"))
    stage = tmp_path / "supervised/workspace/rounds/labels-only"
    (tmp_path / "supervised/workspace/catalog").mkdir(parents=True)
    stage.mkdir(parents=True)
    for told in ("before", "anew"):
        (stage / "weights").write_text(told)
        (stage / "promote.manifest.json").write_text(json.dumps({"fingerprint": told}))
        rows._share(row, workspace)
        copied = Path(workspace.stage(-1).uri)
        assert (copied / "weights").read_text() == told
    (copied / "weights").write_text("ours since")
    rows._share(row, workspace)
    assert (copied / "weights").read_text() == "ours since"


@pytest.mark.torch
def test_a_second_run_does_nothing_and_says_the_same(bench: MethodsBench, config: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("row.json")}
    said: list[str] = []
    again = run([str(config)], seeds=2, methods=METHODS, out=out, jobs=0, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("row.json")} == before
    assert [line.split(": ")[1] for line in said] == ["done before"] * 4
    assert again.table_rows == bench.table_rows


@pytest.mark.torch
def test_the_table_grows_over_calls(bench: MethodsBench, config: Path, out: Path) -> None:
    one = run([str(config)], seeds=1, methods=["supervised"], out=out, jobs=0, say=lambda _: None)
    assert one.table_rows == bench.table_rows
    stale = next(out.rglob("mean_teacher/seed1/row.json"))
    text = stale.read_text()
    stale.write_text(json.dumps(json.loads(text) | {"fingerprint": "of something else"}))
    fewer = run([str(config)], seeds=1, methods=["supervised"], out=out, jobs=0, say=lambda _: None)
    stale.write_text(text)
    told = [(found["method"], found["seed"]) for found in fewer.table_rows]
    assert told == [("mean_teacher", 0), ("supervised", 0), ("supervised", 1)]


@pytest.mark.torch
def test_a_row_is_of_its_files_its_shelf_and_what_its_set_was_drawn_from(
    bench: MethodsBench, out: Path, tmp_path: Path
) -> None:
    folder = next(out.rglob("supervised/seed0"))
    row = rows.Row(**json.loads((folder / "order.json").read_text()))
    settings = load(folder / "campaign.yaml", RunSettings)
    assert rows.held(row, settings) is not None
    assert rows.held(replace(row, archive="another"), settings) is None
    image = next(out.glob("sets/*/archive/**/*.nii.gz"))
    status, before = image.stat(), image.read_bytes()
    try:
        image.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert rows.held(row, settings) is None
        image.write_bytes(before)
        assert image.stat().st_mtime_ns != status.st_mtime_ns
        assert rows.held(row, settings) is not None, "a copy of the same data"
    finally:
        image.write_bytes(before)
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_shelf_counts_by_what_is_in_it(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf.yaml"
    cases = sets.Cases(("a", "b"), (sets.Entry("t", "/t.nii.gz", "/l.nii.gz", "MR"),), (), ())
    place = sets.listed(cases, 1, Place.of(tmp_path))
    values = plans.campaign(sets.SETS["la"], "small", plans.spec("bcp"), 0, place, ("a", "b"), "ws")
    row = rows.Row("la", 1, "small", "bcp", 0, str(tmp_path))
    found = []
    for text in ("one", "other", "one"):
        shelf.write_text(text)
        settings = RunSettings.model_validate(values | {"priors": {"shelf": str(shelf)}})
        found.append(rows._identity(row, settings))
    assert found[0] == found[2] != found[1]


@pytest.mark.torch
def test_a_test_case_is_opened_only_after_everything_was_decided(bench: MethodsBench, out: Path) -> None:
    for workspace in out.rglob("seed0/workspace"):
        assert not list(workspace.rglob(f"scorecard.{Role.TEST.value}.json"))


@pytest.mark.process
@pytest.mark.torch
def test_a_row_that_fails_in_its_process_is_told_and_the_others_are_done(
    config: Path, tmp_path: Path
) -> None:
    methods = ["supervised@train.steps=2", "supervised@train.steps=2;train.learning_rate=1e30"]
    said: list[str] = []
    told = run([str(config)], seeds=1, methods=methods, out=tmp_path, jobs=2, say=said.append)
    assert re.match(r"small-\w+ 2 small supervised seed 0: Dice last", said[0]), "others start from it"
    assert [found["method"] for found in told.table_rows] == ["supervised", methods[0]]
    assert [found["steps"] for found in told.table_rows] == [24, 2]
    (why,) = told.failed
    assert "learning_rate=1e30 seed 0: exit code 1" in why
    assert "lower train.learning_rate" in why


def test_a_row_that_fails_in_this_process_leaves_the_others_and_the_table(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def work(row: rows.Row) -> dict[str, Any]:
        if row.method == "supervised":
            raise RuntimeError("out of memory")
        done.append(row.method)
        return {}

    monkeypatch.setattr(rows, "work", work)
    told = run(
        [str(config)], seeds=1, methods=["supervised", "bcp"], out=tmp_path, jobs=0, say=lambda _: None
    )
    assert done == ["bcp"]
    (why,) = told.failed
    assert why.endswith("supervised seed 0: RuntimeError: out of memory")
