"""`shipline import`."""

from __future__ import annotations

from collections.abc import Sequence

from shipline.artifact import open_model
from shipline.commands.console import split_positional
from shipline.commands.export import show_verdicts
from shipline.config import new_parser, parse
from shipline.errors import ConfigError
from shipline.store import absolute, check_name, join, open_store, split


def run(arguments: Sequence[str]) -> None:
    """Publish an ONNX file and show the verdicts."""
    from shipline.export.foreign import import_onnx

    file, rest = split_positional(arguments)
    parser = new_parser(
        "import", "Publish an ONNX file, given first, as a model: it is tried, and served like any other."
    )
    parser.add_argument("--to", type=str, required=True, help="URL of the repository, such as s3://bucket/models.")
    parser.add_argument("--name", type=str, required=True, help="Name of the model.")
    parser.add_argument(
        "--golden",
        type=str | None,
        default=None,
        help="A safetensors file with rows by input name, and the right answers by output name, where they are known; "
        "default: rows are made up, and the file's own answers are kept.",
    )
    parser.add_argument("--version", type=str | None, default=None, help="A number; default: one more than the newest.")
    parser.add_argument("--max_batch_size", type=int, default=32, help="The largest batch that servers make.")
    parser.add_argument("--timeout", type=float, default=900.0, help="How many seconds it may take to try the file.")
    settings = parse(parser, rest)
    if file is None:
        raise ConfigError("Which file? Give it first, such as: shipline import model.onnx --name digits --to models")
    artifact = import_onnx(
        read(file),
        open_model(join(settings.to, check_name("model", settings.name))),
        golden=None if settings.golden is None else read(settings.golden),
        version=settings.version,
        max_batch_size=settings.max_batch_size,
        timeout=settings.timeout,
    )
    show_verdicts(artifact)


def read(url: str) -> bytes:
    """Return what a file holds, wherever it is; NotFoundError where it is not."""
    parent, name = split(absolute(url))
    return open_store(parent).read(name)
