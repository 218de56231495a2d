"""Manifests by themselves: they are valid, locked down, and what they ask for fits."""

import copy
from typing import Any

import kubernetes_validate
import pytest
from pydantic import ValidationError

from tests.k8s import crds
from tests.k8s.builds import (
    BUILDS,
    amount,
    build,
    clusters,
    everything,
    inside,
    named,
    of,
    pods,
    serve_config,
)
from tests.k8s.render import Object
from tutelage.cluster.settings import ServingSettings

GPU = "nvidia.com/gpu"
REFUSED = (ValidationError, kubernetes_validate.ValidationError)


@pytest.mark.parametrize("name", BUILDS)
def test_every_object_is_valid(name: str) -> None:
    for each in build(name):
        crds.check(each)


@pytest.mark.parametrize(
    ("name", "kind", "called", "path"),
    [
        ("kind", "Deployment", "mlflow", "spec.template.spec.containers.0"),
        ("kind/jobs", "RayJob", "run", "spec"),
        ("kind/jobs", "RayJob", "run", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0"),
        ("kind/jobs", "RayJob", "run", "spec.submitterPodTemplate.spec"),
        ("gpu-cluster", "ClusterQueue", "tutelage", "spec.resourceGroups.0"),
        ("gpu-cluster/serving", "RayService", "tutelage", "spec.rayClusterConfig.workerGroupSpecs.0"),
        ("gpu-single", "PodMonitor", "ray", "spec.podMetricsEndpoints.0"),
    ],
)
def test_a_misspelled_field_is_refused(name: str, kind: str, called: str, path: str) -> None:
    wrong = copy.deepcopy(named(name, kind, called))
    at: Any = wrong
    for step in path.split("."):
        at = at[int(step)] if step.isdigit() else at[step]
    at["imagePolicy"] = "Always"
    with pytest.raises(REFUSED, match="imagePolicy"):
        crds.check(wrong)


# --- locked down --------------------------------------------------------------------------------


def test_no_pod_is_root_writes_its_root_gains_rights_or_is_without_bounds() -> None:
    seen = 0
    for name, each in everything():
        for pod in pods(each):
            spec, where = pod["spec"], f"{name}: {each['kind']} {each['metadata']['name']}"
            assert spec["securityContext"]["runAsNonRoot"] is True, where
            assert spec["securityContext"]["runAsUser"] > 0, where
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
            for container in spec["containers"]:
                seen += 1
                assert _locked(container), where
                assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
                assert "memory" in container["resources"]["limits"], where
                assert not container["image"].endswith(":latest"), where
                assert ":" in container["image"], where
    assert seen > 100


def test_the_autoscaler_beside_a_head_is_locked_down_and_can_write_its_logs() -> None:
    for name, _, spec in clusters():
        assert _locked(spec["autoscalerOptions"]), name
        assert "/tmp" in {mount["mountPath"] for mount in spec["autoscalerOptions"]["volumeMounts"]}, name


def _locked(container: Object) -> bool:
    return bool(
        container["securityContext"]
        == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    )


def test_every_pod_of_ours_can_write_where_programs_do() -> None:
    for name, each in everything():
        for pod in pods(each):
            empty = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
            for container in pod["spec"]["containers"]:
                writable = {m["mountPath"] for m in container["volumeMounts"] if m["name"] in empty}
                home = (
                    {"/home/tutelage"}
                    if container["image"].rpartition("/")[2].startswith("tutelage")
                    else set()
                )
                assert {"/tmp"} | home <= writable, (name, each["metadata"]["name"])


def test_only_heads_get_an_account_of_kubernetes() -> None:
    account = named("kind", "ServiceAccount", "default")
    assert account["automountServiceAccountToken"] is False
    assert not [each for _, each in everything() if list(inside(each, "serviceAccountName"))]


def test_services_that_stand_are_probed() -> None:
    for each in (*of("kind", "Deployment"), *of("kind", "StatefulSet")):
        for container in each["spec"]["template"]["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container), each["metadata"]["name"]


def test_every_ray_cluster_asks_for_a_token() -> None:
    assert all(spec["authOptions"] == {"mode": "token"} for _, _, spec in clusters())


# --- who may talk to whom ----------------------------------------------------------------------------

RAY = {"ray.io/cluster": "run-x", "ray.io/node-type": "worker", "ray.io/group": "worker"}
HEAD = {"ray.io/cluster": "run-x", "ray.io/node-type": "head", "ray.io/group": "headgroup"}
SERVING = {"ray.io/cluster": "tutelage-x", "ray.io/node-type": "worker", "ray.io/group": "serving"}
APPS = {name: {"app": name} for name in ("store", "mlflow", "postgres", "submitter")}


@pytest.mark.parametrize(
    ("source", "target", "port", "may"),
    [
        (RAY, HEAD, 6379, True),
        (RAY, APPS["store"], 8333, True),
        (RAY, APPS["store"], 9333, False),
        (RAY, APPS["mlflow"], 5000, True),
        (RAY, APPS["postgres"], 5432, False),
        (APPS["mlflow"], APPS["postgres"], 5432, True),
        (APPS["mlflow"], APPS["store"], 8333, True),
        (APPS["mlflow"], HEAD, 8265, False),
        (APPS["submitter"], HEAD, 8265, True),
        (APPS["submitter"], APPS["store"], 8333, False),
        (APPS["postgres"], APPS["store"], 8333, False),
    ],
)
def test_pods_reach_what_they_need_and_nothing_else(
    source: dict[str, str], target: dict[str, str], port: int, may: bool
) -> None:
    assert _allowed("egress", source, target, port) is may
    if may:
        assert _allowed("ingress", target, source, port)


def test_only_ingress_and_monitoring_come_from_other_namespaces() -> None:
    for label, targets in {
        "ingress": (SERVING, APPS["mlflow"]),
        "monitoring": (SERVING, APPS["store"]),
    }.items():
        space = {f"tutelage/{label}": "true"}
        ports = {"ingress": (8000, 5000), "monitoring": (8000, 9327)}[label]
        for target, port in zip(targets, ports, strict=True):
            assert _allowed("ingress", target, {}, port, space)
            assert not _allowed("ingress", target, {}, port, {"some": "other"})
    assert not _allowed("ingress", APPS["postgres"], {}, 5432, {"tutelage/ingress": "true"})


def _allowed(way: str, on: dict[str, str], other: dict[str, str], port: int, space: Any = None) -> bool:
    """Whether policies on a pod let another's traffic pass; `space`: labels of its namespace, if not ours."""
    policies = [p for p in of("kind", "NetworkPolicy") if _matches(p["spec"]["podSelector"], on)]
    assert any(way.capitalize() in p["spec"]["policyTypes"] for p in policies), "nothing is denied"
    rules = [rule for p in policies for rule in p["spec"].get(way, [])]
    return any(_passes(rule, "to" if way == "egress" else "from", other, port, space) for rule in rules)


def _passes(rule: Object, side: str, other: dict[str, str], port: int, space: Any) -> bool:
    if "ports" in rule and port not in [each["port"] for each in rule["ports"]]:
        return False
    for peer in rule[side]:
        if "ipBlock" in peer:
            continue
        here = space is None if "namespaceSelector" not in peer else space is not None
        fits = here and _matches(peer.get("namespaceSelector", {}), space or {})
        if fits and _matches(peer.get("podSelector", {}), other):
            return True
    return False


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    present = [each["key"] for each in selector.get("matchExpressions", [])]
    return wanted.items() <= labels.items() and all(key in labels for key in present)


# --- what operators ask for ------------------------------------------------------------------------------


def test_kueue_admits_the_jobs() -> None:
    for name, job, spec in clusters():
        if job["kind"] != "RayJob":
            continue
        assert job["spec"]["shutdownAfterJobFinishes"] is True, name
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "campaigns", name
        assert not spec.get("enableInTreeAutoscaling"), "Kueue admits whole jobs"
        groups = spec.get("workerGroupSpecs", [])
        assert len(groups) <= 17
        assert all(group["replicas"] == group["maxReplicas"] >= 1 for group in groups), name


@pytest.mark.parametrize("overlay", ["gpu-single", "gpu-cluster"])
def test_queues_lead_to_flavors_with_room_for_every_job(overlay: str) -> None:
    queue = named(overlay, "ClusterQueue", "tutelage")
    assert named(overlay, "LocalQueue", "campaigns")["spec"]["clusterQueue"] == "tutelage"
    (group,) = queue["spec"]["resourceGroups"]
    flavors = {each["metadata"]["name"]: each.get("spec", {}) for each in of(overlay, "ResourceFlavor")}
    assert {each["name"] for each in group["flavors"]} == set(flavors)
    quotas = {
        f["name"]: {r["name"]: amount(r["nominalQuota"]) for r in f["resources"]} for f in group["flavors"]
    }
    for name, job, spec in clusters():
        if name == f"{overlay}/jobs":
            _admit(job, spec, flavors, {flavor: dict(quota) for flavor, quota in quotas.items()})


def _admit(job: Object, spec: Object, flavors: Object, left: dict[str, dict[str, float]]) -> None:
    """Take what each kind of pod asks for out of the first flavor whose nodes it may go to, as Kueue does."""
    sets = [(1, spec["headGroupSpec"]["template"]), (1, job["spec"]["submitterPodTemplate"])]
    sets += [(group["replicas"], group["template"]) for group in spec.get("workerGroupSpecs", [])]
    for count, template in sets:
        wanted = template["spec"].get("nodeSelector", {})
        flavor = next(n for n, f in flavors.items() if wanted.items() <= f.get("nodeLabels", wanted).items())
        if not wanted:
            flavor = next(iter(left))
        for container in template["spec"]["containers"]:
            for unit, quantity in container["resources"]["requests"].items():
                left[flavor][unit] -= count * amount(quantity)
    assert all(rest >= 0 for quota in left.values() for rest in quota.values()), (
        job["metadata"]["name"],
        left,
    )


def test_pods_go_where_flavors_say() -> None:
    flavors = {f["metadata"]["name"]: f["spec"] for f in of("gpu-cluster", "ResourceFlavor")}
    for name, _, spec in clusters():
        for group in spec.get("workerGroupSpecs", []) if name.startswith("gpu-cluster") else []:
            pod = group["template"]["spec"]
            (flavor,) = (f for f in flavors.values() if f["nodeLabels"] == pod["nodeSelector"])
            tolerated = {each["key"] for each in pod.get("tolerations", [])}
            assert {taint["key"] for taint in flavor.get("nodeTaints", [])} <= tolerated, group["groupName"]


# --- serving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", ["kind", "gpu-single", "gpu-cluster"])
def test_copies_fit_their_nodes_and_drain_before_they_are_killed(overlay: str) -> None:
    service = named(f"{overlay}/serving", "RayService", "tutelage")
    (application,) = serve_config(service)["applications"]
    settings = ServingSettings.model_validate(application["args"]["settings"])
    assert not list(settings.problems())
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert settings.cpus == amount(limits["cpu"])
    assert settings.gpus == amount(limits.get(GPU, 0))
    assert settings.replica_range == (group["minReplicas"], group["maxReplicas"])
    grows = service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling", False)
    assert grows is (group["minReplicas"] < group["maxReplicas"])
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.drain_s <= drain < pod["terminationGracePeriodSeconds"]
    assert settings.drain_s < service["spec"]["rayClusterDeletionDelaySeconds"]
    assert settings.tokens
    assert not settings.open


def test_overlays_serve_the_same_but_for_its_size() -> None:
    told = [
        serve_config(named(f"{x}/serving", "RayService", "tutelage"))
        for x in ("kind", "gpu-single", "gpu-cluster")
    ]
    for each in told:
        for size in ("replicas", "cpus", "gpus"):
            each["applications"][0]["args"]["settings"].pop(size, None)
    assert told[0] == told[1] == told[2]


def test_who_asks_for_a_job_comes_back_to_the_copy_that_has_it() -> None:
    spec = named("gpu-cluster/serving", "RayService", "tutelage")["spec"]["serveService"]["spec"]
    assert spec["sessionAffinity"] == "ClientIP"
    lasts = ServingSettings()
    assert spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] > lasts.keep_s + lasts.timeout_s


def test_a_drained_node_leaves_a_copy() -> None:
    budget = named("kind/serving", "PodDisruptionBudget", "serving")["spec"]
    assert budget["minAvailable"] == 1  # of pods that KubeRay owns no share can be told
    (group,) = named("gpu-cluster/serving", "RayService", "tutelage")["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    assert budget["selector"]["matchLabels"] == {"ray.io/group": group["groupName"]}
    assert group["minReplicas"] > budget["minAvailable"]
