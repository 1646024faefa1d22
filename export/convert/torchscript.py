"""From a torch module to TorchScript."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch._C import PyTorchFileReader, PyTorchFileWriter
from torch.jit._trace import TracerWarning

from shipline.backends.torch import SIGNATURE
from shipline.errors import GateError
from shipline.export.convert.exporters import quiet, refused
from shipline.export.convert.tensors import TensorFunction, as_function, example_of
from shipline.export.rows import Rows
from shipline.signature import Signature

_TORCH = str(Path(torch.__file__).parent)


def to_torchscript(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"] = "float32"
) -> bytes:
    """Return the module as TorchScript: traced with a real row, or scripted where forward decides by what it computes.

    A trace follows one way through the module. Where Python saw a value on that way, another row may have to go
    another, so the module is scripted then, which keeps its branches and loops.

    Raises:
        GateError: it can be neither traced nor scripted; the message names the line that decides.
    """
    function, example = as_function(module, rows, signature, compute), example_of(rows, signature)
    try:
        program, decisions = _traced(function, example)
    except Exception as error:  # whatever the tracer meets in a user's module
        raise refused(module, "traced", error) from error
    if decisions:
        program = _scripted(module, function, example, decisions)
    file = io.BytesIO()
    with quiet():
        frozen = torch.jit.freeze(program)  # weights become constants, and batch norms part of what stands before them
        torch.jit.save(frozen, file, _extra_files={SIGNATURE: signature.model_dump_json()})
    return _without_sources(file.getvalue())


def _traced(function: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Any, list[str]]:
    """The trace, and where Python saw values on its way."""
    with warnings.catch_warnings(record=True) as caught, torch.no_grad(), _unread_properties(function):
        warnings.simplefilter("always")
        program = torch.jit.trace(function, example, check_trace=False)  # type: ignore[no-untyped-call]
    # torch's own layers look at sizes, to check them; what they compute is the same for all rows.
    of_users = (each for each in caught if not each.filename.startswith(_TORCH))
    seen = [each for each in of_users if issubclass(each.category, TracerWarning)]
    return program, [f"{Path(each.filename).name}:{each.lineno}" for each in seen]


def _scripted(
    module: nn.Module, function: TensorFunction, example: tuple[torch.Tensor, ...], decisions: list[str]
) -> Any:
    where = ", ".join(dict.fromkeys(decisions))
    try:
        with quiet(), _unread_properties(function):
            function.module = torch.jit.script(function.module)
        program, left = _traced(function, example)
    except Exception as error:  # whatever of a user's Python is no TorchScript
        raise GateError(
            f"{type(module).__name__} decides by values at {where}, which a trace cannot follow, and it is no "
            "TorchScript, so nothing was published. Rewrite these lines with torch.where, or so that torch.jit.script "
            f"takes them: {type(error).__name__}: {str(error).strip()[:800]}"
        ) from error
    if left:
        raise GateError(
            f"The outputs of {type(module).__name__} depend on values that Python saw at {', '.join(left)}, so nothing "
            "was published. Rewrite these lines with torch.where."
        )
    return program


@contextlib.contextmanager
def _unread_properties(module: nn.Module) -> Iterator[None]:
    """Let torch.jit read no property in the block: it would read all, and some have an answer only in training."""
    hidden = [(part, type(part), _properties(type(part))) for part in module.modules()]
    hidden = [each for each in hidden if each[2] and not isinstance(each[0], torch.jit.ScriptModule)]
    for part, kind, names in hidden:
        part.__class__ = type(
            kind.__name__,
            (kind,),
            {
                "__module__": kind.__module__,
                "__dir__": lambda self, kind=kind, names=names: [n for n in kind.__dir__(self) if n not in names],
                "__jit_unused_properties__": names,
            },
        )
    try:
        yield
    finally:
        for part, kind, _ in hidden:
            part.__class__ = kind


def _properties(kind: type[nn.Module]) -> list[str]:
    return [name for name in dir(kind) if isinstance(inspect.getattr_static(kind, name), property)]


def _without_sources(archive: bytes) -> bytes:
    """Drop what is kept for debugging: the lines of Python that operators come from, with paths of this machine."""
    reader, file = PyTorchFileReader(io.BytesIO(archive)), io.BytesIO()
    writer = PyTorchFileWriter(file)
    writer.set_min_version(int(reader.get_record("version")))
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and not name.startswith(".data/") and name not in ("version", "byteorder"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return file.getvalue()
