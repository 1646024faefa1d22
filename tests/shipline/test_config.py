"""Settings from YAML files and options: what is read, and what is said of mistakes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentParser

from shipline.config import build, dumped, import_from, new_parser, parse, read_sources
from shipline.errors import ConfigError

ZOO = """
from collections.abc import Callable
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

class Puppy(Dog):
    def __init__(self, age: int = 1, **rest):
        super().__init__(**rest)

class Breeder(Animal):
    def __init__(self, makes: Callable[[], Animal] = Dog):
        self.made = makes()

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

CAGE = """animal:
  class_path: zoo.Cage
  init_args:
    inside: {class_path: zoo.Dog,
      init_args: {name: 3}}
"""

KEEPER = {"rate": 0.5, "mode": "day", "seed": None, "tool": "fork"}


class Tool:
    """What is not named may be a class."""


class Keeper:
    """Takes care."""

    def __init__(
        self,
        *,
        rate: float = 1.0,
        mode: Literal["day", "night"] = "day",
        seed: int | None = None,
        tool: Literal["fork", "spoon"] | Tool = "fork",
    ) -> None:
        self.rate, self.mode, self.seed, self.tool = rate, mode, seed, tool


@pytest.fixture
def parser(here: Path) -> ArgumentParser:
    """A parser for an animal of a class in zoo.py, a keeper and two options; the file is in the working directory."""
    (here / "zoo.py").write_text(ZOO)
    import_from([])
    parser = new_parser("visit", "Visit the zoo.")
    parser.add_argument("--import_path", type=list[str], default=[])
    parser.add_argument("--visitors", type=int, default=1)
    animal = importlib.import_module("zoo").Animal
    parser.add_subclass_arguments(animal, "animal", required=True)
    parser.add_argument("--pack", type=list[animal], default=[])
    parser.add_class_arguments(Keeper, "keeper")
    return parser


def parsed(parser: ArgumentParser, yaml: str, *options: str) -> dict[str, Any]:
    """The settings from a file with this content, and the options."""
    Path("visit.yaml").write_text(yaml)
    return dumped(parser, parse(parser, read_sources(options, "visit.yaml")))


def refusal(parser: ArgumentParser, yaml: str, *options: str) -> str:
    """What is said of them."""
    with pytest.raises(ConfigError) as caught:
        parsed(parser, yaml, *options)
    return str(caught.value)


def test_a_file_gives_the_settings_and_defaults_the_rest(parser: ArgumentParser) -> None:
    assert parsed(parser, GOOD) == {
        "import_path": [],
        "visitors": 1,
        "animal": {
            "class_path": "zoo.Dog",
            "init_args": {"name": "Bello", "legs": 4, "url": None, "friends": None},
        },
        "pack": [],
        "keeper": KEEPER,
    }


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--visitors", "7"], {"visitors": 7}),
        (["--visitors=7"], {"visitors": 7}),
        (["--keeper.mode", "night"], {"keeper": KEEPER | {"mode": "night"}}),
        (["--keeper.seed", "3", "--keeper.rate", "2"], {"keeper": KEEPER | {"rate": 2.0, "seed": 3}}),
        (["--import_path", "[a, b]"], {"import_path": ["a", "b"]}),
    ],
)
def test_options_override_the_file(parser: ArgumentParser, options: list[str], changed: dict[str, Any]) -> None:
    assert parsed(parser, GOOD, *options) == parsed(parser, GOOD) | changed


@pytest.mark.parametrize("option", ["--animal.name", "--animal.init_args.name"])
def test_an_option_reaches_into_a_class(parser: ArgumentParser, option: str) -> None:
    assert parsed(parser, GOOD, option, "Lassie")["animal"]["init_args"]["name"] == "Lassie"


def test_without_a_file_options_are_enough(parser: ArgumentParser) -> None:
    settings = dumped(parser, parse(parser, ["--animal", "zoo.Dog", "--animal.legs", "3"]))
    assert settings["animal"]["init_args"]["legs"] == 3


def test_settings_become_objects(parser: ArgumentParser) -> None:
    Path("visit.yaml").write_text(GOOD)
    objects = build(parser, parse(parser, read_sources([], "visit.yaml")))
    assert type(objects.animal).__name__ == "Dog"
    assert (objects.animal.name, objects.animal.legs) == ("Bello", 4)
    assert isinstance(objects.keeper, Keeper)
    assert objects.keeper.rate == 0.5


