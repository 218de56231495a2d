"""The methods bench: which rows there are, that a row is a campaign, and that tables say what rows say."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tutelage.bench import plans, sets, tables
from tutelage.bench.methods import MethodsBench, measured, run
from tutelage.errors import ArchiveError, SettingsError
from tutelage.evaluation.scorecard import MEASURES
from tutelage.records import Role
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import read_manifest
from tutelage.storage import Place

METHODS = ("supervised", "mean_teacher")
WriteTiny = Callable[[Path, str], Path]


def entries(*names: str) -> tuple[sets.Entry, ...]:
    return tuple(sets.Entry(name, f"/images/{name}.nii.gz", f"/labels/{name}.nii.gz", "MR") for name in names)


CASES = sets.Cases(("a", "b"), entries("t0", "t1", "t2"), entries("v0"), entries("x0"))


# --- rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("guessing", "no method named 'guessing'"),
        ("tak@no_such_thing", "no variant 'no_such_thing' of tak in --methods; it has random_text"),
        ("bcp@no_text", "it has none"),
    ],
)
def test_an_unknown_method_or_variant_is_told_the_known_ones(text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        plans.spec(text)


def test_a_variant_is_a_method_with_settings_that_differ() -> None:
    written = plans.spec("tutelage@no_text")
    assert (written.method, written.overrides) == ("tutelage", ("train.tutelage.text=null",))
    own = plans.spec("tak@train.batch=4;seed=3")
    assert own.overrides == ("train.batch=4", "seed=3")
    assert plans.spec("ceiling").method == "supervised"


def every_spec() -> list[str]:
    return [*plans.ALL, *(f"{method}@{name}" for method, there in plans.VARIANTS.items() for name in there)]


@pytest.mark.parametrize("budget", ["small", "full"])
@pytest.mark.parametrize("name", sets.SETS)
def test_every_row_of_every_set_has_settings_that_can_be_used(
    name: str, budget: sets.BudgetName, tmp_path: Path
) -> None:
    place = sets.listed(CASES, 2, Place.of(tmp_path))
    for text in every_spec():
        values = plans.campaign(
            sets.SETS[name], budget, plans.spec(text), 1, place, CASES.structures, str(tmp_path / "ws")
        )
        settings = RunSettings.model_validate(values)
        assert list(settings.problems()) == [], text
        assert settings.train.method == plans.spec(text).method
        assert (settings.seed, settings.cluster.backend, settings.tracking.enabled) == (1, "local", False)
        assert settings.train.validate_every


def test_rows_of_a_set_differ_only_where_methods_may(tmp_path: Path) -> None:
    place = sets.listed(CASES, 2, Place.of(tmp_path))

    def told(text: str) -> dict[str, Any]:
        spec = plans.spec(text)
        values = plans.campaign(sets.SETS["hippocampus"], "small", spec, 0, place, ("a", "b"), "ws")
        return RunSettings.model_validate(values).model_dump()

    base = told("supervised")
    for text in plans.ALL:
        found = told(text)
        for same in ("archive", "specialist", "evaluation", "prompts", "priors", "seed"):
            assert found[same] == base[same], text
        for same in ("steps", "batch", "augment", "learning_rate", "gold_share", "validate_every", "select"):
            assert found["train"][same] == base["train"][same], text


def test_the_first_training_cases_are_annotated_and_others_keep_their_labels_hidden(tmp_path: Path) -> None:
    lines = sets.listed(CASES, 1, Place.of(tmp_path)).read_text().splitlines()
    roles = {line.split(",")[0]: line.split(",")[-1] for line in lines[1:]}
    assert roles == {"t0": "gold", "t1": "unlabeled", "t2": "unlabeled", "v0": "validation", "x0": "test"}
    fewer = sets.listed(CASES, 1, Place.of(tmp_path), unlabeled=1).read_text()
    assert ("t1" in fewer, "t2" in fewer, "v0" in fewer, "x0" in fewer) == (True, False, True, True)
    all_of_them = sets.listed(CASES, None, Place.of(tmp_path)).read_text()
    assert all_of_them.count("gold") == 3
    with pytest.raises(SettingsError, match="expected 1 to the 3 there are"):
        sets.listed(CASES, 4, Place.of(tmp_path))


# --- sets ---------------------------------------------------------------------------------


def dataset(folder: Path, train: list[str], **splits: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"splits": {"train": train, **splits}}))


def test_validation_is_taken_off_the_training_cases_where_a_split_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path))
    dataset(tmp_path / "la", [f"case{n:02d}" for n in range(80)], test=["other"])
    cases = sets.cases_of(sets.SETS["la"], Place.of(tmp_path))
    assert [entry.case for entry in cases.validation] == [f"case{n}" for n in range(72, 80)]
    assert [entry.case for entry in cases.train] == [f"case{n:02d}" for n in range(72)]
    assert [entry.case for entry in cases.test] == ["other"]


def test_a_training_picture_that_is_nearly_a_test_picture_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path))
    dataset(
        tmp_path / "kvasir_seg", ["train_0221", "train_0222", "train_0223"], val=["v"], test=["test_0016"]
    )
    cases = sets.cases_of(sets.SETS["kvasir_seg"], Place.of(tmp_path))
    assert [entry.case for entry in cases.train] == ["train_0221", "train_0223"]


def test_data_that_are_not_here_are_said_so_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ArchiveError, match="set TUTELAGE_DATA to the folder that holds it"):
        run(["phantom", "hippocampus"][1:], out=tmp_path / "out", methods=["supervised"])
    assert not list((tmp_path / "out").rglob("row.json"))
    with pytest.raises(SettingsError, match="expected hippocampus, la, kvasir_seg, phantom"):
        run(["hippocampi"], out=tmp_path / "out")


@pytest.mark.parametrize("name", ["hippocampus", "la", "kvasir_seg"])
def test_a_published_set_is_what_its_description_says(name: str) -> None:
    if not (sets.data() / name).is_dir():
        pytest.skip(f"no {name} in {sets.data()}; set TUTELAGE_DATA to the folder that holds it")
    cases = sets.cases_of(sets.SETS[name], Place.of("/nowhere"))
    counts = (len(cases.train), len(cases.validation), len(cases.test))
    assert counts == {"hippocampus": (182, 26, 52), "la": (72, 8, 20), "kvasir_seg": (799, 100, 100)}[name]
    everyone = [*cases.train, *cases.validation, *cases.test]
    assert len({entry.case for entry in everyone}) == sum(counts)
    assert all(Path(entry.image).exists() and Path(entry.label or "").exists() for entry in everyone)


# --- tables -------------------------------------------------------------------------------


def result(method: str, seed: int, dice: float, best: float | None = None) -> dict[str, Any]:
    def test(value: float) -> dict[str, Any]:
        by_measure: dict[str, float | None] = {**dict.fromkeys(MEASURES, 2.0), "dice": value}
        nothing: dict[str, float | None] = dict.fromkeys(MEASURES)
        return {pieces: {"a": by_measure, "b": nothing, "mean": by_measure} for pieces in ("all", "largest")}

    return {
        "set": "toy",
        "labeled": 2,
        "budget": "small",
        "method": method,
        "seed": seed,
        "structures": ["a", "b"],
        "cases": {"gold": 2, "unlabeled": 3, "validation": 1, "test": 1},
        "test": {"last": test(dice)} | ({} if best is None else {"best": test(best)}),
        "seconds": {"train": 60.0, "evaluate": 30.0},
        "steps": 12,
        "generalist_calls": 7,
        "peak_mib": 500,
    }


RESULTS = [
    *(result("supervised", seed, dice, dice + 0.01) for seed, dice in enumerate((0.5, 0.6, 0.7))),
    *(result("bcp", seed, dice) for seed, dice in enumerate((0.7, 0.7, 0.7))),
    *(result("ceiling", seed, dice) for seed, dice in enumerate((0.8, 0.8, 0.8))),
]


def test_the_deviation_over_seeds_is_that_of_a_sample() -> None:
    (line, *_) = tables.lines(RESULTS)
    found = line.of("dice", "last", "all")
    assert found is not None
    assert found.values == (0.5, 0.6, 0.7)
    assert found.mean == pytest.approx(0.6)
    assert found.sd == pytest.approx(statistics.stdev([0.5, 0.6, 0.7])) == pytest.approx(0.1)
    assert tables.spread([0.5]) == tables.Spread(0.5, None, (0.5,))
    assert tables.spread([None]) is None


def test_seeds_are_in_order_and_a_method_without_best_weights_shows_its_last() -> None:
    lines = {line.method: line for line in tables.lines(reversed(RESULTS))}
    found = lines["supervised"].of("dice", "best", "all")
    assert found is not None
    assert found.values == pytest.approx((0.51, 0.61, 0.71))
    assert lines["bcp"].of("dice", "best", "all") == lines["bcp"].of("dice", "last", "all")
    assert lines["bcp"].of("dice", "last", "all", "b") is None


def test_markdown_holds_every_method_every_measure_and_the_gap() -> None:
    text = tables.markdown(tables.lines(RESULTS), {"toy": ("a",)})
    assert "| supervised | 0.600 ± 0.100 | 0.610 ± 0.100 |" in text
    assert "| bcp | bcp" not in text
    line = next(line for line in text.splitlines() if line.startswith("| bcp | 0.700"))
    assert line.endswith("| 50% |")
    for heading in (
        "Jaccard",
        "HD95 mm",
        "ASD mm",
        "HD95 voxels",
        "ASD voxels",
        "rare structures",
        "peak MiB",
    ):
        assert heading in text
    assert "| bcp | 3 | 12 ± 0 | 1.5 ± 0.0 | 500 ± 0 | 7 ± 0 |" in text


def test_every_method_is_measured_against_the_labels_alone_and_the_ceiling() -> None:
    found = {row.measure: row for row in measured(tables.lines(RESULTS))}
    dice = found["methods.toy-2.small.bcp.dice"]
    assert (dice.peer, dice.better, dice.met) == ("supervised", "higher", True)
    assert dice.ratio == pytest.approx(0.7 / 0.6)
    assert found["methods.toy-2.small.bcp.gap_closed"].ratio == pytest.approx(0.5)
    assert not [name for name in found if ".supervised." in name or "ceiling.gap" in name]


@pytest.mark.heavy
def test_the_plot_has_a_point_for_every_seed() -> None:
    svg = tables.plot(tables.lines(RESULTS)).decode()
    assert svg.startswith("<?xml")
    for word in ("supervised", "bcp", "ceiling", "toy, 2 labeled, budget small"):
        assert word in svg
    points = svg.count("<use ")
    more = [*RESULTS, result("cps", 0, 0.5)]
    assert tables.plot(tables.lines(more)).decode().count("<use ") > points


# --- doing rows ---------------------------------------------------------------------------


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
        assert one["steps"] == (24 if one["method"] == "supervised" else 48)
        assert one["cases"] == {"gold": 2, "test": 1, "unlabeled": 4, "validation": 1}
        assert one["peak_mib"] > 0


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


@pytest.mark.torch
def test_a_second_run_does_nothing_and_says_the_same(bench: MethodsBench, config: Path, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("row.json")}
    said: list[str] = []
    again = run([str(config)], seeds=2, methods=METHODS, out=out, jobs=0, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("row.json")} == before
    assert [line.split(": ")[1] for line in said] == ["done before"] * 4
    assert again.table_rows == bench.table_rows


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
    assert said[0].startswith("small 2 small supervised seed 0: Dice last"), "others start from it"
    assert [found["method"] for found in told.table_rows] == methods[:1]
    assert told.table_rows[0]["steps"] == 2
    (why,) = told.failed
    assert "learning_rate=1e30 seed 0: exit code 1" in why
    assert "lower train.learning_rate" in why
