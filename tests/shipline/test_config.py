"""Settings from YAML files and options: what is read, and what is said of mistakes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentParser

from shipline.config import build, import_from, new_parser, parse, plain
from shipline.errors import ConfigError

ZOO = """
from shipline.errors import ConfigError

class Animal:
    pass

class Dog(Animal):
    def __init__(self, name: str = "Rex", legs: int = 4, url: str | None = None, friends: list[str] | None = None):
        if legs < 0:
            raise ConfigError(f"Dog has legs={legs}.")
        if legs == 0:
            raise ZeroDivisionError("no legs") from KeyError("the reason")
        self.name, self.legs = name, legs

class Cage(Animal):
    def __init__(self, inside: Animal):
        self.inside = inside

class Stone:
    pass
"""

GOOD = """
animal:
  class_path: zoo.Dog
  init_args: {name: Bello}
keeper:
  rate: 0.5
"""


class Keeper:
    """Takes care."""

    def __init__(self, *, rate: float = 1.0, mode: Literal["day", "night"] = "day", seed: int | None = None) -> None:
        self.rate, self.mode, self.seed = rate, mode, seed


@pytest.fixture
def parser(here: Path) -> ArgumentParser:
    """A parser for an animal of a class in zoo.py, a keeper and two options; the file is in the working directory."""
    (here / "zoo.py").write_text(ZOO)
    import_from([])
    parser = new_parser("visit", "Visit the zoo.")
    parser.add_argument("--import_path", type=list[str], default=[])
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_subclass_arguments(importlib.import_module("zoo").Animal, "animal", required=True)
    parser.add_class_arguments(Keeper, "keeper")
    return parser


def parsed(parser: ArgumentParser, yaml: str, *options: str) -> dict[str, Any]:
    """The settings from a file with this content, and the options."""
    Path("visit.yaml").write_text(yaml)
    return plain(parse(parser, options, "visit.yaml"))


def refusal(parser: ArgumentParser, yaml: str, *options: str) -> str:
    """What is said of them, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        parsed(parser, yaml, *options)
    assert str(caught.value).startswith("visit.yaml: ")
    return str(caught.value).removeprefix("visit.yaml: ")


def test_a_file_gives_the_settings_and_defaults_the_rest(parser: ArgumentParser) -> None:
    assert parsed(parser, GOOD) == {
        "import_path": [],
        "visitors": 1,
        "animal": {
            "class_path": "zoo.Dog",
            "init_args": {"name": "Bello", "legs": 4, "url": None, "friends": None},
        },
        "keeper": {"rate": 0.5, "mode": "day", "seed": None},
    }


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--visitors", "7"], {"visitors": 7}),
        (["--visitors=7"], {"visitors": 7}),
        (["--keeper.mode", "night"], {"keeper": {"rate": 0.5, "mode": "night", "seed": None}}),
        (["--keeper.seed", "3", "--keeper.rate", "2"], {"keeper": {"rate": 2.0, "mode": "day", "seed": 3}}),
        (["--import_path", "[a, b]"], {"import_path": ["a", "b"]}),
    ],
)
def test_options_override_the_file(parser: ArgumentParser, options: list[str], changed: dict[str, Any]) -> None:
    assert parsed(parser, GOOD, *options) == parsed(parser, GOOD) | changed


@pytest.mark.parametrize("option", ["--animal.name", "--animal.init_args.name"])
def test_an_option_reaches_into_a_class(parser: ArgumentParser, option: str) -> None:
    assert parsed(parser, GOOD, option, "Lassie")["animal"]["init_args"]["name"] == "Lassie"


def test_without_a_file_options_are_enough(parser: ArgumentParser) -> None:
    settings = plain(parse(parser, ["--animal", "zoo.Dog", "--animal.legs", "3"]))
    assert settings["animal"]["init_args"]["legs"] == 3