UNKNOWN = [
    ("top", GOOD + "visitor: 3", "visit.yaml:7: unknown key 'visitor'. Did you mean 'visitors'?"),
    ("section", GOOD.replace("keeper", "keepr"), "visit.yaml:5: unknown key 'keepr'. Did you mean 'keeper'?"),
    ("in a section", GOOD.replace("rate", "rat"), "visit.yaml:6: keeper: unknown key 'rat'. Did you mean 'rate'?"),
    ("out of its section", GOOD + "rate: 3", "visit.yaml:7: unknown key 'rate'. Did you mean 'keeper.rate'?"),
    ("argument", GOOD.replace("name", "nam"), "visit.yaml:4: animal: unknown key 'nam'. Did you mean 'name'?"),
    ("init_args", GOOD.replace("init_args", "init_arg"),
     "visit.yaml:4: animal: unknown key 'init_arg'. Did you mean 'init_args'?"),
    ("class_path", GOOD.replace("class_path", "clas_path"),
     "visit.yaml:3: animal: unknown key 'clas_path'. Did you mean 'class_path'?"),
    ("far", GOOD + "zebra: 3", "visit.yaml:7: unknown key 'zebra'."),
    ("nested", CAGE.replace("name", "leg"),
     "visit.yaml:5: animal.inside: unknown key 'leg'. Did you mean 'legs'?"),
    ("passed on", "animal: {class_path: zoo.Puppy, init_args: {nme: x}}",
     "visit.yaml:1: animal: unknown key 'nme'. Did you mean 'name'?"),
    ("in a list", "animal: zoo.Dog\npack:\n- zoo.Dog\n- class_path: zoo.Dog\n  init_args:\n    leggs: 3",
     "visit.yaml:6: pack: unknown key 'leggs'. Did you mean 'legs'?"),
    ("of what a callable makes", CAGE.replace("Cage", "Breeder").replace("inside", "makes").replace("name", "leg"),
     "visit.yaml:5: animal.makes: unknown key 'leg'. Did you mean 'legs'?"),
]  # fmt: skip


@pytest.mark.parametrize(("yaml", "message"), [row[1:] for row in UNKNOWN], ids=[row[0] for row in UNKNOWN])
def test_an_unknown_key_is_named_with_its_line_and_the_nearest(parser: ArgumentParser, yaml: str, message: str) -> None:
    assert refusal(parser, yaml) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--visitor", "3"], "unknown option --visitor. Did you mean --visitors?"),
        (["--visitor=3"], "unknown option --visitor. Did you mean --visitors?"),
        (["--keper.rate", "3"], "unknown option --keper.rate. Did you mean --keeper.rate?"),
        (["--anmal.init_args.name", "3"], "unknown option --anmal.init_args.name. Did you mean --animal.name?"),
        (["--keeper.rat", "3"], "unknown option --keeper.rat. Did you mean --keeper.rate?"),
        (["--rate", "3"], "unknown option --rate. Did you mean --keeper.rate?"),
        (["--animl.class_path", "zoo.Dog"], "unknown option --animl.class_path. Did you mean --animal?"),
        (["--animal.nam", "3"], "unknown option --animal.nam. Did you mean --animal.name?"),
        (["--animal.init_args.nam", "3"], "unknown option --animal.init_args.nam. Did you mean --animal.name?"),
        (["--animal={class_path: zoo.Dog, init_args: {nam: 3}}"], "--animal: unknown key 'nam'. Did you mean 'name'?"),
        (["--pack+", "zoo.Dog", "--pack.leg", "3"], "unknown option --pack.leg. Did you mean --pack.legs?"),
        (["--visit", "3"], "unknown option --visit. Did you mean --visitors?"),
        (["--xyz", "3"], "unknown option --xyz."),
        (["--visitors"], "--visitors: its value is missing."),
        (["--config"], "--config: its value is missing."),
        (["more"], "visit.yaml: there is no place for 'more': options begin with --."),
    ],
)
def test_an_unknown_option_suggests_the_nearest_and_is_never_completed(
    parser: ArgumentParser, options: list[str], message: str
) -> None:
    assert refusal(parser, GOOD, *options) == message


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("zo.Dog", "there is no module 'zo' to import. Did you mean 'zoo'?"),
        ("no_such_thing.Dog", "there is no module 'no_such_thing' to import."),
        ("zoo.Dgo", "module 'zoo' has no class 'Dgo'. Did you mean 'Dog'?"),
        ("zoo.cages.Dog", "module 'zoo' has no class 'cages'. Did you mean 'Cage'?"),
        ("Elephant", "there is no class 'Elephant'. Give your own as module.Elephant."),
        ("Dgo", "there is no class 'Dgo'. Did you mean 'Dog'? Give your own as module.Dgo."),
        ("zoo.Stone", "zoo.Stone is no subclass of Animal."),
        ("zoo.ConfigError", "zoo.ConfigError is no subclass of Animal."),
    ],
)
def test_a_class_that_cannot_be_used_is_named(parser: ArgumentParser, class_path: str, message: str) -> None:
    assert refusal(parser, GOOD.replace("zoo.Dog", class_path)) == f"visit.yaml:3: animal: {message}"
    assert refusal(parser, GOOD, f"--animal={class_path}") == f"--animal: {message}"


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
    assert said.startswith(f"visit.yaml:2: animal: the import failed at {here / message}")


