"""A file of settings: plain YAML, or refused with its line; one that is not there is looked for beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipline.config import read_sources
from shipline.errors import ConfigError

YAMLS = [
    ("call", b"visitors: !!python/object/apply:os.system ['touch canary']", ":1: {} could not determine a constructor"),
    ("call at top", b"!!python/object/apply:os.system ['touch canary']", ":1: {} could not determine a constructor"),
    ("new", b"visitors: !!python/object/new:zoo.Dog []", ":1: {} could not determine a constructor for the tag"),
    ("name", b"visitors: !!python/name:os.system", ":1: {} could not determine a constructor for the tag"),
    ("module", b"visitors: !!python/module:os", ":1: {} could not determine a constructor for the tag"),
    ("own tag", b"a: 1\nvisitors: !secret x", ":2: {} could not determine a constructor for the tag '!secret'"),
    ("open bracket", b"animal: [", ":1: {} expected the node content"),
    ("tabs", b"animal:\n\tclass_path: x", ":2: {} found character '\\t' that cannot start any token"),
    ("indentation", b"animal:\n  a: 1\n   b: 2", ":3: {} mapping values are not allowed here"),
    ("two documents", b"a: 1\n---\nb: 2", ":2: {} but found another document"),
    ("list", b"[1, 2]", " is no mapping of options to values: it holds '[1, 2]'."),
    ("text", b"hello", " is no mapping of options to values: it holds 'hello'."),
    ("empty", b"", " is empty: there are no settings in it."),
    ("comments", b"# nothing\n", " is empty: there are no settings in it."),
    ("a key twice", b"a: 1\nb: {c: 1,\n  c: 2}", ":3: 'c' stands here and on line 2; only one would count."),
    ("control character", b"\0", ": {} unacceptable character #x0000"),
    ("no utf-8", b"\xff\xfe\0", ": {} 'utf-8' codec can't decode byte 0xff"),
    ("deep", b"a: " + b"[" * 2_000 + b"]" * 2_000, ": {} maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in YAMLS], ids=[row[0] for row in YAMLS])
def test_a_file_that_is_no_plain_yaml_is_refused_and_runs_nothing(here: Path, content: bytes, message: str) -> None:
    (here / "visit.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_sources([], "visit.yaml")
    assert str(caught.value).startswith(f"visit.yaml{message.format('this is no readable YAML:')}")
    assert sorted(path.name for path in here.iterdir()) == ["visit.yaml"]


@pytest.mark.parametrize("name", ["nothing.yaml", "", ".", "zoo.py/visit.yaml", "no/such/file.yaml", "-", "a\0b"])
def test_a_file_that_is_not_there_is_named(here: Path, name: str) -> None:
    (here / "zoo.py").touch()
    for given in ([name, []], [None, ["--config", name]]):
        with pytest.raises(ConfigError) as caught:
            read_sources(given[1], given[0])
        assert str(caught.value) == f"There is no configuration file {name!r}."


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("visti.yaml", " Did you mean 'visit.yaml'?"),
        ("configs/fram.yml", " Did you mean 'farm.yml'?"),
        ("other.yaml", " Beside it: night.yaml, visit.yaml."),
    ],
)
def test_a_file_that_is_not_there_suggests_what_is_beside_it(here: Path, name: str, hint: str) -> None:
    (here / "configs").mkdir()
    for path in ("visit.yaml", "night.yaml", "zoo.py", "configs/farm.yml"):
        (here / path).touch()
    with pytest.raises(ConfigError) as caught:
        read_sources([], name)
    assert str(caught.value) == f"There is no configuration file {name!r}.{hint}"


def test_a_file_that_cannot_be_read_says_why(here: Path) -> None:
    (here / "visit.yaml").symlink_to("visit.yaml")
    with pytest.raises(ConfigError) as caught:
        read_sources([], "visit.yaml")
    assert str(caught.value) == "The configuration file 'visit.yaml' cannot be read: Too many levels of symbolic links."
