"""Where settings come from: several files, here and elsewhere, the environment, options; and which of them wins."""

from __future__ import annotations

import functools
import http.server
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers import S3_SECRET
from jsonargparse import ArgumentParser

from shipline.config import dumped, import_from, new_parser, parse, read_sources
from shipline.errors import ConfigError, StoreError
from shipline.store import open_store

ZOO = """
class Animal:
    pass

class Dog(Animal):
    def __init__(self, name: str = "Rex", legs: int = 4):
        self.name, self.legs = name, legs
"""

FIRST = """
animal:
  class_path: zoo.Dog
  init_args: {name: Bello, legs: 3}
keeper: {rate: 0.5, seed: 1}
visitors: 2
"""

SECOND = """
animal:
  init_args: {name: Lassie}
keeper:
  rate: 0.7
"""


class Keeper:
    """Takes care."""

    def __init__(self, *, rate: float = 1.0, seed: int | None = None) -> None:
        self.rate, self.seed = rate, seed


@pytest.fixture
def parser(here: Path) -> ArgumentParser:
    """A parser for an animal of a class in zoo.py, a keeper and a number; two files of settings lie beside it."""
    (here / "zoo.py").write_text(ZOO)
    (here / "first.yaml").write_text(FIRST)
    (here / "second.yaml").write_text(SECOND)
    import_from([])
    parser = new_parser("visit", "Visit the zoo.")
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_subclass_arguments(importlib.import_module("zoo").Animal, "animal", required=True)
    parser.add_class_arguments(Keeper, "keeper")
    return parser


def settings(parser: ArgumentParser, *options: str, first: str | None = None, **environment: str) -> dict[str, Any]:
    """What is read from the options, a file given first, and variables of the environment."""
    return dumped(parser, parse(parser, read_sources(options, first, environment)))


def refusal(parser: ArgumentParser, *options: str, first: str | None = None, **environment: str) -> str:
    """What is said of them."""
    with pytest.raises(ConfigError) as caught:
        settings(parser, *options, first=first, **environment)
    return str(caught.value)


# ---- the order -------------------------------------------------------------------------------------------------------


def dog(name: str, legs: int = 3) -> dict[str, Any]:
    return {"class_path": "zoo.Dog", "init_args": {"name": name, "legs": legs}}


def test_a_later_file_changes_what_it_names_and_leaves_the_rest(parser: ArgumentParser) -> None:
    both = {"animal": dog("Lassie"), "keeper": {"rate": 0.7, "seed": 1}, "visitors": 2}
    assert settings(parser, "--config", "first.yaml", "--config=second.yaml") == both
    assert settings(parser, "--config", "second.yaml", first="first.yaml") == both
    assert settings(parser, "--config", "second.yaml", SHIPLINE_CONFIG="first.yaml") == both
    Path("third.yaml").write_text("keeper: {rate: 0.9}")
    for rate, names in ((0.5, ("third.yaml", "first.yaml")), (0.9, ("first.yaml", "third.yaml"))):
        files = [part for name in names for part in ("--config", name)]
        assert settings(parser, *files)["keeper"] == {"rate": rate, "seed": 1}


def test_options_override_the_environment_which_overrides_files(parser: ArgumentParser) -> None:
    variables = {"SHIPLINE_KEEPER__RATE": "0.8", "SHIPLINE_ANIMAL__NAME": "Laika", "SHIPLINE_VISITORS": "3"}
    found = settings(parser, "--visitors", "4", "--config", "second.yaml", first="first.yaml", **variables)
    assert found == {"animal": dog("Laika"), "keeper": {"rate": 0.8, "seed": 1}, "visitors": 4}


def test_the_environment_alone_is_enough(parser: ArgumentParser) -> None:
    found = settings(parser, SHIPLINE_ANIMAL="zoo.Dog", SHIPLINE_ANIMAL__INIT_ARGS__LEGS="2", SHIPLINE_KEEPER__SEED="7")
    assert found == {"animal": dog("Rex", 2), "keeper": {"rate": 1.0, "seed": 7}, "visitors": 1}
    whole = settings(parser, SHIPLINE_ANIMAL="{class_path: zoo.Dog, init_args: {legs: 2}}", SHIPLINE_KEEPER__SEED="7")
    assert whole == found


def test_only_a_command_that_looks_at_the_environment_is_changed_by_it(
    parser: ArgumentParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPLINE_VISITORS", "99")
    assert dumped(parser, parse(parser, ["--config", "first.yaml"]))["visitors"] == 2


def test_variables_that_are_not_ours_are_left_alone(parser: ArgumentParser) -> None:
    """Kubernetes gives every pod SHIPLINE_PORT and the like, where there is a service of that name."""
    others = {
        "SHIPLINE_PORT": "tcp://10.0.0.1:80", "SHIPLINE_SERVICE_HOST": "10.0.0.1", "SHIPLINE_CACHE_DIR": "/c",
        "VISITORS": "5", "shipline_visitors": "5",
    }  # fmt: skip
    assert settings(parser, first="first.yaml", **others)["visitors"] == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("VISITOR", "3", "The environment variable SHIPLINE_VISITOR names no option. Did you mean SHIPLINE_VISITORS?"),
        ("KEPER__RATE", "3", "SHIPLINE_KEPER__RATE names no option. Did you mean SHIPLINE_KEEPER__RATE?"),
        ("KEEPER__RAT", "3", "unknown variable SHIPLINE_KEEPER__RAT. Did you mean SHIPLINE_KEEPER__RATE?"),
        ("ANIMAL__NAM", "x", "unknown variable SHIPLINE_ANIMAL__NAM. Did you mean SHIPLINE_ANIMAL__NAME?"),
        ("ZEBRA__NAME", "x", "SHIPLINE_ZEBRA__NAME names no option. Write two underscores for each dot, such as"),
        ("VISITORS", "many", "SHIPLINE_VISITORS: expected int, got 'many'."),
        ("ANIMAL__LEGS", "four", "SHIPLINE_ANIMAL__LEGS: expected int, got 'four'."),
        ("ANIMAL", "zoo.Dgo", "SHIPLINE_ANIMAL: module 'zoo' has no class 'Dgo'. Did you mean 'Dog'?"),
        ("CONFIG", "frist.yaml", "There is no configuration file 'frist.yaml'. Did you mean 'first.yaml'?"),
    ],
)
def test_a_mistake_in_a_variable_is_named(parser: ArgumentParser, variable: str, value: str, message: str) -> None:
    assert message in refusal(parser, first="first.yaml", **{f"SHIPLINE_{variable}": value})