TYPES = [
    ("option", GOOD + "visitors: many", "visit.yaml:7: visitors: expected int, got 'many'."),
    ("no bool", GOOD + "visitors: true", "visit.yaml:7: visitors: expected int, got True."),
    ("no float", GOOD + "visitors: 1.5", "visit.yaml:7: visitors: expected int, got 1.5."),
    ("choice", GOOD + "  mode: noon", "visit.yaml:7: keeper.mode: expected 'day' or 'night', got 'noon'."),
    ("or none", GOOD + "  seed: x", "visit.yaml:7: keeper.seed: expected int or null, got 'x'."),
    ("name", GOOD + "  tool: spon",
     "visit.yaml:7: keeper.tool: unknown name 'spon'. Did you mean 'spoon'? Known: Tool, fork, spoon; or a class."),
    ("argument", GOOD.replace("name: Bello", "legs: four"), "visit.yaml:4: animal.legs: expected int, got 'four'."),
    ("list", GOOD.replace("name: Bello", "friends: 3"), "visit.yaml:4: animal.friends: expected list or null, got 3."),
    ("item", GOOD.replace("name: Bello", "friends: [a, 3]"),
     "visit.yaml:4: animal.friends: expected str or null, got 3."),
    ("argument in a list", "animal: zoo.Dog\npack:\n- zoo.Dog\n- class_path: zoo.Dog\n  init_args: {legs: four}",
     "visit.yaml:5: pack.legs: expected int, got 'four'."),
    ("class", "animal: 3", "visit.yaml:1: animal: expected a class_path with init_args, got 3."),
    ("section", "animal: zoo.Dog\nkeeper: 3", "visit.yaml:2: keeper: 3 holds no settings. Give some, or remove it."),
    ("list for a section", "animal: zoo.Dog\nkeeper: [1]",
     "visit.yaml:2: keeper: [1] holds no settings. Give some, or remove it."),
    ("empty section", "animal: zoo.Dog\nkeeper:\n#  rate: 3",
     "visit.yaml:2: keeper: None holds no settings. Give some, or remove it."),
    ("no file of a section", "animal: zoo.Dog\nkeeper: k.yaml",
     "visit.yaml:2: keeper: expected settings, or a YAML file of them, got 'k.yaml'."),
    ("nothing", "keeper: {}", "visit.yaml: the following arguments are required: animal"),
    ("argument missing", "animal: zoo.Cage", "visit.yaml:1: animal: the following arguments are required: inside"),
]  # fmt: skip


@pytest.mark.parametrize(("yaml", "message"), [row[1:] for row in TYPES], ids=[row[0] for row in TYPES])
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(
    parser: ArgumentParser, yaml: str, message: str
) -> None:
    assert refusal(parser, yaml) == message


# ---- what is left alone, and what speaks for itself ------------------------------------------------------------------


def test_a_list_that_holds_itself_is_refused(parser: ArgumentParser) -> None:
    assert refusal(parser, "x: &a [*a]").startswith("visit.yaml: this is no readable YAML: maximum recursion depth")


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
        build(parser, parse(parser, read_sources([], "visit.yaml")))
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
    assert build(parser, parse(parser, read_sources([], "configs/visit.yaml"))).animal.__module__ == "beside_it"


def test_a_module_below_the_import_path_is_found(parser: ArgumentParser, here: Path) -> None:
    path = lion(here / "src", "below_src")
    settings = parsed(parser, f"import_path: [src]\nanimal: {path}")
    assert settings["import_path"] == ["src"]
    assert str(here / "src") in sys.path


def test_a_users_own_train_py_is_not_ours(parser: ArgumentParser, here: Path) -> None:
    """And ours are not the user's."""
    (here / "visit.yaml").write_text(f"animal: {lion(here, 'train')}")
    assert build(parser, parse(parser, read_sources([], "visit.yaml"))).animal.__module__ == "train"
    assert importlib.import_module("shipline.train").__name__ == "shipline.train"


def test_directories_are_added_once(here: Path) -> None:
    for _ in range(2):
        import_from([Path("a"), here / "a"])
    assert sys.path.count(str(here / "a")) == 1
    assert sys.path.count(str(here)) == 1
