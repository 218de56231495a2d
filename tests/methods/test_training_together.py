"""Two processes that learn together: what they share, and what each has for itself."""

import json
from pathlib import Path

import pytest

from tests.pairs import said_by_both

pytestmark = [pytest.mark.torch, pytest.mark.process]

WORKER = """
import json, sys
import numpy as np, torch
from torch.nn.parallel import DistributedDataParallel
from tutelage.casework.workers import Workers
from tutelage.geometry import Grid
from tutelage.methods.base import Resources
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Around, fit
from tutelage.specialist.artifact import digest_of_state
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings

rank, method, folder = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
grid = Grid.from_spacing((4, 16, 16), (1.0, 1.0, 1.0))
plan = make_plan([grid], ["a", "b"], 1, SpecialistSettings(channels=(4, 8)))
settings = TrainSettings(method=method, steps=4, batch=4, checkpoint_every=2)

def sample(seed, gold):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 3, (2, 4, 4)), np.ones((2, 4, 4), int)).astype(np.uint8)
    image = (label + rng.normal(0, 0.3, label.shape)).astype(np.float32)[None]
    return Sample(f"{seed}", image, label if gold else None, None, (), gold)

samples = [sample(seed, seed < 3) for seed in range(6)]
torch.manual_seed(rank)  # joining makes the first process's weights those of both
made = method_class(method)(plan, settings, Resources())
networks = made.networks()
reports = []
around = Around(
    wrap=lambda learner: DistributedDataParallel(learner, find_unused_parameters=True),
    total=lambda counts: Workers(rank, 2).total(counts | {"rank": rank + 1.0}),
    on_step=reports.append,
)
batches = Batches(samples, plan, settings, 0, rank, 2)
trained = fit(made, networks, batches, settings, around)
print(json.dumps({
    "weights": {name: digest_of_state(one.state_dict()) for name, one in networks.items()},
    "seeds": batches.at(0).labeled.seeds,
    "losses": [report.loss for report in reports],
    "counts": trained.counts["rank"],
}))
"""


@pytest.mark.parametrize("method", ["ua_mt", "cps"])
def test_networks_of_both_stay_the_same_and_only_their_patches_differ(method: str, tmp_path: Path) -> None:
    one, other = (json.loads(out.splitlines()[-1]) for out in said_by_both(["-c", WORKER], method, tmp_path))
    assert len(one["weights"]) == 2
    assert one["weights"] == other["weights"]
    assert one["losses"] == other["losses"]
    assert one["seeds"] != other["seeds"]
    assert one["counts"] == other["counts"] == 3.0