def test_a_mistake_is_looked_for_in_the_file_that_has_it(parser: ArgumentParser, here: Path) -> None:
    (here / "second.yaml").write_text("keeper:\n  rat: 0.7\n")
    said = "second.yaml:2: keeper: unknown key 'rat'. Did you mean 'rate'?"
    assert refusal(parser, "--config", "second.yaml", first="first.yaml") == said
    assert refusal(parser, "--config", "second.yaml", "--config", "first.yaml") == said
    (here / "second.yaml").write_text("\n\nanimal: {init_args: {nam: x}}\n")
    said = "second.yaml:3: animal: unknown key 'nam'. Did you mean 'name'?"
    assert refusal(parser, "--config", "second.yaml", first="first.yaml") == said


# ---- elsewhere -------------------------------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_arguments: Any) -> None:
        """Leave it out."""


@pytest.fixture
def web(parser: ArgumentParser, here: Path) -> Iterator[str]:
    """The URL at which the working directory is served."""
    assert parser
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=here)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_is_read_from_a_bucket(parser: ArgumentParser, s3: str) -> None:
    bucket = open_store(f"{s3}/configs")
    bucket.write("visit.yaml", FIRST.encode())
    local = settings(parser, "--config", "second.yaml", first="first.yaml")
    assert settings(parser, "--config", "second.yaml", first=f"{s3}/configs/visit.yaml") == local
    bucket.write("more.yaml", SECOND.encode())
    remote = ["--config", f"{s3}/configs/visit.yaml", "--config", f"{s3}/configs/more.yaml"]
    assert settings(parser, *remote) == local
    bucket.write("more.yaml", b"keeper:\n  rat: 2")
    assert refusal(parser, *remote) == f"{s3}/configs/more.yaml:2: keeper: unknown key 'rat'. Did you mean 'rate'?"
    bucket.write("more.yaml", b"visitors: !!python/name:os.system")
    assert refusal(parser, *remote).startswith(f"{s3}/configs/more.yaml:1: this is no readable YAML")
    assert refusal(parser, first=f"{s3}/configs/vist.yaml") == (
        f"There is no configuration file '{s3}/configs/vist.yaml'. Did you mean 'visit.yaml'?"
    )


def test_a_bucket_that_refuses_us_is_said_without_the_credentials(
    parser: ArgumentParser, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"Cannot read .*visit\.yaml") as caught:
        settings(parser, first=f"{s3}/configs/visit.yaml")
    assert S3_SECRET not in str(caught.value)


def test_a_file_is_read_from_the_web(parser: ArgumentParser, web: str, here: Path) -> None:
    local = settings(parser, "--config", "second.yaml", first="first.yaml")
    assert settings(parser, "--config", f"{web}/second.yaml", first=f"{web}/first.yaml") == local
    (here / "second.yaml").write_text("keeper: 3")
    assert refusal(parser, "--config", f"{web}/second.yaml", first="first.yaml") == (
        f"{web}/second.yaml:1: keeper: 3 holds no settings. Give some, or remove it."
    )
    assert refusal(parser, first=f"{web}/none.yaml").startswith(f"There is no configuration file '{web}/none.yaml'.")
    assert "hunter2" not in refusal(parser, first=f"http://key:hunter2@{web.removeprefix('http://')}/none.yaml")


@pytest.mark.parametrize("url", ["s3://bucket", "https://host/train.yaml?token=hunter2", "http://host/", "s3://"])
def test_what_is_no_url_of_a_file_is_refused(parser: ArgumentParser, url: str) -> None:
    said = refusal(parser, first=url)
    assert "is no URL of a file: give one such as s3://bucket/train.yaml, without a query." in said
    assert "hunter2" not in said


def test_a_protocol_that_is_not_known_is_named(parser: ArgumentParser) -> None:
    assert "nonsense" in refusal(parser, first="nonsense://host/train.yaml")


# ---- and back --------------------------------------------------------------------------------------------------------


def test_what_print_config_prints_is_read_back(
    parser: ArgumentParser, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", "first.yaml", "--keeper.rate", "0.25"]
    with pytest.raises(SystemExit) as ended:
        settings(parser, *given, "--print_config", SHIPLINE_ANIMAL__NAME="Laika")
    assert ended.value.code == 0
    (here / "printed.yaml").write_text(capsys.readouterr().out)
    want = settings(parser, *given, SHIPLINE_ANIMAL__NAME="Laika")
    assert settings(parser, first="printed.yaml") == want
    assert want["keeper"] == {"rate": 0.25, "seed": 1}
