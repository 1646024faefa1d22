"""Every rendered manifest is valid and keeps our rules, and each rule can fail."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers import ROOT

import shipline
from shipline import plugins
from shipline.commands import serve as serve_command
from shipline.serve.settings import ServerSettings

from . import rules
from .breaks import Break, also, at, drop, more, put, without
from .manifests import Manifest, Manifests, pods, render, servers, title
from .rules import RULES, Rule
from .validity import validate

K8S = ROOT / "k8s"
OLDEST = "1.30"  # the first that has the kubelet's own `sleep` without being asked for it

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not installed")


def kustomizations() -> list[Path]:
    """Whatever below k8s/ can be rendered; a Component is a part of others."""
    found = sorted(K8S.rglob("kustomization.yaml"))
    return [path.parent for path in found if yaml.safe_load(path.read_text()).get("kind") != "Component"]


@pytest.fixture(params=kustomizations(), ids=lambda folder: folder.relative_to(K8S).as_posix())
def rendered(request: pytest.FixtureRequest) -> Manifests:
    """The manifests of each kustomization."""
    return render(request.param)


@pytest.fixture
def base() -> Manifests:
    return render(K8S / "base")


def names(checks: list[Rule]) -> list[str]:
    return [check.__name__ for check in checks]


# --- what stands in k8s/ ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_rendered_manifest_is_valid_kubernetes(rendered: Manifests, version: str) -> None:
    for manifest in rendered:
        validate(manifest, version)


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_every_rendered_manifest_keeps_the_rule(rendered: Manifests, rule: Rule) -> None:
    assert list(rule(rendered)) == []


def test_every_manifest_below_k8s_is_rendered_by_a_kustomization() -> None:
    known = {title(manifest) for folder in kustomizations() for manifest in render(folder)}
    for path in sorted(K8S.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            found = {title(manifest) for manifest in yaml.safe_load_all(path.read_text()) if manifest}
            assert found <= known, f"{path} is not rendered, so no rule sees it"


def test_the_base_holds_what_serving_needs(base: Manifests) -> None:
    kinds = ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"]
    assert sorted(manifest["kind"] for manifest in base) == kinds
    assert len(pods(base)) == len(servers(base)) == 1


def test_the_image_is_the_version_of_this_package(base: Manifests) -> None:
    assert pods(base)[0].main["image"] == f"shipline:{shipline.__version__}"


def test_the_command_line_takes_the_arguments_of_the_container(
    base: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[str, dict[str, Any]]] = []
    load = plugins.load_target

    def loaded(target: str) -> Any:
        if target == "shipline.serve.server:serve":
            return lambda url, **options: served.append((url, options))
        return load(target)

    monkeypatch.setattr(plugins, "load_target", loaded)
    monkeypatch.setattr(serve_command, "log_to_terminal", list)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command, *arguments = pods(base)[0].main["args"]
    serve_command.run([argument.replace("$(SHIPLINE_URL)", "s3://models") for argument in arguments])
    assert command == "serve"
    ((url, options),) = served
    assert url == "s3://models"
    assert (options["host"], options["port"], options["trust"]) == ("0.0.0.0", 8000, [])  # noqa: S104 -- compared alone
    assert options["settings"] == ServerSettings(health_port=8081)


def test_the_overlay_of_the_readme_renders_and_keeps_every_rule(tmp_path: Path) -> None:
    overlays = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    overlay = [text for text in overlays if "../../base" in text]
    assert len(overlay) == 1
    shutil.copytree(K8S / "base", tmp_path / "base")
    mine = tmp_path / "overlays" / "mine"
    mine.mkdir(parents=True)
    (mine / "kustomization.yaml").write_text(overlay[0])
    manifests = render(mine)
    container = pods(manifests)[0].main
    assert [complaint for rule in RULES for complaint in rule(manifests)] == []
    assert container["image"] == f"registry.example.com/shipline:{shipline.__version__}"
    assert rules.environment(container, manifests)["SHIPLINE_URL"] == "s3://bucket/models"


# --- each rule can fail -----------------------------------------------------------------------------------------------

POD = ("Deployment", "spec", "template", "spec")
SERVE = (*POD, "containers", 0)
POLICY = ("NetworkPolicy", "spec")
EGRESS = (*POLICY, "egress")


BARE = {"name": "later", "image": "busybox"}
HOST = {"name": "host", "hostPath": {"path": "/"}}
UNCONFINED = {"type": "Unconfined"}
READY = "/v2/health/ready"
HTTPS = [{"protocol": "TCP", "port": 443}]
TOKEN = {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


def route(*paths: str) -> Manifest:
    served = [{"path": path, "pathType": "Prefix"} for path in paths]
    return {"kind": "Ingress", "spec": {"rules": [{"http": {"paths": served}}]}}


def way_out(cidr: str) -> dict[str, Any]:
    return {"to": [{"ipBlock": {"cidr": cidr}}], "ports": HTTPS}


# rule, what it says, what was done to the base
BROKEN: list[tuple[Rule, str, Break]] = [
    (rules.runs_as_an_ordinary_user, "runAsNonRoot is not", put(False, *SERVE, "securityContext", "runAsNonRoot")),
    (rules.runs_as_an_ordinary_user, "runAsUser is root", drop(*POD, "securityContext", "runAsUser")),
    (rules.runs_as_an_ordinary_user, "runAsUser is root", put(0, *SERVE, "securityContext", "runAsUser")),
    (rules.runs_as_an_ordinary_user, "seccomp", drop(*POD, "securityContext", "seccompProfile")),
    (rules.runs_as_an_ordinary_user, "seccomp", put(UNCONFINED, *SERVE, "securityContext", "seccompProfile")),
    (rules.has_no_privileges, "can be gained", drop(*SERVE, "securityContext", "allowPrivilegeEscalation")),
    (rules.has_no_privileges, "can be gained", put(True, *SERVE, "securityContext", "privileged")),
    (rules.has_no_privileges, "capabilities", drop(*SERVE, "securityContext", "capabilities")),
    (rules.has_no_privileges, "capabilities", put(["NET_RAW"], *SERVE, "securityContext", "capabilities", "add")),
    (rules.has_no_privileges, "container later", put([BARE], *POD, "initContainers")),
    (rules.stays_apart_from_its_node, "namespace", put(True, *POD, "hostNetwork")),
    (rules.stays_apart_from_its_node, "path of the node", more(HOST, *POD, "volumes")),
    (rules.stays_apart_from_its_node, "listens", put(80, *SERVE, "ports", 0, "hostPort")),
    (rules.writes_only_where_it_may, "read-only", drop(*SERVE, "securityContext", "readOnlyRootFilesystem")),
    (rules.writes_only_where_it_may, "/tmp", drop(*SERVE, "volumeMounts", 1)),
    (rules.bounds_what_it_writes, "sizeLimit", put({}, *POD, "volumes", 0, "emptyDir")),
    (rules.bounds_what_it_writes, "hold more", put("1Gi", *SERVE, "resources", "limits", "ephemeral-storage")),
    (rules.bounds_what_it_writes, "than the memory", put("Memory", *POD, "volumes", 0, "emptyDir", "medium")),
    (rules.keeps_its_cache_within_the_volume, "CACHE_BYTES", put("6Gi", *POD, "volumes", 0, "emptyDir", "sizeLimit")),
    (rules.keeps_its_cache_within_the_volume, "CACHE_BYTES", drop(*SERVE, "env", 1)),
    (rules.keeps_its_cache_within_the_volume, "CACHE_DIR", put("/root", *SERVE, "env", 0, "value")),
    (rules.has_no_service_account_token, "mounts its token", drop("ServiceAccount", "automountServiceAccountToken")),
    (rules.has_no_service_account_token, "service-account token", drop(*POD, "automountServiceAccountToken")),
    (rules.has_no_service_account_token, "of its own", put("default", *POD, "serviceAccountName")),
    (rules.has_no_service_account_token, "projected", more(TOKEN, *POD, "volumes")),
    *[
        (rules.states_its_resources, f"no {name} in its {kind}", drop(*SERVE, "resources", kind, name))
        for kind in ("requests", "limits")
        for name in ("cpu", "memory", "ephemeral-storage")
    ],
    (rules.names_the_version_of_its_image, "'shipline'", put("shipline", *SERVE, "image")),
    (rules.names_the_version_of_its_image, "latest", put("localhost:5000/shipline:latest", *SERVE, "image")),
    (rules.cannot_reach_the_metadata_service, "no network policy", without("NetworkPolicy")),
    (rules.cannot_reach_the_metadata_service, "no network", put(["Ingress"], *POLICY, "policyTypes")),
    (rules.cannot_reach_the_metadata_service, "169.254.169.254", drop(*EGRESS, 1, "to", 0, "ipBlock", "except", 0)),
    (rules.cannot_reach_the_metadata_service, "fd00:ec2::254", drop(*EGRESS, 1, "to", 1, "ipBlock", "except")),
    (rules.cannot_reach_the_metadata_service, "169.254.169.254", more({"ports": HTTPS}, *EGRESS)),
    (rules.cannot_reach_the_metadata_service, "169.254.169.254", more(way_out("169.254.169.0/24"), *EGRESS)),
    (rules.reaches_its_store, "HTTPS", drop(*EGRESS, 1)),
    (rules.reaches_its_store, "DNS", drop(*EGRESS, 0)),
    (rules.reaches_its_store, "DNS", put("shipline", *EGRESS, 0, "to", 0, "podSelector", "matchLabels", "app")),
    (rules.is_asked_by_those_who_may, "from everywhere", drop(*POLICY, "ingress", 0, "from")),
    (rules.is_asked_by_those_who_may, "from everywhere", put(["Egress"], *POLICY, "policyTypes")),
    (rules.is_asked_by_those_who_may, "on ports", drop(*POLICY, "ingress", 0, "ports")),
    (rules.is_asked_by_those_who_may, "on ports", put(9, *POLICY, "ingress", 0, "ports", 0, "port")),
    (rules.is_not_open_to_the_world, "outside", put("LoadBalancer", "Service", "spec", "type")),
    (rules.is_not_open_to_the_world, "health and metrics", also(route("/"))),
    (rules.is_not_open_to_the_world, "health and metrics", also(route("/models", "/v2/health/ready"))),
    (rules.holds_no_secret, "Secret stands", also({"kind": "Secret", "stringData": {"a": "b"}})),
    (rules.holds_no_secret, "credential", put("s3://key:planted@host/models", "ConfigMap", "data", "SHIPLINE_URL")),
    (rules.holds_no_secret, "AWS_SECRET", put("planted", "ConfigMap", "data", "AWS_SECRET_ACCESS_KEY")),
    (rules.holds_no_secret, "API_TOKEN", more({"name": "API_TOKEN", "value": "planted"}, *SERVE, "env")),
    *[
        (rules.is_probed_on_paths_that_exist, f"{probe} asks None", drop(*SERVE, probe))
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    ],
    (rules.is_probed_on_paths_that_exist, "/healthz", put("/healthz", *SERVE, "livenessProbe", "httpGet", "path")),
    (rules.is_probed_on_paths_that_exist, "another port", put(8001, *SERVE, "livenessProbe", "httpGet", "port")),
    (rules.is_probed_on_paths_that_exist, "another port", put("http", *SERVE, "readinessProbe", "httpGet", "port")),
    (rules.is_probed_on_paths_that_exist, "is restarted", put(READY, *SERVE, "livenessProbe", "httpGet", "path")),
    (rules.has_time_to_load, "restarted before", put(30, *SERVE, "startupProbe", "failureThreshold")),
    (rules.has_time_to_load, "rollout", drop("Deployment", "spec", "progressDeadlineSeconds")),
    (rules.has_time_to_stop, "address", drop(*SERVE, "lifecycle")),
    (rules.has_time_to_stop, "own grace of 30 s", drop(*POD, "terminationGracePeriodSeconds")),
    (rules.has_time_to_stop, "own grace of 30 s", put(40, *POD, "terminationGracePeriodSeconds")),
    (rules.never_goes_down_as_a_whole, "rollout", drop("Deployment", "spec", "strategy")),
    (rules.never_goes_down_as_a_whole, "one replica", put(1, "Deployment", "spec", "replicas")),
    (rules.never_goes_down_as_a_whole, "on one node", drop(*POD, "topologySpreadConstraints")),
    (rules.lets_nodes_be_drained_one_by_one, "has 0", without("PodDisruptionBudget")),
    (rules.lets_nodes_be_drained_one_by_one, "no node", put(0, "PodDisruptionBudget", "spec", "maxUnavailable")),
    (rules.has_a_way_to_its_port, "targetPort", put("web", "Service", "spec", "ports", 0, "targetPort")),
    (rules.has_a_way_to_its_port, "no pod", put({"app": "other"}, "Service", "spec", "selector")),
    (rules.has_a_way_to_its_port, "another --health-port", put("8001", *SERVE, "args", -1)),
    (rules.has_a_way_to_its_port, "another --port", put("8001", *SERVE, "args", -3)),
    (rules.has_a_way_to_its_port, "port for health", put("health", "Service", "spec", "ports", 0, "targetPort")),
    (rules.selects_its_own_pods, "no pod", put({"app": "other"}, *POLICY, "podSelector", "matchLabels")),
    (rules.selects_its_own_pods, "own pods", put({"app": "other"}, "Deployment", "spec", "selector", "matchLabels")),
    (rules.gets_the_environment_that_it_uses, "SHIPLINE_URL is used", drop("ConfigMap", "data", "SHIPLINE_URL")),
    (rules.gets_the_environment_that_it_uses, "no ConfigMap", without("ConfigMap")),
    (rules.gets_the_environment_that_it_uses, "other Services", drop(*POD, "enableServiceLinks")),
    (rules.has_the_common_labels, "part-of", drop("Service", "metadata", "labels", "app.kubernetes.io/part-of")),
    (rules.has_the_common_labels, "its pods", put({}, "Deployment", "spec", "template", "metadata", "labels")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "said", "change"), BROKEN, ids=[f"{r.__name__}-{said}" for r, said, _ in BROKEN])
def test_a_rule_reports_a_manifest_that_breaks_it(base: Manifests, rule: Rule, said: str, change: Break) -> None:
    change(base)
    complaints = list(rule(base))
    assert any(said in complaint for complaint in complaints), complaints


@pytest.mark.parametrize("rule", RULES, ids=names(RULES))
def test_each_rule_is_shown_to_fail(rule: Rule) -> None:
    assert rule in [broken for broken, _, _ in BROKEN]


JOB = {"kind": "Job", "spec": {"template": {"spec": {"containers": [BARE]}}}}
CRON = {"kind": "CronJob", "spec": {"jobTemplate": {"spec": JOB["spec"]}}}
RAY = {"kind": "RayCluster", "spec": {"workerGroupSpecs": [JOB["spec"]]}}
FOR_EVERY_POD = [
    rules.runs_as_an_ordinary_user, rules.has_no_privileges, rules.writes_only_where_it_may,
    rules.has_no_service_account_token, rules.states_its_resources, rules.names_the_version_of_its_image,
    rules.cannot_reach_the_metadata_service, rules.gets_the_environment_that_it_uses, rules.has_the_common_labels,
]  # fmt: skip


@pytest.mark.parametrize("rule", FOR_EVERY_POD, ids=names(FOR_EVERY_POD))
@pytest.mark.parametrize("later", [JOB, CRON, RAY], ids=lambda manifest: manifest["kind"])
def test_a_workload_added_later_is_held_against_the_rule(base: Manifests, rule: Rule, later: Manifest) -> None:
    also(later)(base)
    assert any(complaint.startswith(f"{later['kind']}/later") for complaint in rule(base))


@pytest.mark.parametrize("rule", FOR_EVERY_POD[:2] + FOR_EVERY_POD[4:6], ids=lambda rule: rule.__name__)
def test_a_container_added_later_is_held_against_the_rule(base: Manifests, rule: Rule) -> None:
    bare = {**BARE, "securityContext": {"runAsNonRoot": False}}
    more(bare, *POD, "containers")(base)
    assert any("container later" in complaint for complaint in rule(base))


def test_an_unknown_field_is_not_valid(base: Manifests) -> None:
    put(True, *POD, "securityContext", "runAsNonRot")(base)
    with pytest.raises(kubernetes_validate.ValidationError, match="runAsNonRot"):
        kubernetes_validate.validate(at(base, "Deployment"), OLDEST, strict=True)


def test_a_route_to_the_predictions_alone_is_fine(base: Manifests) -> None:
    also(route("/models", "/v2/models/digits"))(base)
    assert list(rules.is_not_open_to_the_world(base)) == []
