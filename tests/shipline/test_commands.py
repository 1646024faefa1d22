"""The command line: exit code, message, and nothing left behind. Serving commands are in a file of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import TINY, TRAIN, UP, Outcome, Run, files, in_process

import shipline
from shipline.checkpoint import WEIGHTS, CheckpointManifest
from shipline.commands import COMMANDS
from shipline.commands.console import split_positional
from shipline.store import Publication, open_store

SECRET = "hunter2"
CALL = "!!python/object/apply:os.system ['touch canary']"

# ---- the command itself ----------------------------------------------------------------------------------------------


def test_without_a_command_the_commands_are_listed(run: Run) -> None:
    outcome = run()
    assert outcome.code == 2
    assert all(f"  {name} " in outcome.out for name in COMMANDS)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands(run: Run, option: str) -> None:
    outcome = run(option)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("usage: shipline <command>")
    assert all(f"  {name} " in outcome.out for name in COMMANDS)


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == Outcome(0, f"shipline {shipline.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(run: Run, here: Path, name: str, option: str) -> None:
    outcome = run(name, option)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"usage: shipline {name} " in outcome.out
    assert "--config" in outcome.out
    assert files(here) == {}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", " Did you mean 'train'?"), ("Serve", " Did you mean 'serve'?"), ("xyz", ""), ("", ""), ("--verbose", ""),
     ("commands.serve", ""), ("../up", "")],
)  # fmt: skip
def test_an_unknown_command_suggests_the_nearest(run: Run, name: str, hint: str) -> None:
    outcome = run(name)
    assert outcome.code == 2
    assert outcome.err.startswith(f"There is no command {name!r}.{hint}\n\nusage: shipline")


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "shipline"], [str(Path(sys.executable).parent / "shipline")]]
)
def test_the_exit_code_reaches_the_shell(command: list[str]) -> None:
    for arguments, code in ((["--version"], 0), (["inspect", "nothing"], 1), (["trian"], 2)):
        assert subprocess.run([*command, *arguments], capture_output=True).returncode == code


@pytest.mark.parametrize(
    ("arguments", "first", "others"),
    [
        (["a", "--port", "1"], "a", ["--port", "1"]),
        (["--port", "1", "a"], "a", ["--port", "1"]),
        (["--port=1", "a"], "a", ["--port=1"]),
        (["--print_config", "a", "b"], "a", ["--print_config", "b"]),
        (["-h", "a"], "a", ["-h"]),
        (["--port", "1"], None, ["--port", "1"]),
        ([], None, []),
    ],
)
def test_the_first_argument_may_stand_among_options(arguments: list[str], first: str, others: list[str]) -> None:
    assert split_positional(arguments) == (first, others)


def test_a_message_with_control_characters_spells_them_out(run: Run) -> None:
    run("inspect", "models/\x1b[2J").refused(1, "No artifact below models/\\x1b[2J.")


def test_a_command_that_lacks_an_extra_says_what_to_install(here: Path) -> None:
    (here / "train.yaml").write_text(TRAIN)
    outcome = in_process("train", "train.yaml", program="sys.modules['torch'] = None")
    outcome.refused(2, "shipline train: This needs 'torch', which is not installed. Run: pip install 'shipline[train]'")


def test_what_is_no_extra_of_ours_is_not_explained_away(here: Path) -> None:
    outcome = in_process("serve", "nothing", program="sys.modules['rich.console'] = None")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("ModuleNotFoundError: import of rich.console halted")


# ---- train -----------------------------------------------------------------------------------------------------------


def callback(text: str) -> str:
    """The settings of a training, with a callback."""
    return f"{TRAIN}  callbacks: [{{{text}}}]"


# what is wrong -> the file, options after it, what is said
TRAIN_MISTAKES = {
    "top key": (TRAIN + "modul: 3", [], "train.yaml:9: unknown key 'modul'. Did you mean 'module'?"),
    "section": (TRAIN.replace("trainer", "traner"), [],
        "train.yaml:7: unknown key 'traner'. Did you mean 'trainer'?"),
    "trainer key": (TRAIN.replace("max_epochs", "max_epoch"), [],
        "train.yaml:8: trainer: unknown key 'max_epoch'. Did you mean 'max_epochs'?"),
    "class_path": (TRAIN.replace("class_path", "clas_path", 1), [],
        "module: unknown key 'clas_path'. Did you mean 'class_path'?"),
    "class_path alone": (TRAIN.replace("class_path: tiny.D", "clas_path: tiny.D"), [],
        "data: unknown key 'clas_path'. Did you mean 'class_path'?"),
    "class_path of a callback": (callback("clas_path: ModelCheckpoint"), [],
        "trainer.callbacks: unknown key 'clas_path'. Did you mean 'class_path'?"),
    "init_args": (TRAIN.replace("init_args", "init_arg"), [],
        "module: unknown key 'init_arg'. Did you mean 'init_args'?"),
    "argument of the module": (TRAIN.replace("width", "widht"), [],
        "module: unknown key 'widht'. Did you mean 'width'?"),
    "argument of the data": (TRAIN, ["--data.row", "3"], "unknown option --data.row. Did you mean --data.rows?"),
    "argument of a callback": (callback("class_path: ModelCheckpoint, init_args: {monitr: x}"), [],
        "train.yaml:9: trainer.callbacks: unknown key 'monitr'. Did you mean 'monitor'?"),
    "option": (TRAIN, ["--trainer.max_epoch", "3"],
        "unknown option --trainer.max_epoch. Did you mean --trainer.max_epochs?"),
    "option without its section": (TRAIN, ["--max_epochs", "3"],
        "unknown option --max_epochs. Did you mean --trainer.max_epochs?"),
    "option without a value": (TRAIN, ["--trainer.max_epochs"], "--trainer.max_epochs: its value is missing."),
    "module": (TRAIN.replace("tiny.Tiny", "tinny.Tiny"), [],
        "module: there is no module 'tinny' to import. Did you mean 'tiny'?"),
    "class": (TRAIN.replace("tiny.Tiny", "tiny.Tinny"), [],
        "module: module 'tiny' has no class 'Tinny'. Did you mean 'Tiny'?"),
    "class of the data": (TRAIN.replace("tiny.Data", "tiny.Dat"), [],
        "data: module 'tiny' has no class 'Dat'. Did you mean 'Data'?"),
    "callback": (callback("class_path: ModelCheckpont"), [],
        "train.yaml:9: trainer.callbacks: there is no class 'ModelCheckpont'. Did you mean 'ModelCheckpoint'?"),
    "logger": (TRAIN, ["--trainer.logger", "CSVLoger"],
        "--trainer.logger: there is no class 'CSVLoger'. Did you mean 'CSVLogger'?"),
    "no Module": (TRAIN.replace("tiny.Tiny", "tiny.Stranger"), [],
        "train.yaml:3: module: tiny.Stranger is no subclass of Module."),
    "module and data swapped": (TRAIN.replace("tiny.Tiny", "tiny.Data"), [],
        "train.yaml:3: module: tiny.Data is no subclass of Module."),
    "type of an argument": (TRAIN.replace("width: 4", "width: wide"), [],
        "train.yaml:4: module.width: expected int, got 'wide'."),
    "type of an option": (TRAIN, ["--trainer.max_epochs", "many"],
        "--trainer.max_epochs: expected int or null, got 'many'."),
    "range of an option": (TRAIN, ["--trainer.max_epochs=-3"],
        "shipline train: Trainer has max_epochs=-3; set a whole number from -1 on."),
    "range of an argument": (TRAIN, ["--module.width", "0"], "shipline train: width is 0."),
    "range in a callback": (callback("class_path: ModelCheckpoint, init_args: {save_top_k: -7}"), [],
        "shipline train: ModelCheckpoint has save_top_k=-7"),
    "empty section": (TRAIN.replace("  max_epochs: 1", ""), [],
        "trainer: None holds no settings. Give some, or remove it."),
    "nothing": ("{}", [], "the following arguments are required: data, module"),
    "broken YAML": ("module: [", [], "train.yaml:1: this is no readable YAML: expected the node content"),
    "code in YAML": (TRAIN.replace("width: 4", f"width: {CALL}"), [], "could not determine a constructor for the tag"),
    "code in an option": (TRAIN, ["--module.width", CALL], "--module.width: expected int, got"),
    "name of the run": (TRAIN, ["--trainer.name", "../../x"], "'../../x' is no run name"),
    "protocol": (TRAIN, ["--trainer.default_root_dir", "nonsense://x"], "Protocol not known: nonsense"),
}  # fmt: skip


@pytest.mark.parametrize(("yaml", "options", "message"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_a_mistake_in_the_settings_of_a_training_is_named(
    run: Run, here: Path, yaml: str, options: list[str], message: str
) -> None:
    (here / "tiny.py").write_text(TINY)
    (here / "train.yaml").write_text(yaml)
    before = files(here)
    run("train", "train.yaml", *options).refused(2, message)
    assert files(here) == before


@pytest.mark.usefixtures("unchanged")
def test_a_training_without_a_file_or_with_one_that_is_not_there(run: Run) -> None:
    run("train").refused(2, "the following arguments are required: data, module")
    run("train", "trian.yaml").refused(2, "There is no configuration file 'trian.yaml'. Did you mean 'train.yaml'?")


@pytest.mark.usefixtures("unchanged")
def test_a_checkpoint_to_go_on_from_that_is_not_there_lists_what_is(run: Run) -> None:
    run("train", "train.yaml", "--ckpt_path", "nowhere/best").refused(1, "found beside it: nothing.")
    run("train", "train.yaml", "--ckpt_path", "last").refused(1, "No checkpoint at ")


@pytest.mark.usefixtures("unchanged")
def test_an_interrupt_ends_with_its_own_code(run: Run) -> None:
    assert run("train", "train.yaml", "--module.width", "100") == Outcome(130, "", "")


# ---- export ----------------------------------------------------------------------------------------------------------


def commit_checkpoint(url: str) -> None:
    """Commit a checkpoint that claims to be of a class in a module whose import would leave a file."""
    with Publication(open_store(url)) as publication:
        publication.add(WEIGHTS, b"")
        publication.commit(CheckpointManifest(module="egg.Egg", epoch=0, global_step=1))


# what is wrong -> arguments, exit code, what is said
EXPORT_MISTAKES = {
    "nothing": ([], 2, "the following arguments are required: to"),
    "no target": (["runs/x/best"], 2, "the following arguments are required: to"),
    "no checkpoint": (["--to", "m"], 2, "Which checkpoint? Give its URL first"),
    "not there": (["runs/x/best", "--to", "m"], 1, "No checkpoint at runs/x/best; found beside it: nothing."),
    "option": (["runs/x/best", "--tto", "m"], 2, "unknown option --tto. Did you mean --to?"),
    "recipe key": (["runs/x/best", "--to", "m", "--recipe.precison", "int8"], 2,
        "unknown option --recipe.precison. Did you mean --recipe.precision?"),
    "precision": (["runs/x/best", "--to", "m", "--recipe.precision", "int4"], 2,
        "--recipe.precision: expected 'float32' or 'bfloat16' or"),
    "number": (["runs/x/best", "--to", "m", "--recipe.max_metric_drop", "lots"], 2,
        "Recipe has max_metric_drop='lots'; set a number from 0 on, or a share such as '0.5%'."),
    "no settings of the run": (["run/checkpoints/a", "--to", "m"], 2,
        "It says 'egg.Egg', but its run has no config.yaml, and text in a checkpoint is not trusted to choose code."),
    "settings that are not there": (["run/checkpoints/a", "--to", "m", "--run_config", "x.yaml"], 2,
        "There is no configuration file 'x.yaml'."),
    "a mistake in the settings": (["run/checkpoints/a", "--to", "m", "--run_config", "bad.yaml"], 2,
        "bad.yaml:4: module: unknown key 'widht'. Did you mean 'width'?"),
    "texts for a checkpoint": (["run/checkpoints/a", "--to", "m", "--rows", "bad.yaml"], 2,
        "and run/checkpoints/a is none: a checkpoint is proved on the data of its run."),
    "no texts": (["words", "--to", "m"], 2, "words is a language model. Give texts that it is proved on, a line each:"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), EXPORT_MISTAKES.values(), ids=EXPORT_MISTAKES)
def test_a_mistake_in_an_export_is_named(run: Run, here: Path, arguments: list[str], code: int, message: str) -> None:
    (here / "tiny.py").write_text(TINY)
    (here / "egg.py").write_text("open('hatched', 'w')")
    (here / "bad.yaml").write_text(TRAIN.replace("width", "widht"))
    (here / "words").mkdir()
    (here / "words" / "config.json").write_text("{}")
    commit_checkpoint("run/checkpoints/a")
    before = files(here)
    run("export", *arguments).refused(code, message)
    assert files(here) == before


def test_a_remote_checkpoint_chooses_no_code(run: Run, here: Path) -> None:
    """Not even a configuration beside it does."""
    (here / "egg.py").write_text("open('hatched', 'w')")
    root = f"memory://{here.parent.name}/run"
    commit_checkpoint(f"{root}/checkpoints/a")
    open_store(root).write("config.yaml", b"module: {class_path: egg.Egg}")
    same_path = Path("memory:", here.parent.name, "run")
    same_path.mkdir(parents=True)
    (same_path / "config.yaml").write_text("module: {class_path: egg.Egg}")
    before = files(here)
    run("export", f"{root}/checkpoints/a", "--to", "m").refused(
        2, "its run's configuration is not on this machine, and text in a checkpoint is not trusted to choose code"
    )
    assert files(here) == before


# ---- up --------------------------------------------------------------------------------------------------------------

# what is wrong -> the file, options after it, what is said
UP_MISTAKES = {
    "top key": (UP.replace("export:", "exprt:"), [], "unknown key 'exprt"),
    "trainer": (UP.replace("max_epochs", "max_epoch"), [],
        "up.yaml:9: train.trainer: unknown key 'max_epoch'. Did you mean 'max_epochs'?"),
    "argument": (UP.replace("width", "widht"), [], "train.module: unknown key 'widht'. Did you mean 'width'?"),
    "class": (UP.replace("tiny.Tiny", "tiny.Tinny"), [],
        "train.module: module 'tiny' has no class 'Tinny'. Did you mean 'Tiny'?"),
    "export key": (UP.replace("  to:", "  too:"), [], "up.yaml:12: export: unknown key 'too'. Did you mean 'to'?"),
    "recipe key": (UP.replace("precision", "precison"), [],
        "export.recipe: unknown key 'precison'. Did you mean 'precision'?"),
    "recipe value": (UP.replace("float32", "int4"), [],
        "export.recipe.precision: expected 'float32' or 'bfloat16' or"),
    "serve key": (UP.replace(" port", " prot"), [], "serve: unknown key 'prot'. Did you mean 'port'?"),
    "server's limit": (UP.replace("port: 0", "limits: {head_s: 0}"), [], "limits.head_s is 0"),
    "server's keys": (UP, ["--serve.api_keys", "none"], "api_keys is none, which cannot be read"),
    "serve value": (UP.replace("port: 0", "port: http"), [], "serve.port: expected int, got 'http'."),
    "option": (UP, ["--train.trainer.max_epoch", "3"], "Did you mean --train.trainer.max_epochs?"),
    "no target": (UP.replace("  to: models/tiny\n", ""), [], "the following arguments are required: export.to"),
    "a training's file": (TRAIN, [], "unknown key 'module"),
    "code": (UP.replace("port: 0", f"port: {CALL}"), [], "could not determine a constructor for the tag"),
}  # fmt: skip


@pytest.mark.parametrize(("yaml", "options", "message"), UP_MISTAKES.values(), ids=UP_MISTAKES)
def test_a_mistake_in_the_file_of_the_whole_path_is_named_before_anything_is_trained(
    run: Run, here: Path, yaml: str, options: list[str], message: str
) -> None:
    (here / "tiny.py").write_text(TINY)
    (here / "up.yaml").write_text(yaml)
    before = files(here)
    run("up", "up.yaml", *options).refused(2, message)
    assert files(here) == before


@pytest.mark.usefixtures("unchanged")
def test_the_whole_path_without_a_file_or_with_one_that_is_not_there(run: Run) -> None:
    run("up").refused(2, "From which file? Give it first, such as: shipline up shipline.yaml")
    run("up", "--serve.port", "0").refused(2, "From which file? Give it first")
    run("up", "no.yaml").refused(2, "There is no configuration file 'no.yaml'. Beside it: train.yaml, up.yaml.")


# ---- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", f"https://key:{SECRET}@127.0.0.1:1/models"],
        ["inspect", f"https://127.0.0.1:1/models?X-Amz-Signature={SECRET}"],
        ["inspect", f"nonsense://key:{SECRET}@bucket"],
        ["inspect", f"memory://key:{SECRET}@{SECRET}@host/models"],
        ["predict", f"http://user:{SECRET}@127.0.0.1:1", "digits", "7"],
        ["predict", f"http://user:{SECRET}@127.0.0.1:http", "digits", "7"],
        ["export", f"memory://key:{SECRET}@host/runs/best", "--to", "m"],
        ["export", "runs/best", "--to", "m", "--recipe.precision", f"s3://key:{SECRET}@bucket"],
        ["train", "train.yaml", "--ckpt_path", f"memory://key:{SECRET}@host/runs/best"],
        ["train", "train.yaml", "--trainer.default_root_dir", f"nonsense://key:{SECRET}@host"],
        ["train", "train.yaml", "--trainer.max_epochs", f"s3://key:{SECRET}@host"],
        ["train", "train.yaml", "--module.width", f"s3://key:{SECRET}@host"],
        ["train", f"s3://key:{SECRET}@host/train.yaml"],
        ["train", f"--xyz=s3://key:{SECRET}@host"],
        ["serve", "models", f"s3://key:{SECRET}@host"],
        ["up", f"s3://key:{SECRET}@host/up.yaml"],
        [f"s3://key:{SECRET}@host"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
@pytest.mark.usefixtures("unchanged")
def test_credentials_are_never_printed(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code in (1, 2)
    assert SECRET not in outcome.out + outcome.err
    assert "Traceback" not in outcome.err
