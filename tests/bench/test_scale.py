"""What the scale bench makes of what it saw, and of what it was told."""

from pathlib import Path

import pytest
from rich.table import Table

from tests.bench.test_simulating import COSTS
from tutelage.bench.labeling import Look
from tutelage.bench.scale import PARTS, Sizes, chosen, driver_mib, profile_of, run, whole_numbers
from tutelage.errors import SettingsError


def looks(mib: list[float]) -> list[Look]:
    return [Look(float(second), one, 0.0) for second, one in enumerate(mib)]


def test_the_driver_is_flat_where_only_its_start_takes_memory() -> None:
    middle_mib, end_mib = driver_mib(looks([*range(0, 500, 10), *[500.0] * 50]), labeled_s=98)
    assert [middle_mib, end_mib] == pytest.approx([500, 500])


def test_a_driver_that_grows_is_seen() -> None:
    middle_mib, end_mib = driver_mib(looks([500.0 + 2 * second for second in range(101)]), labeled_s=100)
    assert [middle_mib, end_mib] == pytest.approx([600, 700])


def test_parts_are_chosen_by_name() -> None:
    assert chosen("tiny, overhead") == ("tiny", "overhead")
    assert chosen(",".join(PARTS)) == PARTS
    with pytest.raises(SettingsError, match="--parts: found 'speed', expected some of memory, million"):
        chosen("memory,speed")


def test_numbers_of_volumes_are_numbers() -> None:
    assert whole_numbers("10000, 20") == (10_000, 20)
    for wrong in ("", "0", "10,", "1e4", "-5"):
        with pytest.raises(SettingsError, match="--volumes: found"):
            whole_numbers(wrong)


def test_only_a_gpu_of_which_something_is_published_can_be_named() -> None:
    assert profile_of(None) is None
    assert profile_of("a100-sam-vit-b") == "a100-sam-vit-b"
    with pytest.raises(SettingsError, match="--gpu-profile: found 'h200', expected a100-sam-vit-b or"):
        profile_of("h200")


def test_costs_that_were_measured_before_are_enough_to_predict(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(COSTS.model_dump_json())
    shown: list[Table] = []
    sizes = Sizes(simulated=(100, 1000), actors=4, price_per_hour=0.5, costs=file, profile="a100-sam-vit-b")

    bench = run(("simulate",), sizes, shown.append)

    assert [row.measure for row in bench.rows] == ["scale.predicted_100", "scale.predicted_1000"]
    assert all(row.ratio == pytest.approx(row.ours / row.theirs) and row.ratio >= 1 for row in bench.rows)
    assert "a100-sam-vit-b: 94.9 slices a second as published" in str(shown[0].title)
    assert shown[0].row_count == 2
