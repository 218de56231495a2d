"""Custom resources: work that asks for one lands on nodes that give it, and nowhere else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.nodes import ENVIRONMENT, HEAD, NODES, Cluster
from tutelage.cluster.settings import ClusterSettings
from tutelage.cluster.texts import reserved
from tutelage.errors import SettingsError
from tutelage.priors.settings import EngineSettings
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


@pytest.mark.parametrize(
    "setting",
    [
        "cluster.resources_per_actor",
        "cluster.resources_per_train_worker",
        "cluster.resources_per_asker",
        "priors.engine.resources",
    ],
)
def test_cores_and_gpus_are_not_asked_for_as_custom_resources(setting: str) -> None:
    for wrong in ("GPU: 1", "memory: 1000"):
        with pytest.raises(SettingsError, match=rf"{setting}.*which every node has"):
            load(QUICKSTART, RunSettings, [f"{setting}={{{wrong}}}"])
    with pytest.raises(SettingsError, match=rf"{setting}.encoder: found 0"):
        load(QUICKSTART, RunSettings, [f"{setting}.encoder=0"])
    load(QUICKSTART, RunSettings, [f"{setting}.encoder=0.5"])


def test_an_engine_reserves_its_resources_beside_cores_and_gpu() -> None:
    assert reserved(EngineSettings()) == {"CPU": 1.0}
    told = EngineSettings(gpus=2, cpus=8, resources={"llm": 1})
    assert reserved(told) == {"CPU": 8.0, "GPU": 1, "llm": 1.0}


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.usefixtures("local_ray")
def test_training_workers_ask_for_their_resources(tmp_path: Path) -> None:
    from tutelage.cluster import training

    job: Any = SimpleNamespace(out=str(tmp_path / "specialist"))
    told = ClusterSettings(resources_per_actor={"encoder": 1}, resources_per_train_worker={"training": 1})
    begun = training._Training(job, told, lambda report: None, None, None, lambda: False)  # type: ignore[arg-type]
    try:
        asked = begun._trainer().scaling_config.resources_per_worker
    finally:
        begun.close()
    assert asked == {"CPU": 1.0, "training": 1.0}


class _Heard(Exception):  # noqa: N818 - no error
    """What a process would have been started with."""


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_askers_ask_for_their_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from tutelage.cluster.asking import askers

    class Kind:
        def options(self, **words: Any) -> None:
            raise _Heard(words)

    monkeypatch.setattr(ray, "remote", lambda kind: Kind())
    job: Any = None
    for resources in ({"encoder": 0.5}, {}):
        told = ClusterSettings(askers=1, resources_per_asker=resources)
        with pytest.raises(_Heard) as heard, askers(job, told):
            pass
        assert heard.value.args[0]["resources"] == (resources or None)


# --- on real nodes ----------------------------------------------------------------------------------

WORK = """
import json, os, sys, time
from pathlib import Path
import pyarrow as pa
import ray
from tutelage.archive.cases import Cases
from tutelage.casework.base import Limit, Needs, Worker
from tutelage.cluster.cases import each
from tutelage.cluster.session import session
from tutelage.cluster.settings import ClusterSettings
from tutelage.geometry import Grid
from tutelage.records import Case, Role

class Anywhere(Worker):
    actors = 3  # none ends its first case before each has one: the first to come could do all alone

    def __init__(self, here):
        self.here = Path(here, type(self).__name__)
        self.here.mkdir(exist_ok=True)
        self.node = ray.util.get_node_ip_address()

    def work(self, case):
        (self.here / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(self.here.iterdir())) < self.actors:
            if time.monotonic() > until:
                raise RuntimeError("not every actor has a case")
            time.sleep(0.05)
        return {"node": self.node}

class Encoder(Anywhere):
    needs = Needs(gpu=True)
    actors = 2  # of three, for which there are resources

address, folder = sys.argv[1:]
grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
cases = [
    Case(f"c{n:02d}", f"p{n}", Role.UNLABELED, f"{n}.nii", None, None, "CT", grid, 1, "0") for n in range(12)
]
items = Cases.of(cases).table.append_column("of", pa.array(["x"] * len(cases)))
told = ClusterSettings(
    address=address, actors=3, cpus_per_actor=0.5, resources_per_actor={"encoder": 1}
)
marks = Limit(2, folder + "/marks")
with session(told):
    nodes = {
        kind.__name__: sorted(row["node"] for row in each(kind, folder, items, marks, told))
        for kind in (Encoder, Anywhere)
    }
print(json.dumps(nodes))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Have a head with cores for all actors, and a node with `encoder` and cores for two of three."""
    made = Cluster(tmp_path)
    port = made.address.rpartition(":")[2]
    try:
        made.start(HEAD, "--head", f"--port={port}", "--num-cpus=8", "--include-dashboard=false")
        made.start(NODES[0], f"--address={made.address}", "--num-cpus=1", '--resources={"encoder": 2}')
        yield made
    finally:
        made.close()


@pytest.mark.ray
@pytest.mark.slow
def test_actors_land_only_where_their_resource_is(cluster: Cluster, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK, cluster.address, str(tmp_path)],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Dataset" not in done.stderr, "Ray Data tells of executions, which nobody asked"
    nodes = json.loads(done.stdout.splitlines()[-1])
    assert nodes["Encoder"] == [NODES[0]] * 12
    assert len(nodes["Anywhere"]) == 12
    assert set(nodes["Anywhere"]) != {NODES[0]}, "they land there by themselves, which shows nothing"
