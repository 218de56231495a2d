"""A cluster at hand: whether there is one that answers, and whether it would take what k8s/ makes.

It is kubectl's current context, wherever that is written; it is only asked, nothing is applied. It does not
know what the cluster is for: what it has no kinds for is left out, and said.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from tests.k8s.render import Object

ANSWER_S = 5.0
"""How long a cluster may take to say its version; one that is far away or gone must not hold tests up."""

_APPLY_S = 120.0


def kubectl(*words: str, told: str | None = None, limit_s: float = _APPLY_S) -> str:
    """Return what kubectl says.

    Raises:
        LookupError: it failed, or took too long; the message is its own.
    """
    try:
        done = subprocess.run(
            ["kubectl", *words], input=told, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LookupError(f"no answer within {limit_s:g} s") from None
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return done.stdout


@dataclass(frozen=True)
class Cluster:
    """One that answers."""

    context: str
    versions: frozenset[str]
    """Of API groups that it has."""

    namespaces: frozenset[str]

    def missing(self, objects: Sequence[Object]) -> set[str]:
        """Return the versions of API groups that it lacks for these objects."""
        return {each["apiVersion"] for each in objects} - self.versions

    def askable(self, objects: Sequence[Object]) -> list[Object]:
        """Return the objects that it can be asked about: of kinds that it has, in namespaces that it has."""
        return [self._placed(each) for each in objects if each["apiVersion"] in self.versions]

    def _placed(self, each: Object) -> Object:
        # A namespace that is only tried out is not there for what would lie in it.
        metadata = each["metadata"]
        if metadata.get("namespace", "default") in self.namespaces:
            return each
        return {**each, "metadata": {**metadata, "namespace": "default"}}

    def would_take(self, objects: Sequence[Object]) -> None:
        """Ask it to check objects as if they were applied.

        Raises:
            LookupError: it would not take them, with its reasons.
        """
        text = yaml.safe_dump_all(objects)
        kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", told=text)


def at_hand() -> Cluster:
    """Return the cluster of kubectl's current context.

    Raises:
        LookupError: there is none, or it does not answer within seconds; says which.
    """
    if shutil.which("kubectl") is None:
        raise LookupError("no kubectl here to ask a cluster with")
    try:
        context = kubectl("config", "current-context", limit_s=ANSWER_S).strip()
    except LookupError as error:
        raise LookupError(f"kubectl knows no cluster: {error}") from None
    try:
        json.loads(kubectl("get", "--raw", "/version", limit_s=ANSWER_S))["gitVersion"]
        versions = kubectl("api-versions", limit_s=ANSWER_S).split()
        spaces = kubectl("get", "namespaces", "-o", "name", limit_s=ANSWER_S).split()
    except (LookupError, ValueError) as error:
        raise LookupError(f"the cluster of context {context} does not answer: {error}") from None
    return Cluster(context, frozenset(versions), frozenset(name.partition("/")[2] for name in spaces))
