"""The manifests that train keep their rules, each rule can fail, and the operator's schema refuses the unknown."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml
from helpers import ROOT

import shipline
from shipline.commands import train as train_command
from shipline.config import parse, read_sources

from . import ray_rules
from .breaks import Break, at, drop, more, put, without
from .manifests import pods, render, title
from .ray_rules import RAY_RULES, clusters
from .rules import RULES, Rule
from .validity import validate

K8S = ROOT / "k8s"
TRAINING = ["train", "overlays/train-cpu", "overlays/train-gpu"]
OLDEST = "1.30"

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders them, is not installed")


@pytest.mark.parametrize("folder", TRAINING)
@pytest.mark.parametrize("rule", RAY_RULES, ids=lambda rule: rule.__name__)
def test_what_trains_keeps_the_rule(folder: str, rule: Rule) -> None:
    manifests = render(K8S / folder)
    assert list(rule(manifests)) == []
    assert len(clusters(manifests)) == 1


def test_a_job_has_the_cluster_that_stands_by_itself() -> None:
    """It is copied, so that there is one to maintain; here on CPUs, whose runs are on a volume."""
    (alone,), (own,) = clusters(render(K8S / "train")), clusters(render(K8S / "overlays/train-cpu"))
    groups = [*own.spec["workerGroupSpecs"], own.spec["headGroupSpec"]]
    for group in groups:
        specification = group["template"]["spec"]
        assert specification["volumes"].pop()["name"] == "runs"
        assert specification["containers"][0]["volumeMounts"].pop() == {"name": "runs", "mountPath": "/runs"}
    assert own.spec == alone.spec


def test_gpus_and_spot_nodes_are_for_workers_alone() -> None:
    (cluster,) = clusters(render(K8S / "overlays/train-gpu"))
    ((_, worker),) = cluster.workers
    assert worker.main["resources"]["limits"]["nvidia.com/gpu"] == "1"
    tolerated = [toleration["key"] for toleration in worker.spec["tolerations"]]
    assert tolerated == ["nvidia.com/gpu", *ray_rules.SPOT]
    assert "nvidia.com/gpu" not in cluster.head.main["resources"]["limits"]
    assert "tolerations" not in cluster.head.spec


@pytest.mark.parametrize("folder", TRAINING)
def test_the_image_is_the_version_of_this_package(folder: str) -> None:
    images = {pod.main["image"] for pod in pods(render(K8S / folder))}
    assert images == {f"shipline-train:{shipline.__version__}"}


@pytest.fixture(scope="module")
def imported() -> None:
    """What the example imports sets variables, and keeps them."""
    import sklearn.datasets  # noqa: F401
    import torch  # noqa: F401


@pytest.mark.parametrize("folder", TRAINING[1:])
def test_the_command_line_takes_the_jobs_words_and_variables(folder: str, imported: None) -> None:
    """Parsed as on the head, with the variables of the pod; tests/k8s/test_jobs.py runs it."""
    manifests = render(K8S / folder)
    (cluster,) = clusters(manifests)
    command, *words = shlex.split(cluster.owner["spec"]["entrypoint"].replace("/opt/shipline", str(ROOT)))
    assert command == "shipline"
    assert words.pop(0) == "train"
    given = {name: value for name, value in ray_rules.environment(cluster.head.main, manifests).items() if value}
    sources = read_sources(words[1:], words[0], given)
    settings = parse(train_command.train_parser("train", "", sources), sources)
    assert settings.trainer.workers == 2
    assert settings.trainer.default_root_dir == given["SHIPLINE_TRAINER__DEFAULT_ROOT_DIR"]
    assert settings.trainer.accelerator == ("gpu" if "gpu" in folder else "auto")


def test_the_overlay_of_the_readme_renders_and_keeps_every_rule(tmp_path: Path) -> None:
    overlays = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    (overlay,) = [text for text in overlays if "../../train" in text]
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(overlay)
    manifests = render(mine)
    assert [complaint for rule in (*RULES, *RAY_RULES) for complaint in rule(manifests)] == []
    assert {pod.main["image"].partition("/")[0] for pod in pods(manifests)} == {"registry.example.com"}
    assert yaml.safe_load(overlay)["namespace"] == manifests[0]["metadata"]["namespace"]


# --- each rule can fail -----------------------------------------------------------------------------------------------

CLUSTER = ("RayJob", "spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec", "template", "spec")
GROUP = (*CLUSTER, "workerGroupSpecs", 0)
WORKER = (*GROUP, "template", "spec")
SUBMITTER = ("RayJob", "spec", "submitterPodTemplate", "spec", "containers", 0)
POLICY = ("NetworkPolicy", "spec")
ROOT_DIR = "SHIPLINE_TRAINER__DEFAULT_ROOT_DIR"
KEY = ("valueFrom", "secretKeyRef")
ANY_POD = {"from": [{"podSelector": {}}]}
WORLD = {"ports": [{"protocol": "TCP", "port": 8265}]}

# rule, what it says, what was done to the job on GPUs
BROKEN: list[tuple[Rule, str, Break]] = [
    (ray_rules.asks_for_a_token, "anybody", drop(*CLUSTER, "authOptions")),
    (ray_rules.asks_for_a_token, "anybody", put("disabled", *CLUSTER, "authOptions", "mode")),
    (ray_rules.asks_for_a_token, "ray-head: RAY_AUTH_MODE", put("disabled", *HEAD, "containers", 0, "env", 0, "value")),
    (ray_rules.asks_for_a_token, "ray-worker: its token", put("a", *WORKER, "containers", 0, "env", 1, *KEY, "name")),
    (ray_rules.asks_for_a_token, "submitter: its token", drop(*SUBMITTER, "env")),
    (ray_rules.is_reached_by_its_own_alone, "everywhere", without("NetworkPolicy")),
    (ray_rules.is_reached_by_its_own_alone, "others", more(ANY_POD, *POLICY, "ingress")),
    (ray_rules.is_reached_by_its_own_alone, "others", more(WORLD, *POLICY, "ingress")),
    (ray_rules.is_reached_by_its_own_alone, "others", drop(*POLICY, "ingress", 1, "ports")),
    (ray_rules.its_pods_reach_each_other, "Ingress", drop(*POLICY, "ingress", 0)),
    (ray_rules.its_pods_reach_each_other, "Egress", drop(*POLICY, "egress", 0)),
    (ray_rules.its_pods_reach_each_other, "Egress", put([], *POLICY, "egress", 0, "ports")),
    (ray_rules.is_watched_by_its_operator, "operator", drop(*POLICY, "ingress", 1)),
    (ray_rules.tells_nobody, "ray-head", drop(*HEAD, "containers", 0, "env", 2)),
    (ray_rules.runs_the_version_that_is_tested, "2.9.0", put("2.9.0", *CLUSTER, "rayVersion")),
    (ray_rules.trains_apart_from_its_head, "on the head", drop(*HEAD[:-2], "rayStartParams", "num-cpus")),
    (ray_rules.trains_apart_from_its_head, "taken away", put([{"operator": "Exists"}], *HEAD, "tolerations")),
    (ray_rules.has_shared_memory, "ray-worker", drop(*WORKER, "volumes", 1, "emptyDir", "medium")),
    (ray_rules.has_shared_memory, "ray-worker", put("64Mi", *WORKER, "volumes", 1, "emptyDir", "sizeLimit")),
    (ray_rules.has_shared_memory, "ray-head", drop(*HEAD, "containers", 0, "volumeMounts", 1)),
    (ray_rules.has_shared_memory, "ray-worker", drop(*GROUP, "rayStartParams", "object-store-memory")),
    (ray_rules.asks_for_no_more_than_it_has, "differ", put(4, *GROUP, "maxReplicas")),
    (ray_rules.asks_for_no_more_than_it_has, "nvidia.com/gpus", put(1, *GROUP, "replicas")),
    (ray_rules.asks_for_no_more_than_it_has, "its GPUs", drop("ConfigMap", "data", "SHIPLINE_TRAINER__ACCELERATOR")),
    (ray_rules.keeps_its_results, "go with the pod", put("/tmp/runs", "ConfigMap", "data", ROOT_DIR)),
    (ray_rules.keeps_its_results, "go with the pod", drop("ConfigMap", "data", ROOT_DIR)),
    (ray_rules.goes_on_after_a_loss, "anew", put("shipline train a.yaml", "RayJob", "spec", "entrypoint")),
    (ray_rules.goes_on_after_a_loss, "its head", drop("RayJob", "spec", "backoffLimit")),
    (ray_rules.goes_on_after_a_loss, "30 s", drop(*WORKER, "terminationGracePeriodSeconds")),
    (ray_rules.goes_on_after_a_loss, "600 s", put(600, *WORKER, "terminationGracePeriodSeconds")),
    (ray_rules.goes_on_after_a_loss, "killed", drop(*WORKER, "containers", 0, "lifecycle")),
    (ray_rules.goes_on_after_a_loss, "killed", put(60, *WORKER, "terminationGracePeriodSeconds")),
    (ray_rules.takes_its_cluster_away, "stays", drop("RayJob", "spec", "shutdownAfterJobFinishes")),
    (ray_rules.takes_its_cluster_away, "stays", drop("RayJob", "spec", "ttlSecondsAfterFinished")),
    (ray_rules.is_probed_by_what_ray_answers, "livenessProbe", drop(*WORKER, "containers", 0, "livenessProbe")),
    (ray_rules.is_probed_by_what_ray_answers, "ray-head", put({"exec": {}}, *HEAD, "containers", 0, "startupProbe")),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "said", "change"), BROKEN, ids=[f"{r.__name__}-{said}" for r, said, _ in BROKEN])
def test_a_rule_reports_a_job_that_breaks_it(rule: Rule, said: str, change: Break) -> None:
    manifests = render(K8S / "overlays/train-gpu")
    change(manifests)
    complaints = list(rule(manifests))
    assert any(said in complaint for complaint in complaints), complaints


def test_each_rule_is_shown_to_fail() -> None:
    assert {rule.__name__ for rule, *_ in BROKEN} == {rule.__name__ for rule in RAY_RULES}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("Always", "RayJob", "spec", "submissionMod"), "submissionMod"),
        (put(True, *CLUSTER, "authOptions", "secret"), "secret"),
        (put("open", *CLUSTER, "authOptions", "mode"), "'open' is not one of"),
        (put("2", *GROUP, "replicas"), "'2' is not of type 'integer'"),
        (drop(*GROUP, "groupName"), "'groupName' is a required property"),
        (put(1, *HEAD, "containers", 0, "envFron"), "envFron"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_operator_does_not_know_is_not_valid(change: Break, said: str) -> None:
    manifests = render(K8S / "overlays/train-cpu")
    change(manifests)
    with pytest.raises(jsonschema.ValidationError, match=re.escape(said)):
        validate(at(manifests, "RayJob"), OLDEST)


def test_a_cluster_is_held_against_the_same_schema() -> None:
    manifests = render(K8S / "train")
    put(True, "RayCluster", "spec", "enableInTreeAutoscalin")(manifests)
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalin"):
        validate(at(manifests, "RayCluster"), OLDEST)
    assert [title(manifest) for manifest in manifests][-1] == "RayCluster/shipline-train"