def test_settings_become_objects(parser: ArgumentParser) -> None:
    Path("visit.yaml").write_text(GOOD)
    objects = build(parser, parse(parser, [], "visit.yaml"))
    assert type(objects.animal).__name__ == "Dog"
    assert (objects.animal.name, objects.animal.legs) == ("Bello", 4)
    assert isinstance(objects.keeper, Keeper)
    assert objects.keeper.rate == 0.5


UNKNOWN = [
    ("top", GOOD + "visitor: 3", "unknown key 'visitor'. Did you mean 'visitors'?"),
    ("section", GOOD.replace("keeper", "keepr"), "unknown key 'keepr.rate'. Did you mean 'keeper.rate'?"),
    ("in a section", GOOD.replace("rate", "rat"), "unknown key 'rat'. Did you mean 'rate'?"),
    ("argument", GOOD.replace("name", "nam"), "animal: unknown key 'nam'. Did you mean 'name'?"),
    ("init_args", GOOD.replace("init_args", "init_arg"), "unknown key 'init_arg.name'. Did you mean 'init_args'?"),
    ("far", GOOD + "zebra: 3", "unknown key 'zebra'."),
    ("nested", "animal: {class_path: zoo.Cage, init_args: {inside: {class_path: zoo.Dog, init_args: {leg: 3}}}}",
     "Did you mean 'legs'?"),
]  # fmt: skip


