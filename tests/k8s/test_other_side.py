"""What manifests name is there on the other side: in the code, the settings, the guide."""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from serve.meters import Meters
from tests.k8s import crds, published
from tests.k8s.builds import (
    K8S,
    OVERLAYS,
    ROOT,
    amount,
    everything,
    inside,
    named,
    of,
    pods,
    serve_config,
)
from tests.k8s.render import Object
from tutelage.cli.app import app
from tutelage.cluster.settings import ClusterSettings
from tutelage.rounds.run import OF_LABELS_ONLY
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

GUIDE = (K8S / "README.md").read_text()
IN_IMAGE = "/opt/tutelage"
GPU = "nvidia.com/gpu"


# --- entrypoints and settings ---------------------------------------------------------------------


def _jobs() -> dict[str, list[str]]:
    """The commands that RayJobs run, by step."""
    return {
        job["metadata"]["name"]: shlex.split(job["spec"]["entrypoint"])
        for job in of("gpu-cluster/jobs", "RayJob")
    }


def test_there_is_a_job_for_every_step_of_a_campaign() -> None:
    assert set(_jobs()) >= {"run", "priors", "label", "calibrate", "curate", "train", "evaluate", "promote"}
    jobs = _jobs()
    for step in OF_LABELS_ONLY:
        if step != "test":  # scores all stages at once
            assert jobs[f"{step}-labels-only"][-2:] == ["-r", "labels-only"]
    assert jobs["test"][-2:] == ["--split", "test"]


_COMMAND = {"test": "evaluate"}
"""Of steps that are called otherwise."""


@pytest.mark.parametrize("step", sorted(_jobs()))
def test_an_entrypoint_is_a_command_that_takes_its_arguments(step: str) -> None:
    python, script, *rest = _jobs()[step]
    assert python == "python"
    if script == "-m":
        module, command, *rest = rest
        assert importlib.util.find_spec(f"{module}.__main__")
    else:
        file = ROOT / Path(script).relative_to(IN_IMAGE)
        (command,) = re.findall(r'job\("(\w+)"\)', file.read_text())
    assert command == _COMMAND.get(step, step.removesuffix("-labels-only"))
    root: Any = typer.main.get_command(app)
    made = root.commands[command].make_context(command, list(rest))
    assert str(made.params["config"]) == "/etc/tutelage/campaign/campaign.yaml"


def test_steps_mean_a_job_that_is_labelled_so() -> None:
    for overlay in OVERLAYS:
        for job in of(f"{overlay}/jobs", "RayJob"):
            assert job["metadata"]["labels"]["tutelage/step"] == job["metadata"]["name"]


def _campaign(overlay: str, folder: Path) -> RunSettings:
    """Load the campaign as a head sees it."""
    for name, text in named(overlay, "ConfigMap", "campaign")["data"].items():
        (folder / name).write_text(text.replace(IN_IMAGE, str(ROOT)))
    return load(folder / "campaign.yaml", RunSettings)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_campaign_of_an_overlay_is_usable_and_lies_where_all_pods_see_it(
    overlay: str, tmp_path: Path
) -> None:
    settings = _campaign(overlay, tmp_path)
    environment = named(overlay, "ConfigMap", "environment")["data"]
    assert (settings.cluster.backend, settings.cluster.address) == ("ray", "auto")
    assert settings.workspace.startswith("s3://")
    assert settings.tracking.uri == environment["MLFLOW_TRACKING_URI"]
    (served,) = serve_config(named(f"{overlay}/serving", "RayService", "tutelage"))["applications"]
    assert list(served["args"]["models"].values()) == [settings.workspace]


