"""What is wrong with a cluster's settings is told before anything starts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import SettingsError
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


def test_a_number_of_workers_may_be_a_range() -> None:
    assert list(ClusterSettings(backend="ray", train_workers=3).worker_counts) == [3]
    assert list(ClusterSettings(backend="ray", train_workers=(1, 3)).worker_counts) == [1, 2, 3]
    assert list(ClusterSettings(backend="local", train_workers=(1, 3)).worker_counts) == [1]


@pytest.mark.parametrize("workers", [0, (2, 1), (0, 1), [1, 2, 3], "two", 1.5, True])
def test_no_other_number_of_workers_is_taken(workers: object) -> None:
    with pytest.raises(ValidationError, match="expected"):
        ClusterSettings.model_validate({"train_workers": workers})


def test_a_batch_must_suit_every_number_of_workers_that_may_come() -> None:
    told = ["train.batch=4", "cluster.train_workers=[1, 3]"]
    with pytest.raises(SettingsError, match=r"found 4, which 3 workers cannot share; take a multiple of 6"):
        load(QUICKSTART, RunSettings, told)
    assert load(QUICKSTART, RunSettings, ["train.batch=6", *told[1:]]).train.batch == 6


@pytest.mark.parametrize("name", ["gpus_per_actor", "gpus_per_asker", "gpus_per_train_worker"])
def test_a_gpu_and_a_half_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"cluster\.{name}: found 1\.5; take a share"):
        load(QUICKSTART, RunSettings, [f"cluster.{name}=1.5"])


def test_workers_that_learn_together_share_no_gpu() -> None:
    with pytest.raises(SettingsError, match="cannot share a GPU"):
        load(QUICKSTART, RunSettings, ["cluster.gpus_per_train_worker=0.5"])
    alone = ["cluster.gpus_per_train_worker=0.5", "cluster.train_workers=1"]
    assert load(QUICKSTART, RunSettings, alone).cluster.gpus_per_train_worker == 0.5


def test_askers_are_harmless_where_nothing_asks() -> None:
    assert load(QUICKSTART, RunSettings, ["cluster.askers=2"]).cluster.askers == 2


OF_TEXT = "train.tutelage.text=bottleneck"
SHARDS = ["cluster.shard=true", "cluster.backend=ray"]


def test_what_nobody_shares_cannot_be_divided() -> None:
    with pytest.raises(SettingsError, match=r"cluster\.shard: found true, but one process trains alone"):
        load(QUICKSTART, RunSettings, [*SHARDS, "cluster.train_workers=1"])
    told = [*SHARDS, "cluster.train_workers=[1, 2]", "train.batch=4"]
    assert load(QUICKSTART, RunSettings, told).cluster.shard


@pytest.mark.parametrize("told", [["train.method=llm_segnet"], ["train.method=tutelage", OF_TEXT]])
def test_a_method_with_a_weight_that_is_one_number_cannot_be_divided(told: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"cluster\.shard: found true, but .* take one of supervised"):
        load(QUICKSTART, RunSettings, [*SHARDS, "train.batch=4", *told])
