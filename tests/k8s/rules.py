"""The rules that every rendered manifest keeps: rows 97 and 98 of the cases, and that the parts fit together.

A rule is a function from all manifests of one kustomization to the complaints about them. It looks at whatever is there
and not at names it knows, so that a manifest added later is held against it, too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from shipline.serve.http.app import Application
from shipline.serve.server import GRACE_S
from shipline.store import redact

from .manifests import (
    Container,
    Manifest,
    Manifests,
    Pod,
    containers,
    environment,
    of_kind,
    pods,
    port_number,
    quantity,
    selects,
    servers,
    texts,
    title,
)

Complaints = Iterator[str]
Rule = Callable[[Manifests], Complaints]

SLOW_STORE = 10e6  # bytes per second; startup allows for a cache full of models fetched at this rate
ENDPOINTS_S = 5  # what it takes at least until every node knows that a pod has left its Service
RESOURCES = ("cpu", "memory", "ephemeral-storage")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
LABELS = [f"app.kubernetes.io/{name}" for name in ("name", "component", "part-of")]
SOMEWHERE = "203.0.113.7"  # an object store on the internet
METADATA = (
    "169.254.169.254", "169.254.169.253", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200",
    "fd00:ec2::254", "fd20:ce::254",
)  # fmt: skip
SECRET_NAME = re.compile(r"(^|_)(secrets?|password|passwd|token|credentials?|key|sas|connection_string)(_|$)", re.I)
SECRET_VALUE = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN")


# --- row 97: what a server that is taken over could do ----------------------------------------------------------------


def runs_as_an_ordinary_user(manifests: Manifests) -> Complaints:
    for where, pod, container in containers(pods(manifests)):
        settings = pod.spec.get("securityContext", {}) | container.get("securityContext", {})
        if settings.get("runAsNonRoot") is not True:
            yield f"{where}: runAsNonRoot is not true"
        if not settings.get("runAsUser"):
            yield f"{where}: runAsUser is root, or whatever the image says"
        if settings.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: the seccomp profile is not RuntimeDefault"


def has_no_privileges(manifests: Manifests) -> Complaints:
    for where, _, container in containers(pods(manifests)):
        settings = container.get("securityContext", {})
        capabilities = settings.get("capabilities", {})
        if settings.get("allowPrivilegeEscalation") is not False or settings.get("privileged"):
            yield f"{where}: privileges can be gained"
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{where}: capabilities are left"


def stays_apart_from_its_node(manifests: Manifests) -> Complaints:
    for where, pod, container in containers(pods(manifests)):
        if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{where}: shares a namespace with the node"
        if any("hostPath" in volume for volume in pod.volumes):
            yield f"{where}: mounts a path of the node"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{where}: listens on the node"


def writes_only_where_it_may(manifests: Manifests) -> Complaints:
    for where, pod, container in containers(pods(manifests)):
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{where}: the root file system is not read-only"
        if "/tmp" not in pod.mounted(container):
            yield f"{where}: nothing is mounted at /tmp"


def bounds_what_it_writes(manifests: Manifests) -> Complaints:
    for pod in pods(manifests):
        volumes = [volume["emptyDir"] for volume in pod.volumes if "emptyDir" in volume]
        if any("sizeLimit" not in volume for volume in volumes):
            yield f"{pod.where}: an emptyDir has no sizeLimit"
            continue
        for resource, medium in (("ephemeral-storage", ""), ("memory", "Memory")):
            held = sum(quantity(each["sizeLimit"]) for each in volumes if each.get("medium", "") == medium)
            limits = [c.get("resources", {}).get("limits", {}).get(resource, 0) for c in pod.containers]
            if held > sum(map(quantity, limits)):
                yield f"{pod.where}: its volumes hold more than the {resource} that it may use"


def keeps_its_cache_within_the_volume(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        variables = environment(pod.main, manifests)
        volume = pod.mounted(pod.main).get(variables.get("SHIPLINE_CACHE_DIR") or "", {})
        if "emptyDir" not in volume:
            yield f"{pod.where}: SHIPLINE_CACHE_DIR is not a volume of its own"
        # The file that is being fetched comes on top of what is cached; it may be as large as the cache.
        elif 2 * cache_bytes(pod, manifests) > quantity(volume["emptyDir"].get("sizeLimit", 0)):
            yield f"{pod.where}: SHIPLINE_CACHE_BYTES is more than half of the volume's sizeLimit"


def cache_bytes(pod: Pod, manifests: Manifests) -> float:
    return quantity(environment(pod.main, manifests).get("SHIPLINE_CACHE_BYTES") or "20Gi")


def has_no_service_account_token(manifests: Manifests) -> Complaints:
    accounts = of_kind(manifests, "ServiceAccount")
    for account in accounts:
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)}: mounts its token"
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: mounts a service-account token"
        if pod.spec.get("serviceAccountName") not in [account["metadata"]["name"] for account in accounts]:
            yield f"{pod.where}: has no service account of its own"
        sources = [source for volume in pod.volumes for source in volume.get("projected", {}).get("sources", [])]
        if any("serviceAccountToken" in source for source in sources):
            yield f"{pod.where}: mounts a projected token"


def states_its_resources(manifests: Manifests) -> Complaints:
    for where, _, container in containers(pods(manifests)):
        for kind in ("requests", "limits"):
            for name in RESOURCES:
                if name not in container.get("resources", {}).get(kind, {}):
                    yield f"{where}: no {name} in its {kind}"


def names_the_version_of_its_image(manifests: Manifests) -> Complaints:
    for where, _, container in containers(pods(manifests)):
        image = container["image"].rpartition("/")[2]
        if "@sha256:" not in image and image.partition(":")[2] in ("", "latest"):
            yield f"{where}: image {container['image']!r} can change under its name"


def policies(manifests: Manifests, pod: Pod, direction: str) -> Manifests:
    """The network policies that restrict the pod in this direction."""
    found = [policy for policy in of_kind(manifests, "NetworkPolicy") if direction in policy["spec"]["policyTypes"]]
    return [policy for policy in found if selects(policy["spec"]["podSelector"], pod.labels)]


def lets_out(policy: Manifest, address: str, port: tuple[str, int] | None = None) -> bool:
    """Whether pods may send to the address; on any port, unless one is given."""
    for rule in policy["spec"].get("egress", []):
        ports = [(p.get("protocol", "TCP"), p.get("port")) for p in rule.get("ports", [])]
        peers = rule.get("to") or [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
        if (port is None or not ports or port in ports) and any(holds(peer.get("ipBlock"), address) for peer in peers):
            return True
    return False


def holds(block: dict[str, Any] | None, address: str) -> bool:
    if block is None:
        return False
    inside, *outside = [ipaddress.ip_network(text) for text in [block["cidr"], *block.get("except", [])]]
    wanted = ipaddress.ip_address(address)
    return wanted in inside and not any(wanted in network for network in outside)


def cannot_reach_the_metadata_service(manifests: Manifests) -> Complaints:
    for pod in pods(manifests):
        selecting = policies(manifests, pod, "Egress")
        if not selecting:
            yield f"{pod.where}: no network policy says where it may send to"
        for address in METADATA:
            if any(lets_out(policy, address) for policy in selecting):
                yield f"{pod.where}: may send to {address}"


def reaches_its_store(manifests: Manifests) -> Complaints:
    for pod in pods(manifests):
        selecting = policies(manifests, pod, "Egress")
        if not any(lets_out(policy, SOMEWHERE, ("TCP", 443)) for policy in selecting):
            yield f"{pod.where}: may not send to an object store over HTTPS"
        rules = [rule for policy in selecting for rule in policy["spec"].get("egress", [])]
        dns = [rule for rule in rules if {"protocol": "UDP", "port": 53} in rule.get("ports", [])]
        asked = [peer.get("podSelector") for rule in dns for peer in rule.get("to", [])]
        if {"matchLabels": {"k8s-app": "kube-dns"}} not in asked:
            yield f"{pod.where}: may not ask the cluster's DNS"


def is_asked_by_those_who_may(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        selecting = policies(manifests, pod, "Ingress")
        rules = [rule for policy in selecting for rule in policy["spec"].get("ingress", [])]
        if not selecting or any(not rule.get("from") for rule in rules):
            yield f"{pod.where}: takes connections from everywhere"
        ports = [port.get("port") for rule in rules for port in rule.get("ports", [{}])]
        if any(port_number(port, pod.main) is None for port in ports):
            yield f"{pod.where}: takes connections on ports that it does not have"


def is_not_open_to_the_world(manifests: Manifests) -> Complaints:
    """The port of the predictions has health and metrics, too: nothing leads to them from outside the cluster."""
    for service in of_kind(manifests, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP" or service["spec"].get("externalIPs"):
            yield f"{title(service)}: reaches outside the cluster"
    for route in of_kind(manifests, "Ingress", "HTTPRoute"):
        paths = [text for key, text in texts(route["spec"]) if key in ("path", "value")]
        inside = [path for path in paths if re.match(r"/(v2/)?models(/|$)", path)]
        if not paths or inside != paths or "defaultBackend" in route["spec"]:
            yield f"{title(route)}: leads to health and metrics"


def holds_no_secret(manifests: Manifests) -> Complaints:
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"{title(manifest)}: a Secret stands in a file"
        if any(redact(text) != text or SECRET_VALUE.search(text) for _, text in texts(manifest)):
            yield f"{title(manifest)}: holds what looks like a credential"
    for manifest in of_kind(manifests, "ConfigMap"):
        for name in filter(SECRET_NAME.search, manifest.get("data", {})):
            yield f"{title(manifest)}: the value of {name} stands in a file"
    for where, _, container in containers(pods(manifests)):
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "valueFrom" not in variable:
                yield f"{where}: the value of {variable['name']} stands in a file"


# --- row 98: probes and shutdown --------------------------------------------------------------------------------------


@cache
def routes() -> frozenset[str]:
    """The paths of the server's application."""
    application = Application("memory://nothing", lambda error: None)
    return frozenset(getattr(route, "path", "") for route in application.routes)


