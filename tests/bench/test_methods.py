"""The methods bench: which rows there are, that a row is a campaign, and that tables say what rows say."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.bench import plans, sets, tables
from tutelage.bench.methods import measured, run
from tutelage.errors import ArchiveError, SettingsError
from tutelage.evaluation.scorecard import MEASURES
from tutelage.geometry import Grid
from tutelage.rounds.settings import RunSettings
from tutelage.storage import Place

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
    own = plans.spec("tak@train.batch=4;train.steps=200")
    assert own.overrides == ("train.batch=4", "train.steps=200")
    assert plans.spec("ceiling").method == "supervised"


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("seed=3", "ask for more with --seeds"),
        ("archive.max_voxels=9", "choose the set with --archive"),
        ("workspace=elsewhere", "choose the folder with --out"),
        (" name =other", "rows are named after their method"),
    ],
)
def test_a_variant_cannot_make_it_another_row(override: str, instead: str) -> None:
    with pytest.raises(SettingsError, match=f"all methods have in common; leave it out, {instead}"):
        plans.spec(f"tak@train.batch=4;{override}")


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


def test_a_set_without_its_shelf_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "ROOT", tmp_path / "wheel")
    with pytest.raises(SettingsError, match=r"no shelf of priors at .*torso.yaml.*from a checkout"):
        run(["phantom"], out=tmp_path / "out", methods=["supervised"])
    assert not (tmp_path / "out").exists()


def test_files_of_one_name_are_two_sets(tmp_path: Path, write_tiny: WriteTiny) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    one, other = (write_tiny(folder, "small") for folder in folders)
    same = sets.find(str(one)).name
    assert same == sets.find(str(other)).name, "a workspace is no part of a set"
    other.write_text(other.read_text().replace("9.0, 9.0", "8.0, 8.0"))
    assert sets.find(str(other)).name != same
    assert same.startswith("small-")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm", "channels"),
    [
        ("hippocampus", (36, 50, 35), (1.0, 1.0, 1.0), 1),
        ("la", (88, 200, 200), (0.625, 0.625, 0.625), 1),
        ("kvasir_seg", (1, 530, 620), (1.0, 1.0, 1.0), 3),
        ("phantom", (18, 92, 123), (12.0, 3.0, 3.0), 1),
    ],
)
def test_a_small_row_takes_a_core_no_more_than_two_minutes(
    name: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], channels: int
) -> None:
    """By arithmetic, which is the same on every machine: a slow core does about 0.1 TFLOP/s."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tutelage.specialist import network
    from tutelage.specialist.plan import make_plan

    one = sets.SETS[name]
    values = plans.campaign(one, "small", plans.spec("supervised"), 0, Place.of("list.csv"), ("a", "b"), "ws")
    settings = RunSettings.model_validate(values)
    plan = make_plan([Grid.from_spacing(shape, spacing_mm)], ("a", "b"), channels, settings.specialist)
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        image_BCDHW = torch.empty(settings.train.batch, channels, *plan.patch)
        network.build(plan)(image_BCDHW).sum().backward()
    assert counted.get_total_flops() * settings.train.steps < 1.2e13


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
    assert "shared within a set" in text
    assert "steps of every round" in text


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
