"""The simulation of a labeling round against what can be reckoned by hand."""

from pathlib import Path

import pytest

from tutelage.bench.simulating import Costs, costs_in, labeling_s, round_s, size
from tutelage.errors import SettingsError

COSTS = Costs(
    machine="two cores",
    generalist="litemedsam",
    at_once=2,
    slow=1.0,
    spread=(1.0,),
    slices=10,
    prompts=20,
    read_s=0.1,
    specialist_s=0.4,
    embed_s=0.2,
    decode_s=0.01,
    write_s=0.1,
    rest_s=0.2,
    between_s=0.0,
    driver_s=0.0,
    start_s=15.0,
    actor_mib=500.0,
    embeddings_mb=8.0,
    labels_mb=0.5,
)
"""Three seconds a volume."""


def costs(**other: object) -> Costs:
    return COSTS.model_copy(update=other)


def test_a_volume_takes_the_sum_of_its_steps() -> None:
    assert COSTS.work_s == pytest.approx(3.0)
    assert costs(slices=20).work_s == pytest.approx(5.0)


def test_actors_share_the_volumes_and_the_start_is_paid_once() -> None:
    assert round_s(COSTS, 40, 1) == pytest.approx(15 + 120)
    assert round_s(COSTS, 40, 4) == pytest.approx(15 + 30)
    assert round_s(COSTS, 1, 4) == pytest.approx(15 + 3)


def test_what_lies_between_volumes_is_paid_for_each() -> None:
    assert labeling_s(costs(between_s=0.5), 10, 2) == pytest.approx(5 * 3.5)


def test_more_actors_than_the_driver_can_feed_bring_nothing() -> None:
    slow_driver = costs(driver_s=0.1)
    few, enough, many = (labeling_s(slow_driver, 3000, actors) for actors in (15, 30, 300))
    assert few == pytest.approx(3000 * 3 / 15, rel=0.01)
    assert enough == pytest.approx(3000 * 0.1, rel=0.02)
    assert many == pytest.approx(enough, rel=0.01)
    assert size(slow_driver, 3000, 30).useful_actors == 30


def test_stragglers_cost_most_where_an_actor_has_few_volumes() -> None:
    uneven = costs(spread=(0.5, 0.5, 2.0))
    few = labeling_s(uneven, 20, 10) / labeling_s(COSTS, 20, 10)
    many = labeling_s(uneven, 20_000, 10) / labeling_s(COSTS, 20_000, 10)
    assert few > 1.3
    assert many == pytest.approx(1.0, abs=0.05)


def test_actors_that_share_a_machine_slow_each_other_down_and_one_alone_is_not() -> None:
    shared = costs(slow=1.2)
    assert labeling_s(shared, 10, 1) == pytest.approx(30)
    assert labeling_s(shared, 10, 2) == pytest.approx(15 * 1.2)
    assert labeling_s(shared, 100, 10) == pytest.approx(30 * 1.2)


def test_a_size_tells_what_a_round_takes_and_costs() -> None:
    found = size(costs(start_s=0.0), 1200, 2, price_per_hour=0.1)
    assert found.hours == pytest.approx(0.5)
    assert found.per_actor_hour == pytest.approx(1200)
    assert found.busy == pytest.approx(1.0)
    assert found.embeddings_gb == pytest.approx(9.6)
    assert found.labels_gb == pytest.approx(0.6)
    assert found.per_1000 == pytest.approx(0.1 * 2 * 0.5 / 1.2)
    assert size(COSTS, 10, 1).per_1000 is None


def test_a_published_rate_stands_for_embedding_and_decoding_and_says_so() -> None:
    gpu = COSTS.with_profile("a100-sam-vit-b")
    assert gpu.work_s == pytest.approx(0.8 + 10 / 94.9)
    assert "as published" in gpu.machine


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(COSTS.model_dump_json(indent=1))
    assert costs_in(file) == COSTS


def test_a_file_that_holds_no_costs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text('{"machine": "two cores", "spread": []}')
    with pytest.raises(SettingsError, match="spread"):
        costs_in(file)
