"""Two processes that train one specialist: they end together, go on together, and name one culprit."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import said_by_both
from tutelage.casework.training import TrainJob
from tutelage.methods.settings import TrainSettings
from tutelage.records import Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.specialist import artifact
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = [pytest.mark.torch, pytest.mark.process]

WORKER = """
import json, pickle, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from tutelage.casework.training import train
from tutelage.casework.validating import Validator
from tutelage.errors import DivergedError, Preempted
from tutelage.methods.supervised import Supervised

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
base = pickle.loads((folder / "job.pickle").read_bytes())

def run(name, stop=lambda: False, shard=False, **changes):
    job = replace(base, out=f"{folder}/{name}", checkpoint=f"{folder}/{name}.checkpoint", **changes)
    steps, losses = [], []
    def on_step(report):
        steps.append(report.step)
        losses.append(report.loss)
    told = {"steps": steps, "losses": losses}
    try:
        return told | {"digest": train(
            job, rank=rank, world=2, wrap=DistributedDataParallel, shard=shard, on_step=on_step, stop=stop
        )}
    except (Preempted, DivergedError) as error:
        return told | {"error": str(error), "cases": getattr(error, "cases", None)}

calls = iter(range(1000))
found = {"unbroken": run("unbroken")}
# Rank 1 alone is asked, while it waits for rank 0 to look at the first of its validation cases.
found["asked"] = run("broken", lambda: rank == 1 and next(calls) >= 2)
found["resumed"] = run("broken")
calls = iter(range(1000))
found["divided, asked"] = run("changed", lambda: rank == 1 and next(calls) >= 2, shard=True)
found["divided, resumed whole"] = run("changed")
calls = iter(range(1000))
found["whole, asked"] = run("divided", lambda: rank == 1 and next(calls) >= 2, record=f"{folder}/record.json")
found["whole, resumed divided"] = run("divided", shard=True, record=f"{folder}/record.json")

losses = Supervised.losses
def spoiled(self, batch, networks, step):
    terms = losses(self, batch, networks, step)
    return {name: term * float("nan") if rank == 1 and step == 2 else term for name, term in terms.items()}
Supervised.losses = spoiled
found["spoiled"] = run("spoiled", failure=f"{folder}/failure.json")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of two processes and what each says."""
    from rich.console import Console

    folder = tmp_path_factory.mktemp("together")
    with opened(
        load(write_tiny(folder, "workspace"), RunSettings), Reporter(Console(quiet=True))
    ) as campaign:
        cases = {role: tuple(campaign.catalog.of(role)) for role in Role}
        structures = campaign.catalog.structures
    gold = cases[Role.GOLD]
    job = TrainJob(
        gold=gold,
        pseudo=(),
        labels=str(folder / "labels"),
        plan=make_plan([case.grid for case in gold], structures, 1, SpecialistSettings(channels=(4, 8))),
        settings=TrainSettings(steps=4, batch=4, warmup=1, checkpoint_every=3, validate_every=2),
        seed=0,
        out="",
        checkpoint="",
        stage="r00",
        max_voxels=10**8,
        validation=cases[Role.VALIDATION] * 2,
    )
    (folder / "job.pickle").write_bytes(pickle.dumps(job))
    return folder, [json.loads(out.splitlines()[-1]) for out in said_by_both(["-c", WORKER], folder)]


def test_loss_is_that_of_all_in_each(found: tuple[Path, list[dict[str, Any]]]) -> None:
    one, other = (told["unbroken"] for told in found[1])
    assert one == other
    assert one["steps"] == [0, 1, 2, 3]


def test_whoever_is_asked_to_end_all_end_after_the_same_step(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    one, other = (told["asked"] for told in found[1])
    assert one == other
    assert one["steps"] == [0, 1]
    assert (
        one["error"] == "training was asked to end after 2 of 4 steps. The same command goes on from step 2"
    )


def test_they_go_on_together_to_the_same_specialist(found: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (one, other) = found
    assert one["resumed"] == other["resumed"]
    assert one["resumed"]["steps"] == [2, 3]
    assert one["resumed"]["digest"] == one["unbroken"]["digest"]
    steps = sorted(path.name[:11] for path in (folder / "broken.checkpoint").iterdir())
    assert steps == ["step-000002", "step-000003"]


@pytest.mark.parametrize("order", [("divided", "whole"), ("whole", "divided")])
def test_what_learned_whole_goes_on_divided_and_the_other_way_round(
    order: tuple[str, str], found: tuple[Path, list[dict[str, Any]]]
) -> None:
    first, then = order
    (one, other), unbroken = found[1], found[1][0]["unbroken"]
    asked, resumed = one[f"{first}, asked"], one[f"{first}, resumed {then}"]
    assert (asked, resumed) == (other[f"{first}, asked"], other[f"{first}, resumed {then}"])
    assert asked["steps"] + resumed["steps"] == unbroken["steps"]
    assert asked["losses"] + resumed["losses"] == pytest.approx(unbroken["losses"], rel=1e-3)


def test_a_specialist_that_learned_divided_is_looked_at_and_kept_whole(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, (one, _) = found
    network, _, digest = artifact.load(Place.of(str(folder / "divided")))
    assert digest == one["whole, resumed divided"]["digest"]
    assert all(value.isfinite().all() for value in network.state_dict().values())
    told = json.loads((folder / "record.json").read_text())
    assert [step for step, _ in told["validation_dice"]] == [2, 4]


def test_a_loss_that_is_no_number_in_one_of_them_is_told_by_both(
    found: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, (one, other) = found
    assert one["spoiled"] == other["spoiled"]
    assert "the loss is nan in step 2 on" in one["spoiled"]["error"]
    told = json.loads((folder / "failure.json").read_text())
    assert (told["step"], told["what"], told["value"]) == (2, "loss", "nan")
    assert told["workers"] == [{"rank": 1, "cases": one["spoiled"]["cases"]}]
    assert told["cases"]
