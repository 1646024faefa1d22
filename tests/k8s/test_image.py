"""The images: not root, versions pinned, and what they copy is there. Read from the Dockerfiles; nothing is built."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from helpers import ROOT

SERVING = (ROOT / "k8s" / "Dockerfile").read_text()
TRAINING = (ROOT / "k8s" / "Dockerfile.train").read_text()
HEAVY = {"torch", "ray", "onnx", "onnxscript", "matplotlib", "sympy"}
Instruction = tuple[str, str]
Rule = Callable[[list[Instruction]], Iterator[str]]


def instructions(text: str) -> list[Instruction]:
    """Each instruction and its arguments, long lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def arguments(found: list[Instruction], wanted: str) -> list[str]:
    return [words for name, words in found if name == wanted]


def last_stage(found: list[Instruction]) -> list[Instruction]:
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return table


def required(extras: set[str]) -> set[str]:
    """The packages that shipline and these extras ask for."""
    asked: list[str] = [*project()["project"]["dependencies"]]
    for extra in extras:
        asked += project()["project"]["optional-dependencies"][extra]
    nested = {name for text in asked for name in extras_of(text)}
    return {re.split(r"[\[<>=;~ ]", text)[0] for text in asked} | (required(nested) if nested else set())


def extras_of(text: str) -> set[str]:
    found = re.search(r"(?:shipline|\.)\[([a-z0-9,]+)\]", text)
    return set(found[1].split(",")) if found else set()


def installs_only_what_serving_needs(found: list[Instruction]) -> Iterator[str]:
    run = " ".join(arguments(found, "RUN"))
    extras = extras_of(run)
    if not extras >= {"serve", "s3"}:
        yield "it installs neither the server nor its store"
    for name in sorted(HEAVY & (required(extras) | set(re.split(r"[\s=<>'\"]+", run)))):
        yield f"it installs {name}"


def installs_what_training_needs(found: list[Instruction]) -> Iterator[str]:
    run = " ".join(arguments(found, "RUN"))
    for extra in sorted({"train", "ray", "export", "s3"} - extras_of(run)):
        yield f"it does not install {extra}"
    if "scikit-learn" not in run.split():
        yield "the example finds no data"


def installs_the_pinned_versions(found: list[Instruction]) -> Iterator[str]:
    for command in re.split(r"&&|;", " ".join(arguments(found, "RUN"))):
        if " install " in command and " -c constraints.txt" not in command:
            yield f"{command.strip()} takes whatever is newest"


def runs_as_the_user_of_the_manifests(found: list[Instruction]) -> Iterator[str]:
    (deployment,) = yaml.safe_load_all((ROOT / "k8s" / "base" / "deployment.yaml").read_text())
    context = deployment["spec"]["template"]["spec"]["securityContext"]
    users = arguments(last_stage(found), "USER")
    if users[-1:] != [f"{context['runAsUser']}:{context['runAsGroup']}"]:
        yield f"it runs as {users[-1:]}"


def starts_from_a_named_version(found: list[Instruction]) -> Iterator[str]:
    stages = [words.split()[-1] for words in arguments(found, "FROM") if " AS " in words]
    for words in arguments(found, "FROM"):
        image = words.split()[0]
        if image not in stages and image.partition(":")[2] in ("", "latest"):
            yield f"{image} can change under its name"


def copies_what_the_build_needs(found: list[Instruction]) -> Iterator[str]:
    sources = {word for words in arguments(found, "COPY") if "--from" not in words for word in words.split()[:-1]}
    table = project()
    needed = {"pyproject.toml", "constraints.txt", table["project"]["readme"], *table["project"]["license-files"]}
    needed |= set(table["tool"]["setuptools"]["package-dir"].values())
    for name in sorted(needed - sources):
        yield f"{name} is not copied"
    for name in sorted(name for name in sources if not (ROOT / name).exists()):
        yield f"{name} does not exist"


def makes_the_server_process_one(found: list[Instruction]) -> Iterator[str]:
    if arguments(found, "ENTRYPOINT") != ['["shipline"]']:
        yield "a shell would get the signals, or the arguments of the container mean something else"


def leaves_the_command_to_the_operator(found: list[Instruction]) -> Iterator[str]:
    if arguments(found, "ENTRYPOINT") or arguments(found, "CMD"):
        yield "it starts something else than the operator asks for"
    environment = " ".join(arguments(last_stage(found), "ENV"))
    if "PATH=/opt/shipline/bin:$PATH" not in environment or "HOME=/tmp" not in environment:
        yield "the operator's shell does not find ray, or ray has no home"


