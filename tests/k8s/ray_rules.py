"""The rules for clusters that train, and for jobs that have one of their own; besides those for every manifest."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

from helpers import ROOT

from .manifests import Manifest, Manifests, Pod, environment, of_kind, pods, quantity, selects, title
from .rules import Complaints, Rule, policies

SAVING_S = 60  # what a worker that is told to end may need for a last checkpoint
NOTICE_S = 120  # the longest notice that a cloud gives before it takes a spot node away
SPOT = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot")
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
DASHBOARD = {"protocol": "TCP", "port": 8265}


class Cluster(NamedTuple):
    """The specification of a Ray cluster, wherever it stands."""

    owner: Manifest
    spec: dict[str, Any]

    @property
    def where(self) -> str:
        return title(self.owner)

    @property
    def head(self) -> Pod:
        return pods([{**self.owner, "spec": self.spec["headGroupSpec"]}])[0]

    @property
    def workers(self) -> list[tuple[dict[str, Any], Pod]]:
        """Each group, and its pods."""
        groups = self.spec["workerGroupSpecs"]
        return [(group, pods([{**self.owner, "spec": group}])[0]) for group in groups]

    @property
    def nodes(self) -> list[tuple[dict[str, Any], Pod]]:
        """Each group with the head, and its pods."""
        return [(self.spec["headGroupSpec"], self.head), *self.workers]

    @property
    def words(self) -> list[str]:
        """The command of the job; none where the cluster waits for jobs."""
        return shlex.split(self.owner["spec"].get("entrypoint", ""))


def clusters(manifests: Manifests) -> list[Cluster]:
    found = [Cluster(each, each["spec"]) for each in of_kind(manifests, "RayCluster")]
    return found + [Cluster(each, each["spec"]["rayClusterSpec"]) for each in of_kind(manifests, "RayJob")]


def after(words: list[str], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def asks_for_a_token(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        options = cluster.spec.get("authOptions", {})
        secret = options.get("secretName")
        if options.get("mode") != "token" or not secret:
            yield f"{cluster.where}: anybody who reaches it can run what he likes in it"
        for pod in pods([cluster.owner]):
            given = {variable["name"]: variable for variable in pod.main.get("env", [])}
            key = given.get("RAY_AUTH_TOKEN", {}).get("valueFrom", {}).get("secretKeyRef", {})
            if given.get("RAY_AUTH_MODE", {}).get("value") != "token":
                yield f"{cluster.where}, {pod.main['name']}: RAY_AUTH_MODE is not token"
            if (key.get("name"), key.get("key")) != (secret, "auth_token"):
                yield f"{cluster.where}, {pod.main['name']}: its token is not the operator's"


def is_reached_by_its_own_alone(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        own = pods([cluster.owner])
        for pod in own:
            selecting = policies(manifests, pod, "Ingress")
            if not selecting:
                yield f"{cluster.where}, {pod.main['name']}: takes connections from everywhere"
            for rule in [rule for policy in selecting for rule in policy["spec"].get("ingress", [])]:
                if not all(_is_own(peer, own) or _is_operator(peer, rule) for peer in rule.get("from", [{}])):
                    yield f"{cluster.where}, {pod.main['name']}: others than its own pods reach it"


def _is_own(peer: dict[str, Any], own: list[Pod]) -> bool:
    selector = peer.get("podSelector") or {}
    return set(peer) == {"podSelector"} and bool(selector) and all(selects(selector, pod.labels) for pod in own)


def _is_operator(peer: dict[str, Any], rule: dict[str, Any]) -> bool:
    return peer.get("podSelector") == {"matchLabels": OPERATOR} and rule.get("ports") == [DASHBOARD]


def its_pods_reach_each_other(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        own = pods([cluster.owner])
        for direction, peers in (("Ingress", "from"), ("Egress", "to")):
            rules = [
                rule
                for policy in policies(manifests, cluster.head, direction)
                for rule in policy["spec"].get(direction.lower(), [])
            ]
            if not any("ports" not in rule and _is_own(peer, own) for rule in rules for peer in rule.get(peers, [])):
                yield f"{cluster.where}: no {direction} for Ray, which picks its ports at random"


def is_watched_by_its_operator(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        selecting = policies(manifests, cluster.head, "Ingress")
        rules = [rule for policy in selecting for rule in policy["spec"].get("ingress", [])]
        if not any(_is_operator(peer, rule) for rule in rules for peer in rule.get("from", [])):
            yield f"{cluster.where}: the operator cannot ask its head how the job is"


def tells_nobody(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        for pod in pods([cluster.owner]):
            if environment(pod.main, manifests).get("RAY_USAGE_STATS_ENABLED") != "0":
                yield f"{cluster.where}, {pod.main['name']}: Ray reports how it is used"


def runs_the_version_that_is_tested(manifests: Manifests) -> Complaints:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for cluster in clusters(manifests):
        if cluster.spec.get("rayVersion") != pinned[1]:
            yield f"{cluster.where}: rayVersion is {cluster.spec.get('rayVersion')}, and the image has {pinned[1]}"


def trains_apart_from_its_head(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        if cluster.spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
            yield f"{cluster.where}: workers may train on the head"
        if any(toleration.get("key") in (*SPOT, None) for toleration in cluster.head.spec.get("tolerations", [])):
            yield f"{cluster.where}: the head may be on a node that is taken away"


def has_shared_memory(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        for group, pod in cluster.nodes:
            volume = pod.mounted(pod.main).get("/dev/shm", {}).get("emptyDir", {})
            store = float(group["rayStartParams"].get("object-store-memory", "inf"))
            if volume.get("medium") != "Memory" or quantity(volume.get("sizeLimit", 0)) < store:
                yield f"{cluster.where}, {pod.main['name']}: its object store does not fit into /dev/shm"


def asks_for_no_more_than_it_has(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        for group, pod in cluster.workers:
            if len({group.get(name) for name in ("replicas", "minReplicas", "maxReplicas")}) != 1:
                yield f"{cluster.where}: nobody scales it, and its least and most workers differ"
            variables = environment(pod.main, manifests)
            resource = "nvidia.com/gpu" if variables.get("SHIPLINE_TRAINER__ACCELERATOR") == "gpu" else "cpu"
            have = int(quantity(pod.main["resources"]["limits"].get(resource, 0))) * group["replicas"]
            if int(after(cluster.words, "--trainer.workers") or 0) > have:
                yield f"{cluster.where}: its job wants more workers than there are {resource}s"
            if "nvidia.com/gpu" in pod.main["resources"]["limits"] and resource == "cpu":
                yield f"{cluster.where}: nothing says that it trains on its GPUs"


def keeps_its_results(manifests: Manifests) -> Complaints:
    claims = [claim["metadata"]["name"] for claim in of_kind(manifests, "PersistentVolumeClaim")]
    for cluster in clusters(manifests):
        for _, pod in cluster.nodes:
            root = environment(pod.main, manifests).get("SHIPLINE_TRAINER__DEFAULT_ROOT_DIR") or ""
            volume = pod.mounted(pod.main).get(root, {}).get("persistentVolumeClaim", {})
            if not re.match(r"(s3|gs|az)://.", root) and volume.get("claimName") not in claims:
                yield f"{cluster.where}, {pod.main['name']}: its runs, at {root!r}, go with the pod"


def goes_on_after_a_loss(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        if cluster.owner["kind"] == "RayJob":
            if after(cluster.words, "--ckpt_path") != "auto":
                yield f"{cluster.where}: begins anew after each failure"
            if not cluster.owner["spec"].get("backoffLimit"):
                yield f"{cluster.where}: ends with its head"
        for _, pod in cluster.workers:
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            spot = any(toleration.get("key") in SPOT for toleration in pod.spec.get("tolerations", []))
            if grace < SAVING_S or (spot and grace > NOTICE_S):
                yield f"{cluster.where}: {grace} s to save what a worker has done"
            told = " ".join(pod.main.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []))
            deadline = re.search(
                r"ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION .*-seconds (\d+) && sleep \1$", told
            )
            if deadline is None or not SAVING_S <= int(deadline[1]) < grace:
                yield f"{cluster.where}: a worker is killed before Ray knows that it goes"


def takes_its_cluster_away(manifests: Manifests) -> Complaints:
    for job in of_kind(manifests, "RayJob"):
        if not job["spec"].get("shutdownAfterJobFinishes") or job["spec"].get("ttlSecondsAfterFinished", 1e9) > 3600:
            yield f"{title(job)}: its cluster stays when it is done"


def is_probed_by_what_ray_answers(manifests: Manifests) -> Complaints:
    for cluster in clusters(manifests):
        for _, pod in cluster.nodes:
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                if pod.main.get(name, {}).get("httpGet") != {"path": "/api/healthz", "port": 52365}:
                    yield f"{cluster.where}, {pod.main['name']}: its {name} is the operator's, for other images"


RAY_RULES: list[Rule] = [
    asks_for_a_token, is_reached_by_its_own_alone, its_pods_reach_each_other, is_watched_by_its_operator, tells_nobody,
    runs_the_version_that_is_tested, trains_apart_from_its_head, has_shared_memory, asks_for_no_more_than_it_has,
    keeps_its_results, goes_on_after_a_loss, takes_its_cluster_away, is_probed_by_what_ray_answers,
]  # fmt: skip
