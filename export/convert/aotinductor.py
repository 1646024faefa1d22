"""From a torch module to a library that AOTInductor compiles."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule

from shipline.backends.aotinductor import INSTRUCTIONS, missing_instructions
from shipline.backends.torch import SIGNATURE
from shipline.errors import GateError
from shipline.export.convert.exported import program_of
from shipline.export.convert.exporters import quiet, refused
from shipline.export.convert.tensors import example_of
from shipline.export.rows import Rows
from shipline.signature import Signature

_SETTINGS: dict[str, Any] = {
    "aot_inductor.package": True,
    # Headers would be compiled once into a directory that stays; the longer first compilation pays off after several.
    "aot_inductor.precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
    "compile_threads": 1,  # no pool of processes that outlives the export
    # One thread: an index out of range then raises, where in a parallel region it would end the process.
    "cpp.threads": 1,
    # Not "native": then the library needs the instructions that its metadata names, and no others.
    "cpp.march": "",
}


def to_aotinductor(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"] = "float32"
) -> bytes:
    """Return the module as a shared library in an archive, for processors with the instructions of this one.

    Raises:
        GateError: there is no compiler of C++, or the module cannot be exported or compiled.
    """
    compiler = _compiler()
    if shutil.which(compiler) is None:
        raise GateError(
            f"AOTInductor needs a compiler of C++, and there is no {compiler!r} here, so nothing was published. "
            "Install one (g++), name it in the environment variable CXX, or set another backend."
        )
    program = program_of(module, rows, signature, compute)
    with tempfile.TemporaryDirectory(prefix="shipline-aotinductor-") as directory:
        try:
            with quiet("torch._inductor", "torch._dynamo", "torch.export"), torch.no_grad():
                graph = program.module(check_guards=False)
                return _compiled(graph, example_of(rows, signature), signature, directory)
        except Exception as error:  # whatever the compilers meet in a user's module
            raise refused(module, "compiled by AOTInductor", error) from error


def _compiler() -> str:
    from torch._inductor import config

    return str(config.cpp.cxx[1])


def _compiled(graph: GraphModule, example: tuple[torch.Tensor, ...], signature: Signature, directory: str) -> bytes:
    from torch._inductor import aot_compile
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.utils import fresh_cache
    from torch.export.pt2_archive._package import package_pt2

    with fresh_cache(dir=directory):
        flags = pick_vec_isa().build_arch_flags().split()
        names = [flag.removeprefix("-m").replace("-", "") for flag in flags if "=" not in flag]
        assert not missing_instructions(names), names  # what runs here must be allowed to
        settings = {**_SETTINGS, "aot_inductor.metadata": {INSTRUCTIONS: " ".join(names)}}
        files: Any = aot_compile(graph, example, options=settings)
        # What the library was made of would only tell of this machine.
        kept: list[Any] = [file for file in files if str(file).endswith((".wrapper.so", ".wrapper_metadata.json"))]
        for file in kept:
            _forget_paths(Path(file), directory, str(Path(torch.__file__).parent))
        package = io.BytesIO()
        package_pt2(package, aoti_files=kept, extra_files={SIGNATURE: signature.model_dump_json()})
    return package.getvalue()


def _forget_paths(file: Path, *paths: str) -> None:
    """Write over paths of this machine; a library has them in its messages, and every byte of it in its place."""
    data = file.read_bytes()
    for path in paths:
        data = data.replace(path.encode(), b"/" * len(path.encode()))
    file.write_bytes(data)
