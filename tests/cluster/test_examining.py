"""What nodes are asked, what hangs there, and that nothing is left behind."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from tests.cluster.nodes import ENVIRONMENT, HEAD, NODES, Cluster
from tutelage.cluster.examining import Node, examined, rooms, shared
from tutelage.cluster.looking import Look, Skew, Wanted, at_once, gpus_of, measured, workspace
from tutelage.cluster.settings import ClusterSettings

GIVEN = {"CPU": 8.0, "GPU": 1.0, "memory": 2.0**30, "node:10.0.0.2": 1.0, "encoder": 1.0}


def node(**resources: float) -> Node:
    return Node("a1", "10.0.0.2", False, GIVEN | resources, None)


def test_a_clock_is_compared_by_the_question_that_took_least_time() -> None:
    """Ours runs 3.25 s ahead; the second of two questions takes a tenth of the first."""
    at = [0.0]
    ways = cycle([1.0, 0.0, 0.05, 0.05])

    def ask() -> float:
        at[0] += next(ways)
        theirs = at[0] - 3.25
        at[0] += next(ways)
        return theirs

    skew = measured(ask, lambda: at[0], times=2)
    assert skew.ahead_s == pytest.approx(3.25)
    assert skew.within_s == pytest.approx(0.05)


def test_the_way_there_is_no_difference_of_clocks() -> None:
    at = [100.0]

    def ask() -> float:
        at[0] += 4
        return at[0]

    assert measured(ask, lambda: at[0]) == Skew(-2.0, 2.0)


def test_gpus_are_read_as_their_driver_prints_them() -> None:
    two = gpus_of("NVIDIA H200, 143771, 570.86.15\nNVIDIA L4, 23034, 570.86.15\n")
    assert [(gpu.name, round(gpu.memory_gib), gpu.driver) for gpu in two] == [
        ("NVIDIA H200", 140, "570.86.15"),
        ("NVIDIA L4", 22, "570.86.15"),
    ]
    assert gpus_of("") == ()


def test_a_look_that_hangs_or_fails_costs_the_others_nothing() -> None:
    release = threading.Event()

    def hangs() -> Look:
        release.wait(60)
        return Look(True, "too late")

    def fails() -> Look:
        raise OSError("stale file handle\nmore of it")

    found = at_once({"hangs": hangs, "fails": fails, "works": lambda: Look(True, "fine")}, 0.3)
    release.set()
    assert found["works"] == Look(True, "fine")
    assert found["fails"] == Look(False, "stale file handle")
    assert found["hangs"] == Look(False, "no answer within 0.3 s")


def test_a_workspace_is_written_and_read_and_nothing_stays_of_it(tmp_path: Path) -> None:
    wanted = Wanted(str(tmp_path / "deep" / "ws"))
    with shared(wanted) as (told, written):
        assert written.right
        assert workspace(told).right
        assert [path.name for path in Path(wanted.workspace).iterdir()] == [told.token]
    assert not list(tmp_path.iterdir())

    Path(wanted.workspace).mkdir(parents=True)
    with shared(wanted) as (told, _):
        assert workspace(told).right
    assert Path(wanted.workspace).is_dir(), "it was there before"


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_workspace(tmp_path: Path) -> None:
    look = workspace(Wanted(str(tmp_path / "ws"), token=".doctor-written-elsewhere"))
    assert not look.right
    assert "another folder" in look.told
    assert not list(tmp_path.iterdir()), "a node must not make what only looks like the workspace"


def test_a_workspace_that_cannot_be_written_from_here_is_still_asked_about(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with shared(Wanted(str(tmp_path / "file" / "ws"))) as (wanted, written):
        assert not written.right
        assert wanted.token is None
    assert at_once({"workspace": lambda: workspace(wanted)}, 10)["workspace"].right is False


def test_only_what_a_node_was_given_is_a_custom_resource() -> None:
    assert node().custom == {"encoder": 1.0}
    assert node(**{"accelerator_type:L4": 1.0}).custom == {"encoder": 1.0}


def test_room_is_counted_in_cores_gpus_and_custom_resources() -> None:
    told = ClusterSettings(
        backend="ray",
        gpus_per_actor=0.1,
        resources_per_actor={"encoder": 0.1},
        train_workers=(3, 4),
        cpus_per_train_worker=4,
        resources_per_train_worker={"training": 1},
        askers=1,
    )
    found = {room.what: room for room in rooms([node(), node(training=4)], told)}
    assert (found["actors"].there, found["actors"].least) == (20, 1)
    assert found["actors"].each == {"GPU": 0.1, "encoder": 0.1}, "an actor with a GPU takes no core"
    assert (found["train_workers"].there, found["train_workers"].least) == (2, 3)
    assert found["askers"].there == 16
    assert "askers" not in {room.what for room in rooms([node()], ClusterSettings(backend="ray"))}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_node_that_does_not_answer_in_time_is_told_so() -> None:
    (one,) = examined(None, ["ray"], 0.001)
    assert one.answer is None
    assert one.silent == "no answer within 0.001 s"
    assert one.head


# --- on real nodes ----------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Have a head without cores, and a node that gives `encoder` and spills where it was told."""
    made, spill = Cluster(tmp_path), tmp_path / "spill"
    spill.mkdir()
    port = made.address.rpartition(":")[2]
    try:
        made.start(HEAD, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        made.start(
            NODES[0], f"--address={made.address}", "--num-cpus=2", '--resources={"encoder": 1}',
            f"--object-spilling-directory={spill}",
        )  # fmt: skip
        yield made
    finally:
        made.close()


@pytest.mark.ray
@pytest.mark.slow
def test_every_node_of_a_cluster_is_looked_at(
    cluster: Cluster, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = ["--address", cluster.address, str(tiny_config("ws")), "cluster.resources_per_actor.encoder=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tutelage.cli", "doctor", *asked, "cluster.askers=9", "--json"],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    head, other = sorted(told["nodes"], key=lambda each: not each["head"])
    assert (head["resources"].get("CPU", 0), other["address"], other["custom"]) == (
        0,
        NODES[0],
        {"encoder": 1},
    )
    assert {disk["folder"] for disk in other["answer"]["disks"]} >= {str(tmp_path / "spill")}
    for each in (head, other):
        assert each["answer"]["versions"]["python"] == sys.version.split()[0]
        assert abs(each["answer"]["skew"]["ahead_s"]) < 1
        assert each["answer"]["looks"]["workspace"]["right"]
    findings = {finding["what"]: finding for finding in told["findings"]}
    assert findings["actors"] == {
        "what": "actors",
        "state": "ok",
        "told": "room for 1 of 1 CPU and 1 encoder each",
    }
    assert findings["askers"]["state"] == "absent"
    assert "expected 9" in findings["askers"]["told"]
    assert findings["work"]["told"] == "1 of 1 nodes with cores can work"
    assert not (tmp_path / "ws").exists(), "looking leaves nothing"