_GROUPS = {
    **dict.fromkeys(
        ("label", "evaluate", "evaluate-labels-only", "test", "calibrate", "report", "run"), True
    ),
    "curate": False,
}
"""Steps with actors that go over cases, and whether those take a GPU where there is one."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_actors_and_training_fit_the_nodes_of_their_step(overlay: str, tmp_path: Path) -> None:
    settings = _campaign(overlay, tmp_path)
    told = settings.cluster
    for job in of(f"{overlay}/jobs", "RayJob"):
        step = job["metadata"]["name"]
        nodes = _nodes(job["spec"]["rayClusterSpec"])
        if step in _GROUPS:
            gpus = told.gpus_per_actor if _GROUPS[step] else 0.0
            custom = told.resources_per_actor if _GROUPS[step] else {}
            held = _held(nodes, told.actors, 0 if gpus else told.cpus_per_actor, gpus, custom)
            assert held, f"{overlay}: {told.actors} actors of {step} do not fit {nodes}"
        if step in ("train", "train-labels-only", "calibrate", "run"):
            workers, (cpus, gpus) = (
                told.worker_counts[-1],
                (told.cpus_per_train_worker, told.gpus_per_train_worker),
            )
            held = _held(nodes, workers, cpus, gpus, told.resources_per_train_worker)
            assert held, f"{overlay}: {step} does not fit {nodes}"
        if step == "priors":
            engine = settings.priors.engine
            held = _held(nodes, engine.copies, engine.cpus, engine.gpus, engine.resources)
            assert held, f"{overlay}: {nodes}"


def test_that_actors_do_not_fit_would_be_seen() -> None:
    node = {"cpus": 8.0, "gpus": 1.0, "encoder": 1.0}
    assert _held([node] * 2, 2, 8, 1, {"encoder": 1.0})
    assert not _held([node] * 2, 3, 1, 1, {})
    assert not _held([node] * 2, 1, 9, 0, {})
    assert _held([node], 2, 0, 0.5, {})
    assert not _held([node], 2, 0, 0.5, {"encoder": 1.0})
    assert not _held([node], 1, 1, 0, {"training": 1.0})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_resource_that_work_asks_for_is_one_that_a_group_gives(overlay: str, tmp_path: Path) -> None:
    settings = _campaign(overlay, tmp_path)
    told = settings.cluster
    asked = {
        *told.resources_per_actor,
        *told.resources_per_train_worker,
        *told.resources_per_asker,
        *settings.priors.engine.resources,
    }
    groups = [
        group
        for job in of(f"{overlay}/jobs", "RayJob")
        for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    ]
    given = {name for group in groups for name in group.get("resources", {})}
    assert asked == given, "asked for, but given by no group, or the other way"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_workbench_can_have_every_node_that_a_job_can(overlay: str) -> None:
    workbench = named(f"{overlay}/cluster", "RayCluster", "workbench")["spec"]
    there = {group["groupName"]: group for group in workbench["workerGroupSpecs"]}
    for job in of(f"{overlay}/jobs", "RayJob"):
        for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", []):
            assert there[group["groupName"]]["template"] == group["template"], job["metadata"]["name"]


def _nodes(spec: Object) -> list[dict[str, float]]:
    nodes = []
    for group in spec.get("workerGroupSpecs", []):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        custom = {name: amount(each) for name, each in group.get("resources", {}).items()}
        node = {"cpus": amount(limits["cpu"]), "gpus": amount(limits.get(GPU, 0)), **custom}
        nodes += [node] * group["replicas"]
    return nodes


def _held(
    nodes: list[dict[str, float]], count: int, cpus: float, gpus: float, custom: dict[str, float]
) -> bool:
    """Whether so many of such a size can be put on nodes."""
    wanted = {unit: each for unit, each in {"cpus": cpus, "gpus": gpus, **custom}.items() if each}
    return sum(min(node.get(unit, 0) // each for unit, each in wanted.items()) for node in nodes) >= count


def test_what_settings_say_of_nodes_is_said_in_settings_that_exist() -> None:
    for overlay in OVERLAYS:
        told = yaml.safe_load((K8S / "overlays" / overlay / "cluster.yaml").read_text())["cluster"]
        assert set(told) <= set(ClusterSettings.model_fields)


def test_the_served_application_can_be_imported() -> None:
    for overlay in OVERLAYS:
        (application,) = serve_config(named(f"{overlay}/serving", "RayService", "tutelage"))["applications"]
        module, _, function = application["import_path"].partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
        reads = {c.value for c in ast.walk(found) if isinstance(c, ast.Constant)}
        assert set(application["args"]) <= reads
        # What our code reads, and what torch does: `tutelage serve` tells it to its copies too.
        files = [*(ROOT / "serve").glob("*.py"), ROOT / "platform/tutelage/cluster/serving.py"]
        code = "".join(path.read_text() for path in files)
        assert all(f'"{name}"' in code for name in application["runtime_env"]["env_vars"])


_SECRET = re.compile(
    r"(?i)(password|secret|access_key|token|salt)\w*[:=]\s*[\"']?[A-Za-z0-9+/]{12,}[\"']?\s*$"
)
"""A line that gives something with such a name a value that looks made up."""


# --- names between objects ------------------------------------------------------------------------


def test_what_pods_refer_to_is_made_here_or_told_in_the_guide() -> None:
    documented = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*) \|", GUIDE, re.MULTILINE))
    seen = set()
    for name, each in everything():
        maps = {each["metadata"]["name"]: each["data"] for each in of(name.partition("/")[0], "ConfigMap")}
        for secret, keys in _secrets(each):
            seen.add(secret)
            assert secret in documented, f"{name}: the guide does not say how the secret {secret} is made"
            assert all(f"`{key}`" in documented[secret] for key in keys), (secret, keys)
        for reference in [*inside(each, "configMapRef"), *inside(each, "configMap")]:
            assert reference["name"] in maps, (name, reference)
        for reference in inside(each, "configMapKeyRef"):
            assert reference["key"] in maps[reference["name"]], (name, reference)
        for claim in inside(each, "persistentVolumeClaim"):
            assert f"`{claim['claimName']}`" in GUIDE
    assert seen == set(documented), "the guide tells of secrets that nobody reads"


def _secrets(each: Object) -> list[tuple[str, list[str]]]:
    """Secrets that an object names, with the keys if it names those."""
    found = [(ref["name"], [ref["key"]]) for ref in inside(each, "secretKeyRef")]
    found += [(ref["name"], []) for ref in inside(each, "secretRef")]
    found += [(ref["name"], [ref["key"]]) for ref in inside(each, "credentials")]
    return found + [(ref["secretName"], []) for ref in inside(each, "secret")]


def test_no_secret_is_in_the_repository() -> None:
    assert not [each for _, each in everything() if each["kind"] == "Secret"]
    for file in K8S.rglob("*.yaml"):
        values = [line for line in file.read_text().splitlines() if _SECRET.search(line)]
        assert not values, file


def test_every_volume_that_is_mounted_is_there() -> None:
    for name, each in everything():
        claims = {
            claim["metadata"]["name"] for claims in inside(each, "volumeClaimTemplates") for claim in claims
        }
        for pod in pods(each):
            volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | claims
            for container in pod["spec"]["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, (
                    name,
                    each["metadata"],
                )


def test_the_file_of_tokens_lies_where_the_server_looks() -> None:
    for overlay in OVERLAYS:
        service = named(f"{overlay}/serving", "RayService", "tutelage")
        (application,) = serve_config(service)["applications"]
        (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        (container,) = group["template"]["spec"]["containers"]
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "tokens")
        (volume,) = (each for each in group["template"]["spec"]["volumes"] if each["name"] == "tokens")
        assert application["args"]["settings"]["tokens"] == f"{mount['mountPath']}/tokens"
        assert not volume["secret"]["defaultMode"] & 0o022, "a file that others can write is refused"


def test_ports_that_are_named_are_ports_of_the_pods_behind() -> None:
    for overlay in OVERLAYS:
        behind: dict[str, dict[str, int]] = {}
        for each in (*of(overlay, "Deployment"), *of(overlay, "StatefulSet")):
            (container,) = each["spec"]["template"]["spec"]["containers"]
            behind[each["metadata"]["name"]] = {p["name"]: p["containerPort"] for p in container["ports"]}
            assert each["spec"]["template"]["metadata"]["labels"] == {"app": each["metadata"]["name"]}
        for service in of(overlay, "Service"):
            ports = behind[service["spec"]["selector"]["app"]]
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
        named_ports = {f"http://{app}:{port}" for app, ports in behind.items() for port in ports.values()}
        environment = named(overlay, "ConfigMap", "environment")["data"]
        assert {environment["AWS_ENDPOINT_URL"], environment["MLFLOW_TRACKING_URI"]} <= named_ports


def test_programs_listen_on_the_ports_of_their_containers() -> None:
    for kind, app_ in (("StatefulSet", "store"), ("Deployment", "mlflow")):
        (container,) = named("kind", kind, app_)["spec"]["template"]["spec"]["containers"]
        told = " ".join(container["args"])
        assert all(str(port["containerPort"]) in told for port in container["ports"]), app_


def test_monitors_ask_ports_that_ray_pods_have() -> None:
    service = named("gpu-cluster/serving", "RayService", "tutelage")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for monitor in of("gpu-cluster", "PodMonitor"):
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= set(ports)
    assert ports["serve"] == serve_config(service)["http_options"]["port"]


@pytest.mark.heavy
def test_variables_of_mlflow_are_variables_that_it_reads() -> None:
    (container,) = named("kind", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    folder = _package("mlflow")
    code = "".join(
        (folder / file).read_text()
        for file in ("environment_variables.py", "cli/__init__.py", "server/__init__.py")
    )
    told = {each["name"] for each in container["env"] if each["name"].startswith("MLFLOW_")}
    assert len(told) > 2
    assert all(f'"{name}"' in code for name in told), told


def _package(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


# --- the dashboard --------------------------------------------------------------------------------


def _measures() -> set[str]:
    board = json.loads(named("gpu-cluster", "ConfigMap", "dashboard")["data"]["tutelage.json"])
    told = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return set(re.findall(r"\b(?:tutelage|ray|SeaweedFS)_\w+", " ".join(told)))


def test_the_dashboard_asks_for_what_the_server_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    ours = set(re.findall(r"^# TYPE (\S+) ", Meters().text().decode(), re.MULTILINE))
    ours |= {f"{name}_bucket" for name in ours}
    asked = {name for name in _measures() if name.startswith("tutelage_")}
    assert len(asked) > 8
    assert asked <= ours


def test_the_dashboard_asks_for_what_ray_measures() -> None:
    boards = (_package("ray") / "dashboard/modules/metrics/dashboards").glob("*.py")
    theirs = set(re.findall(r"\bray_\w+", "".join(path.read_text() for path in boards)))
    asked = {name for name in _measures() if name.startswith("ray_") and not name.startswith("ray_io")}
    assert len(asked) > 6
    assert asked <= theirs


# --- the guide ------------------------------------------------------------------------------------


def test_the_guide_names_folders_and_scripts_that_are_there() -> None:
    for path in re.findall(r"k8s/[\w/.-]+", GUIDE):
        assert (ROOT / path.replace("OVERLAY", "kind")).exists(), path
    for path in re.findall(r"`(?:base|overlays)/[\w/*.-]+`", GUIDE):
        assert list(K8S.glob(path.strip("`"))), path


def test_the_guide_says_versions_that_the_schemas_have() -> None:
    assert f"schemas of {crds.KUBERNETES}" in GUIDE
    for version in {source.folder.split("/")[2] for source in published.SOURCES}:
        assert f"CRDs of {version.removeprefix('v')}" in GUIDE


def test_every_overlay_is_explained_by_its_first_lines() -> None:
    for overlay in OVERLAYS:
        assert (K8S / "overlays" / overlay / "kustomization.yaml").read_text().startswith("# ")
        assert f"overlays/{overlay}" in GUIDE