@pytest.mark.parametrize(("yaml", "message"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_an_unknown_key_suggests_the_nearest_at_each_level(parser: ArgumentParser, yaml: str, message: str) -> None:
    assert refusal(parser, yaml).endswith(message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--visitor", "unknown key '--visitor'. Did you mean '--visitors'?"),
        ("--keeper.rat", "unknown key '--keeper.rat'. Did you mean '--keeper.rate'?"),
        ("--rate", "unknown key '--rate'. Did you mean '--keeper.rate'?"),
        ("--animl.class_path", "unknown key '--animl.class_path'. Did you mean '--animal'?"),
        ("--animal.nam", "animal: unknown key 'nam'. Did you mean 'name'?"),
        ("--visit", "unknown key '--visit'. Did you mean '--visitors'?"),
        ("--xyz", "unknown key '--xyz'."),
    ],
)
def test_an_unknown_option_suggests_the_nearest_and_is_never_completed(
    parser: ArgumentParser, option: str, message: str
) -> None:
    assert refusal(parser, GOOD, option, "3") == message


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("zo.Dog", "animal: there is no module 'zo' to import. Did you mean 'zoo'?"),
        ("no_such_thing.Dog", "animal: there is no module 'no_such_thing' to import."),
        ("zoo.Dgo", "animal: module 'zoo' has no class 'Dgo'. Did you mean 'Dog'?"),
        ("zoo.cages.Dog", "animal: module 'zoo' has no class 'cages'. Did you mean 'Cage'?"),
        ("Elephant", "animal: there is no class 'Elephant'. Give your own as module.Elephant."),
        ("zoo.Stone", "animal: Import path zoo.Stone does not correspond to a subclass of Animal"),
        ("zoo.ConfigError", "animal: Import path zoo.ConfigError does not correspond to a subclass of Animal"),
    ],
)
def test_a_class_that_cannot_be_used_is_named(parser: ArgumentParser, class_path: str, message: str) -> None:
    assert refusal(parser, GOOD.replace("zoo.Dog", class_path)).startswith(message)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("\n1 / 0", "farm.py:2: ZeroDivisionError: division by zero"),
        ("def f():\n    raise OSError('no barn')\nf()", "farm.py:3: OSError: no barn"),
        ("import no_such_thing", "farm.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("from zoo import Unicorn", "farm.py:1: ImportError: cannot import name 'Unicorn' from 'zoo'"),
        ("\ndef f(:", "farm.py:2: SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    parser: ArgumentParser, here: Path, code: str, message: str
) -> None:
    (here / "farm.py").write_text(code)
    said = refusal(parser, GOOD.replace("zoo.Dog", "farm.Dog"))
    assert said.startswith(f"animal: the import failed at {here / message}")


TYPES = [
    ("option", GOOD + "visitors: many", "visitors: Expected a <class 'int'>. Got value: many"),
    ("no bool", GOOD + "visitors: true", "visitors: Expected a <class 'int'>. Got value: True"),
    ("no float", GOOD + "visitors: 1.5", "visitors: Expected a <class 'int'>. Got value: 1.5"),
    ("choice", GOOD + "  mode: noon", "keeper.mode: Expected a typing.Literal['day', 'night']. Got value: noon"),
    ("or none", GOOD + "  seed: x", "keeper.seed: Expected a <class 'int'> Given value: x"),
    ("argument", GOOD.replace("name: Bello", "legs: four"), "animal.legs: Expected a <class 'int'>. Got value: four"),
    ("list", GOOD.replace("name: Bello", "friends: 3"), "animal.friends: Expected a <class 'list'> Given value: 3"),
    ("class", "animal: 3", "animal: Not a valid subclass of Animal Given value: 3"),
    ("section", "animal: zoo.Dog\nkeeper: 3", "keeper: 3 holds no settings. Give some, or remove it."),
    ("list for a section", "animal: zoo.Dog\nkeeper: [1]", "keeper: [1] holds no settings. Give some, or remove it."),
    (
        "empty section",
        "animal: zoo.Dog\nkeeper:\n#  rate: 3",
        "keeper: None holds no settings. Give some, or remove it.",
    ),
    ("no file of a section", "animal: zoo.Dog\nkeeper: k.yaml", "keeper: Unable to load config 'k.yaml'"),
    ("nothing", "keeper: {}", "the following arguments are required: animal"),
    ("argument missing", "animal: zoo.Cage", "animal: the following arguments are required: inside"),
]


@pytest.mark.parametrize(("yaml", "message"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES])
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(
    parser: ArgumentParser, yaml: str, message: str
) -> None:
    assert refusal(parser, yaml).startswith(message)
    assert "\n" not in refusal(parser, yaml)


YAMLS = [
    ("call", b"visitors: !!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
    ("call at the top", b"!!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
    ("new", b"visitors: !!python/object/new:zoo.Dog []", "could not determine a constructor for the tag"),
    ("name", b"visitors: !!python/name:os.system", "could not determine a constructor for the tag"),
    ("module", b"visitors: !!python/module:os", "could not determine a constructor for the tag"),
    ("own tag", b"visitors: !secret x", "could not determine a constructor for the tag '!secret'"),
    ("open bracket", b"animal: [", "did not find expected node content"),
    ("tabs", b"animal:\n\tclass_path: x", "cannot start any token"),
    ("list", b"[1, 2]", "Unexpected config: [1, 2]"),
    ("text", b"hello", "Unexpected config: hello"),
    ("empty", b"", "Unexpected config:"),
    ("control character", b"\0", "control characters are not allowed"),
    ("no utf-8", b"\xff\xfe\0", "this is no readable YAML: 'utf-8' codec can't decode byte 0xff"),
    ("deep", b"a: " + b"[" * 2_000 + b"]" * 2_000, "this is no readable YAML: maximum recursion depth exceeded"),
    ("holds itself", b"x: &a [*a]", "this is no readable YAML: maximum recursion depth exceeded"),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in YAMLS], ids=[row[0] for row in YAMLS])
def test_a_file_that_is_no_plain_yaml_is_refused_and_runs_nothing(
    parser: ArgumentParser, here: Path, content: bytes, message: str
) -> None:
    (here / "visit.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parse(parser, [], "visit.yaml")
    assert str(caught.value).startswith("visit.yaml: ")
    assert message in str(caught.value)
    assert sorted(path.name for path in here.iterdir()) == ["visit.yaml", "zoo.py"]


@pytest.mark.parametrize("name", ["nothing.yaml", "", ".", "zoo.py/visit.yaml"])
def test_a_file_that_is_not_there_is_named(parser: ArgumentParser, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(parser, [], name)
    assert str(caught.value) == f"There is no configuration file {name!r}."


def test_the_environment_changes_no_setting(parser: ArgumentParser, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VISITORS", "SHIPLINE_VISITORS", "SHIPLINE_VISIT_VISITORS", "SHIPLINE VISIT_VISITORS"):
        monkeypatch.setenv(name, "99")
    assert parsed(parser, GOOD)["visitors"] == 1
    assert parsed(parser, GOOD.replace("Bello", "'${HOME}'"))["animal"]["init_args"]["name"] == "${HOME}"


@pytest.mark.parametrize(
    "yaml",
    [
        GOOD.replace("name: Bello", "legs: x, url: 's3://key:hunter2@bucket/x'"),
        GOOD.replace("name: Bello", "legs: 's3://key:hunter2@bucket/x'"),
        GOOD.replace("zoo.Dog", "zoo.Stone").replace("Bello", "'https://h/x?token=hunter2'"),
        "animal: zoo.Cage\nvisitors: 's3://key:hunter2@bucket'",
        "animal: {class_path: zoo.Cage, init_args: {name: 's3://key:hunter2@bucket'}}",
    ],
)
def test_credentials_in_a_value_are_not_repeated(parser: ArgumentParser, yaml: str) -> None:
    assert "hunter2" not in refusal(parser, yaml)


@pytest.mark.parametrize(
    ("legs", "error", "message"),
    [(-1, ConfigError, r"^Dog has legs=-1\.$"), (0, ZeroDivisionError, "^no legs$")],
)
@pytest.mark.parametrize("caged", [False, True])
def test_a_constructor_that_raises_speaks_for_itself(
    parser: ArgumentParser, legs: int, error: type[Exception], message: str, caged: bool
) -> None:
    dog = {"class_path": "zoo.Dog", "init_args": {"legs": legs}}
    animal = {"class_path": "zoo.Cage", "init_args": {"inside": dog}} if caged else dog
    Path("visit.yaml").write_text(f"animal: {animal}")
    with pytest.raises(error, match=message) as caught:
        build(parser, parse(parser, [], "visit.yaml"))
    assert isinstance(caught.value.__cause__, KeyError if legs == 0 else type(None))


# ---- where modules come from -----------------------------------------------------------------------------------------


def lion(directory: Path, name: str) -> str:
    """Write a module of that name with a Lion; its class path."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text("import zoo\n\nclass Lion(zoo.Animal):\n    pass\n")
    return f"{name}.Lion"


def test_a_module_beside_the_file_is_found(parser: ArgumentParser, here: Path) -> None:
    path = lion(here / "configs", "beside_it")
    (here / "configs" / "visit.yaml").write_text(f"animal: {path}")
    assert build(parser, parse(parser, [], "configs/visit.yaml")).animal.__module__ == "beside_it"


def test_a_module_below_the_import_path_is_found(parser: ArgumentParser, here: Path) -> None:
    path = lion(here / "src", "below_src")
    settings = parsed(parser, f"import_path: [src]\nanimal: {path}")
    assert settings["import_path"] == ["src"]
    assert str(here / "src") in sys.path


def test_a_users_own_train_py_is_not_ours(parser: ArgumentParser, here: Path) -> None:
    """And ours are not the user's."""
    (here / "visit.yaml").write_text(f"animal: {lion(here, 'train')}")
    assert build(parser, parse(parser, [], "visit.yaml")).animal.__module__ == "train"
    assert importlib.import_module("shipline.train").__name__ == "shipline.train"


def test_directories_are_added_once(here: Path) -> None:
    for _ in range(2):
        import_from([Path("a"), here / "a"])
    assert sys.path.count(str(here / "a")) == 1
    assert sys.path.count(str(here)) == 1