def is_probed_on_paths_that_exist(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        for container in pod.spec["containers"]:
            asked = {name: container.get(name, {}).get("httpGet", {}) for name in PROBES}
            for name, probe in asked.items():
                if probe.get("path") not in routes():
                    yield f"{pod.where}: {name} asks {probe.get('path')}, which the server does not have"
                if port_number(probe.get("port"), container) != listening(container, "--health-port"):
                    yield f"{pod.where}: {name} asks another port than the one for health"
            if asked["readinessProbe"].get("path") == asked["livenessProbe"].get("path"):
                yield f"{pod.where}: what is not ready is restarted"


def listening(container: Container, option: str) -> int | None:
    """The port that the server is told to listen on, where the container declares it."""
    words = container.get("args", [])
    return port_number(int(words[words.index(option) + 1]), container) if option in words else None


def allowance(container: Container) -> float:
    """How many seconds a container may take to start."""
    probe = container.get("startupProbe", {})
    return float(
        probe.get("initialDelaySeconds", 0) + probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
    )


def has_time_to_load(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        if allowance(pod.main) <= cache_bytes(pod, manifests) / SLOW_STORE:
            yield f"{pod.where}: restarted before a cache full of models is loaded"
        if pod.owner["spec"].get("progressDeadlineSeconds", 600) <= allowance(pod.main):
            yield f"{pod.where}: its rollout is called failed before the startup probe gives up"


def has_time_to_stop(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        hooks = [container.get("lifecycle", {}).get("preStop", {}) for container in pod.spec["containers"]]
        delays = [hook.get("sleep", {}).get("seconds", 0) for hook in hooks]
        if min(delays) < ENDPOINTS_S:
            yield f"{pod.where}: stops before its address is gone from everywhere"
        if pod.spec.get("terminationGracePeriodSeconds", 30) <= max(delays) + GRACE_S:
            yield f"{pod.where}: killed before the server's own grace of {GRACE_S} s is over"


def never_goes_down_as_a_whole(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        spec = pod.owner["spec"]
        if spec.get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{pod.where}: a rollout takes pods away before there are new ones"
        if spec.get("replicas", 1) < 2:
            yield f"{pod.where}: has one replica"
        spread = [constraint["labelSelector"] for constraint in pod.spec.get("topologySpreadConstraints", [])]
        if not any(selects(selector, pod.labels) for selector in spread):
            yield f"{pod.where}: its pods may all be on one node"


def lets_nodes_be_drained_one_by_one(manifests: Manifests) -> Complaints:
    for pod in servers(manifests):
        budgets = [budget["spec"] for budget in of_kind(manifests, "PodDisruptionBudget")]
        budgets = [budget for budget in budgets if selects(budget["selector"], pod.labels)]
        if len(budgets) != 1:
            yield f"{pod.where}: has {len(budgets)} PodDisruptionBudgets, not one"
        replicas = pod.owner["spec"].get("replicas", 1)
        for budget in budgets:
            if budget.get("maxUnavailable") in (0, "0%") or budget.get("minAvailable") in (replicas, "100%"):
                yield f"{pod.where}: its PodDisruptionBudget lets no node be drained"


# --- that the parts fit together --------------------------------------------------------------------------------------


def has_a_way_to_its_port(manifests: Manifests) -> Complaints:
    for service in of_kind(manifests, "Service"):
        behind = [pod for pod in pods(manifests) if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        if not behind:
            yield f"{title(service)}: no pod is behind it"
        targets = [port.get("targetPort", port["port"]) for port in service["spec"]["ports"]]
        reached = [port_number(target, pod.main) for target in targets for pod in behind]
        if None in reached:
            yield f"{title(service)}: its targetPort is not a port of the container"
        elif any(listening(pod.main, "--health-port") in reached for pod in behind):
            yield f"{title(service)}: leads to the port for health"
    for pod in servers(manifests):
        for option in ("--port", "--health-port"):
            if listening(pod.main, option) is None:
                yield f"{pod.where}: listens on another {option} than it declares"


def selects_its_own_pods(manifests: Manifests) -> Complaints:
    for policy in of_kind(manifests, "NetworkPolicy"):
        if not any(selects(policy["spec"]["podSelector"], pod.labels) for pod in pods(manifests)):
            yield f"{title(policy)}: no pod is selected"
    for pod in servers(manifests):
        if not selects(pod.owner["spec"]["selector"], pod.labels):
            yield f"{pod.where}: does not select its own pods"


def gets_the_environment_that_it_uses(manifests: Manifests) -> Complaints:
    for where, pod, container in containers(pods(manifests)):
        used = re.findall(r"\$\((\w+)\)", " ".join([*container.get("command", []), *container.get("args", [])]))
        for name in set(used) - environment(container, manifests).keys():
            yield f"{where}: {name} is used and not set"
        named = {source.get("configMapRef", {}).get("name") for source in container.get("envFrom", [])} - {None}
        for name in named - {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ConfigMap")}:
            yield f"{where}: there is no ConfigMap {name}"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{where}: other Services write variables of our names"


def has_the_common_labels(manifests: Manifests) -> Complaints:
    labelled = [(title(manifest), manifest["metadata"].get("labels", {})) for manifest in manifests]
    labelled += [(f"{pod.where}, its pods", pod.labels) for pod in pods(manifests)]
    for where, labels in labelled:
        for name in LABELS:
            if name not in labels:
                yield f"{where}: no label {name}"


RULES: list[Rule] = [
    runs_as_an_ordinary_user, has_no_privileges, stays_apart_from_its_node, writes_only_where_it_may,
    bounds_what_it_writes, keeps_its_cache_within_the_volume, has_no_service_account_token, states_its_resources,
    names_the_version_of_its_image, cannot_reach_the_metadata_service, reaches_its_store, is_asked_by_those_who_may,
    is_not_open_to_the_world, holds_no_secret, is_probed_on_paths_that_exist, has_time_to_load, has_time_to_stop,
    never_goes_down_as_a_whole, lets_nodes_be_drained_one_by_one, has_a_way_to_its_port, selects_its_own_pods,
    gets_the_environment_that_it_uses, has_the_common_labels,
]  # fmt: skip
