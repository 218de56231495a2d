"""The doctor looks at this machine, or at the nodes of a cluster, and tells what will not work."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tutelage import doctor
from tutelage.cli import main
from tutelage.cluster.examining import Node
from tutelage.cluster.looking import Answer, Disk, Gpu, Look, Skew, Wanted
from tutelage.doctor import Finding, examine, usable
from tutelage.generalists.fetching import FOLDER_VARIABLE
from tutelage.generalists.weights import SHELF, find
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load


@pytest.mark.torch
def test_a_machine_that_runs_these_tests_is_usable() -> None:
    found = {finding.what: finding for finding in examine()}
    assert usable(list(found.values()))
    assert found["litemedsam"].state == "ok"
    assert "sha256 verified" in found["litemedsam"].told
    assert found["serving"].state == "ok"


@pytest.mark.torch
def test_an_extra_that_is_not_installed_says_how_to_install_it() -> None:
    absent = [f for f in examine() if f.what.startswith("extra ") and f.state == "absent"]
    for finding in absent:
        assert f"pip install 'tutelage[{finding.what.removeprefix('extra ')}]'" in finding.told


@pytest.mark.torch
def test_dicom_without_its_decoders_is_said_to_lack_compressed_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {finding.what: finding for finding in examine()}
    assert here["extra dicom"].state == "ok"
    assert "imagecodecs" not in here
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "imagecodecs" else find_spec(name))
    without = {finding.what: finding for finding in examine()}
    assert without["extra dicom"].state == "ok"
    assert without["imagecodecs"].state == "absent"
    assert "adds compressed DICOM pixels" in without["imagecodecs"].told


@pytest.mark.torch
def test_what_is_altered_is_not_passed_off_as_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHELF, "litemedsam", replace(SHELF["litemedsam"], sha256="0" * 64))
    (weights,) = [finding for finding in examine() if finding.what == "litemedsam"]
    assert weights.state == "absent"
    assert "expected the published" in weights.told


@pytest.mark.torch
def test_every_checkpoint_is_said_to_be_here_or_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / SHELF["mobilesam"].file).write_bytes(b"something")
    found = {finding.what: finding for finding in examine()}
    assert found["mobilesam"].state == "ok"
    assert "weights verify mobilesam" in found["mobilesam"].told
    for name in set(SHELF) - {"litemedsam", "mobilesam"}:
        assert found[name].state == "absent"
        assert f"tutelage weights pull {name}" in found[name].told


@pytest.mark.parametrize(("state", "expected"), [("ok", True), ("absent", True), ("missing", False)])
def test_only_what_everything_needs_makes_a_machine_unusable(state: str, expected: bool) -> None:
    assert usable([Finding("thing", state, "")]) is expected  # type: ignore[arg-type]


@pytest.mark.torch
def test_findings_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["usable"] is True


# --- a cluster --------------------------------------------------------------------------------------

HERE = dict.fromkeys(doctor._REQUIRED, "1.0") | {"python": "3.11.7", "tutelage": "0.1.0"}
RIGHT = Look(True, "written, read and removed")


def answer(**told: Any) -> Answer:
    plain: dict[str, Any] = {
        "versions": HERE,
        "cores": 4,
        "disks": (Disk("/tmp", 50.0),),
        "gpus": (),
        "skew": Skew(0.001, 0.002),
    }
    return Answer(**plain | told)


def node(number: int, found: Answer | None = None, silent: str = "", **resources: float) -> Node:
    return Node(f"{number:x}" * 8, f"10.0.0.{number}", number == 1, {"CPU": 4.0, **resources}, found, silent)


def wrong(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.told for finding in findings if finding.state != "ok"}


def judged(*nodes: Node) -> dict[str, str]:
    """What is told of nodes, but for GPUs that none has."""
    return {what: told for what, told in wrong(doctor.judged(nodes, HERE)).items() if what != "gpus"}


def test_nodes_that_are_like_this_machine_are_well() -> None:
    assert judged(node(1, answer()), node(2, answer())) == {}


def test_a_package_that_differs_or_lacks_on_a_node_is_told_with_its_name() -> None:
    told = judged(
        node(1, answer(versions=HERE | {"torch": "0.9"})), node(2, answer(versions=HERE | {"monai": None}))
    )
    assert told == {
        "torch": "10.0.0.1: is 0.9, here it is 1.0; install the same",
        "monai": "10.0.0.2: is not installed, here it is 1.0; install the same",
    }


def test_a_clock_that_is_wrong_is_told_and_one_that_is_uncertain_is_not() -> None:
    assert (
        "10.0.0.2 is 2.5 s behind"
        in judged(node(1, answer()), node(2, answer(skew=Skew(-2.5, 0.1))))["clock"]
    )
    assert "3.0 s ahead of" in judged(node(1, answer(skew=Skew(3.0, 0.5))))["clock"]
    assert judged(node(1, answer(skew=Skew(2.5, 1.0))), node(2, answer(skew=None))) == {}


def test_a_node_that_is_silent_and_a_disk_that_is_full_are_told() -> None:
    told = judged(
        node(1, answer(disks=(Disk("/tmp", 50.0), Disk("/spill", 1.5)))), node(2, None, "no answer")
    )
    assert told["nodes"] == "10.0.0.2: no answer"
    assert told["disk"].startswith("10.0.0.1: 1.5 GiB free in /spill, expected 5")


def test_gpus_that_ray_torch_or_the_driver_does_not_see_are_told() -> None:
    gpu, sees_none = Gpu("NVIDIA L4", 22.5, "570"), Look(False, "torch 1.0+cpu sees 0 of 1 GPUs")
    (well,) = doctor.judged([node(1, answer(gpus=(gpu,)), GPU=1.0)], HERE)[-1:]
    assert (well.state, well.told) == ("ok", "10.0.0.1: 1 x NVIDIA L4, 22 GiB, driver 570")
    hidden = wrong(doctor.judged([node(1, answer(gpus=(gpu,)))], HERE))["gpus"]
    assert "Ray gives away 0, nvidia-smi shows 1" in hidden
    useless = wrong(doctor.judged([node(1, answer(gpus=(gpu,), looks={"cuda": sees_none}), GPU=1.0)], HERE))
    assert (
        useless["gpus"]
        == "10.0.0.1: torch 1.0+cpu sees 0 of 1 GPUs; install the torch that is made for its GPUs"
    )


def test_storage_that_one_node_does_not_reach_is_told_and_the_others_can_work() -> None:
    unreached = Look(False, "cannot be reached (no route)")
    nodes = [node(1, answer(looks={"workspace": RIGHT})), node(2, answer(looks={"workspace": unreached}))]
    (finding,) = doctor._reached(nodes, Wanted("s3://b/ws"), RIGHT)
    assert finding.state == "absent"
    assert finding.told.startswith("s3://b/ws: 10.0.0.2: cannot be reached (no route); nodes need one folder")
    assert doctor._work(nodes) == Finding("work", "ok", "1 of 2 nodes with cores can work")


def test_a_cluster_where_no_node_with_cores_has_all_it_needs_cannot_work() -> None:
    without = answer(looks={"workspace": Look(False, "denied")})
    nodes = [
        node(1, answer(looks={"workspace": RIGHT}), CPU=0.0),
        node(2, without),
        node(3, None, "no answer"),
    ]
    assert not usable([doctor._work(nodes)])
    assert not usable([doctor._work([node(2, answer(versions=HERE | {"monai": None}))])])


def test_two_nodes_of_one_address_are_told_apart() -> None:
    twin = replace(node(2, answer(skew=Skew(9.0, 0.0))), address="10.0.0.1")
    assert judged(node(1, answer()), twin)["clock"].startswith("10.0.0.1 (222222) is 9.0 s ahead")


def test_a_campaign_wants_its_workspace_archive_weights_and_server(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "workspace: s3://b/ws\narchive: {importer: msd, root: s3://b/scans}\n"
        "generalist: {name: mobilesam, weights: s3://b/w.pt, second_opinions: [{name: threshold}]}\n"
        "tracking: {uri: 'http://mlflow:5000'}\n"
    )
    wanted = doctor.wanted_of(load(config, RunSettings, elsewhere=True))
    assert wanted == Wanted(
        "s3://b/ws", "s3://b/scans", (("mobilesam", "s3://b/w.pt"),), "http://mlflow:5000"
    )


def test_a_dashboards_address_is_told_from_rays_own(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call("doctor", "--address", "http://127.0.0.1:8265")
    assert code == 2
    assert "expected Ray's own: `auto`" in err


def test_a_campaign_is_looked_at_on_a_cluster_alone(
    call: Callable[..., tuple[int, str, str]], tiny_config: Callable[[str], Path]
) -> None:
    code, _, err = call("doctor", tiny_config("ws"))
    assert code == 2
    assert "give its --address" in err


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_nodes_of_a_ray_are_examined(
    call: Callable[..., tuple[int, str, str]],
    tiny_config: Callable[[str], Path],
    tmp_path: Path,
    dead_port: int,
) -> None:
    served = f"http://127.0.0.1:{dead_port}"
    told = ["generalist.name=litemedsam", "tracking.enabled=true", f"tracking.uri={served}"]
    code, out, err = call("doctor", "--address", "auto", tiny_config("ws"), *told, "--json")
    assert code == 0, err
    result = json.loads(out)
    (only,) = result["nodes"]
    assert only["head"]
    findings = {finding["what"]: finding for finding in result["findings"]}
    assert (
        findings["versions"]["state"] == findings["workspace"]["state"] == findings["clock"]["state"] == "ok"
    )
    assert findings["weights of litemedsam"]["told"].startswith(str(find().path))
    assert findings["mlflow"]["state"] == "absent"
    assert served in findings["mlflow"]["told"]
    assert result["usable"]
    assert not (tmp_path / "ws").exists()
