"""The command line: `shipline <command> ...`. Each command is a module with `run(arguments)`, imported on demand."""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence

import shipline
from shipline.errors import ShiplineError, nearest
from shipline.plugins import missing_extra
from shipline.store import redact

COMMANDS = {
    "train": "train a module: a checkpoint from a module and data",
    "export": "publish a checkpoint as an artifact, if it is proved equal to what was trained",
    "import": "publish an ONNX file from elsewhere",
    "serve": "answer predictions over HTTP",
    "predict": "ask a server",
    "load-test": "load a server, and check its answers",
    "inspect": "show what a repository, a model or a version holds",
    "list": "show what has a name in settings: callbacks, strategies, loggers ...",
    "runs": "list the runs below a URL, or compare some",
    "up": "train, export and serve, from one file",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 (failed), 2 (a setting is wrong), 3 (a gate of the proof failed)."""
    given = [*(sys.argv[1:] if arguments is None else arguments)]  # `list` is a command's module in this package
    if not given or given[0] in ("-h", "--help"):
        print(_help())  # noqa: T201
        return 0 if given else 2
    if given[0] == "--version":
        print(f"shipline {shipline.__version__}")  # noqa: T201
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        return _fail(f"There is no command {command!r}.{nearest(command, COMMANDS)}\n\n{_help()}", 2)
    from shipline.commands.logs import as_it_was

    try:
        with as_it_was():
            importlib.import_module(f"shipline.commands.{_module_of(command)}").run(rest)
    except ShiplineError as error:
        return _fail(f"shipline {command}: {error}", error.exit_code)
    except ModuleNotFoundError as error:
        explained = missing_extra(error)
        if not isinstance(explained, ShiplineError):
            raise
        return _fail(f"shipline {command}: {explained}", explained.exit_code)
    except KeyboardInterrupt:
        return 130
    return 0


def _module_of(command: str) -> str:
    """Python keeps some names for itself, and has no hyphen in any."""
    return f"{command}_" if keyword.iskeyword(command) else command.replace("-", "_")


def _help() -> str:
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: shipline <command> ...",
            "",
            *lines,
            "",
            "shipline <command> --help says more.",
            "train, serve and up take --log-level debug|info|warning|error (or SHIPLINE_LOG_LEVEL).",
        ]
    )


def _fail(message: str, code: int) -> int:
    from shipline.commands.console import printable

    print(printable(redact(message)), file=sys.stderr)  # noqa: T201
    return code
