"""What we want of operators' own kinds: the fields that k8s/ may use and the values they may have.

It is narrower than what the operators take, and says so before any of them is asked: a field that is
not here is refused. Pods inside go to Kubernetes' own schema. What the operators themselves take is in
`published`; this knows nothing of it.
"""

import re
from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

KUBERNETES = "1.37"


def built_in(each: dict[str, Any]) -> None:
    """Check an object of Kubernetes' own by its published schema; unknown fields are refused."""
    kubernetes_validate.validate(each, KUBERNETES, strict=True)


def _pod(template: dict[str, Any]) -> dict[str, Any]:
    built_in({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template})
    return template


def _quantity(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", text):
        raise ValueError(f"{text!r} is no quantity")
    return text


Pod = Annotated[dict[str, Any], AfterValidator(_pod)]
Quantity = Annotated[str, AfterValidator(_quantity)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]
"""What KubeRay takes: it adds letters of its own."""


class Part(BaseModel):
    """Unknown fields are refused; types are not bent."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Name
    namespace: str | None = None
    labels: dict[str, str] = {}


# --- ray.io/v1 -----------------------------------------------------------------------------------


class HeadGroup(Part):
    rayStartParams: dict[str, str]
    template: Pod


class WorkerGroup(Part):
    groupName: Name
    replicas: Count = 0
    minReplicas: Count
    maxReplicas: Count
    resources: dict[str, Quantity] = {}
    rayStartParams: dict[str, str]
    template: Pod


class Auth(Part):
    mode: Literal["disabled", "token"]


class Autoscaler(Part):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Count
    resources: dict[Literal["requests", "limits"], dict[str, Quantity]]
    securityContext: dict[str, Any]
    volumeMounts: list[dict[str, str]]


class ClusterSpec(Part):
    rayVersion: str
    authOptions: Auth
    autoscalerOptions: Autoscaler
    enableInTreeAutoscaling: bool = False
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []


class RayCluster(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Part):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: Count
    preRunningDeadlineSeconds: Annotated[int, Field(ge=1)]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    submitterPodTemplate: Pod
    rayClusterSpec: ClusterSpec


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class Upgrade(Part):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ClientAddress(Part):
    timeoutSeconds: Annotated[int, Field(ge=1, le=86400)]


class Affinity(Part):
    clientIP: ClientAddress


class ServePort(Part):
    name: Literal["serve"]
    port: Literal[8000]


class ServeServiceSpec(Part):
    """What KubeRay takes of a service for requests beside what it decides itself."""

    ports: list[ServePort]
    sessionAffinity: Literal["ClientIP"]
    sessionAffinityConfig: Affinity


class ServeService(Part):
    spec: ServeServiceSpec


class ServiceSpec(Part):
    upgradeStrategy: Upgrade
    serveService: ServeService | None = None
    rayClusterDeletionDelaySeconds: Count
    excludeHeadPodFromServeSvc: bool
    serveConfigV2: str
    rayClusterConfig: ClusterSpec


class RayService(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


# --- kueue.x-k8s.io/v1beta2 ------------------------------------------------------------------------


class Quota(Part):
    name: str
    nominalQuota: Quantity


class FlavorQuotas(Part):
    name: Name
    resources: list[Quota]


class ResourceGroup(Part):
    coveredResources: list[str]
    flavors: list[FlavorQuotas]


class Preemption(Part):
    withinClusterQueue: Literal["Never", "LowerPriority", "LowerOrNewerEqualPriority"]


class ClusterQueueSpec(Part):
    namespaceSelector: dict[Literal["matchLabels"], dict[str, str]]
    queueingStrategy: Literal["StrictFIFO", "BestEffortFIFO"]
    preemption: Preemption
    resourceGroups: list[ResourceGroup]


class ClusterQueue(Part):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["ClusterQueue"]
    metadata: Metadata
    spec: ClusterQueueSpec


class LocalQueueSpec(Part):
    clusterQueue: Name


class LocalQueue(Part):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["LocalQueue"]
    metadata: Metadata
    spec: LocalQueueSpec


class Taint(Part):
    key: str
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class FlavorSpec(Part):
    nodeLabels: dict[str, str] = {}
    nodeTaints: list[Taint] = []


class ResourceFlavor(Part):
    apiVersion: Literal["kueue.x-k8s.io/v1beta2"]
    kind: Literal["ResourceFlavor"]
    metadata: Metadata
    spec: FlavorSpec = FlavorSpec()


# --- monitoring.coreos.com/v1 -----------------------------------------------------------------------


class Authorization(Part):
    credentials: dict[Literal["name", "key"], str]


class Endpoint(Part):
    port: str
    interval: Annotated[str, Field(pattern=r"^\d+[sm]$")]
    path: Annotated[str, Field(pattern="^/")] = "/metrics"
    authorization: Authorization | None = None


class PodMonitorSpec(Part):
    selector: dict[Literal["matchLabels", "matchExpressions"], Any]
    podTargetLabels: list[str] = []
    podMetricsEndpoints: list[Endpoint]


class PodMonitor(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class ServiceMonitorSpec(Part):
    selector: dict[Literal["matchLabels", "matchExpressions"], Any]
    endpoints: list[Endpoint]


class ServiceMonitor(Part):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


CUSTOM: dict[str, type[Part]] = {
    kind.__name__: kind
    for kind in (
        RayCluster, RayJob, RayService, ClusterQueue, LocalQueue, ResourceFlavor, PodMonitor, ServiceMonitor
    )
}  # fmt: skip


def check(each: dict[str, Any]) -> None:
    """Check an object of any kind."""
    if kind := CUSTOM.get(each["kind"]):
        kind.model_validate(each)
    else:
        built_in(each)