def holds_the_example_of_the_job(found: list[Instruction]) -> Iterator[str]:
    job = yaml.safe_load((ROOT / "k8s" / "train" / "job" / "rayjob.yaml").read_text())
    wanted = job["spec"]["entrypoint"].split()[2]
    copied = [words.split() for words in arguments(last_stage(found), "COPY") if "--from" not in words]
    there = [target + str(path).removeprefix(str(ROOT / source))
             for source, target in copied for path in (ROOT / source).rglob("*.yaml")]  # fmt: skip
    if wanted not in there:
        yield f"{wanted} is not in it"


# rule, what it says, what to replace in the Dockerfile, by what
BROKEN: list[tuple[Rule, str, str, str]] = [
    (installs_only_what_serving_needs, "installs torch", "[serve,s3]", "[serve,s3,train]"),
    (installs_only_what_serving_needs, "installs ray", "[serve,s3]", "[all]"),
    (installs_only_what_serving_needs, "installs torch", "setuptools wheel \\", "setuptools wheel torch==2.13.0 \\"),
    (installs_only_what_serving_needs, "neither", "[serve,s3]", "[serve]"),
    (installs_the_pinned_versions, "newest", "-c constraints.txt --no-build-isolation", "--no-build-isolation"),
    (runs_as_the_user_of_the_manifests, "runs as []", "USER 10001:10001", ""),
    (runs_as_the_user_of_the_manifests, "runs as ['root']", "USER 10001:10001", "USER root"),
    (runs_as_the_user_of_the_manifests, "runs as ['0:0']", "EXPOSE 8000", "USER 0:0"),
    (starts_from_a_named_version, "python can", "FROM python:3.11-slim\n", "FROM python\n"),
    (starts_from_a_named_version, "python:latest can", "python:3.11-slim AS build", "python:latest AS build"),
    (copies_what_the_build_needs, "train is not", "COPY train train\n", ""),
    (copies_what_the_build_needs, "nothing does not exist", "COPY train train", "COPY train nothing train"),
    (makes_the_server_process_one, "a shell", 'ENTRYPOINT ["shipline"]', "ENTRYPOINT shipline"),
]
BROKEN_TRAINING: list[tuple[Rule, str, str, str]] = [
    (installs_what_training_needs, "install ray", "[train,ray,export,s3]", "[train,export,s3]"),
    (installs_what_training_needs, "no data", " scikit-learn\n", "\n"),
    (installs_the_pinned_versions, "newest", "-c constraints.txt --no-build-isolation", "--no-build-isolation"),
    (runs_as_the_user_of_the_manifests, "runs as []", "USER 10001:10001", ""),
    (starts_from_a_named_version, "python can", "FROM python:3.11-slim\n", "FROM python\n"),
    (copies_what_the_build_needs, "serve is not", "COPY serve serve\n", ""),
    (leaves_the_command_to_the_operator, "something else", "USER 10001:10001", 'ENTRYPOINT ["shipline"]'),
    (leaves_the_command_to_the_operator, "no home", " HOME=/tmp", ""),
    (holds_the_example_of_the_job, "train.yaml is not in it", "COPY examples /opt/shipline/examples\n", ""),
]
CASES = [(SERVING, *case) for case in BROKEN] + [(TRAINING, *case) for case in BROKEN_TRAINING]
KEPT = dict.fromkeys((text, rule) for text, rule, *_ in CASES)
NAMED = {SERVING: "serving", TRAINING: "training"}


@pytest.mark.parametrize(("dockerfile", "rule"), KEPT, ids=[f"{NAMED[t]}-{r.__name__}" for t, r in KEPT])
def test_the_image_keeps_the_rule(dockerfile: str, rule: Rule) -> None:
    assert list(rule(instructions(dockerfile))) == []


@pytest.mark.parametrize(
    ("dockerfile", "rule", "said", "old", "new"), CASES, ids=[f"{NAMED[t]}-{r.__name__}-{s}" for t, r, s, _, _ in CASES]
)
def test_a_rule_reports_an_image_that_breaks_it(dockerfile: str, rule: Rule, said: str, old: str, new: str) -> None:
    assert dockerfile.count(old) == 1
    complaints = list(rule(instructions(dockerfile.replace(old, new))))
    assert any(said in complaint for complaint in complaints), complaints
