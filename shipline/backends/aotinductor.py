"""Libraries that AOTInductor has compiled, on the CPU."""

from __future__ import annotations

import io
import platform
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch._C import PyTorchFileReader, _aoti

from shipline.artifact import ServingSettings
from shipline.backends.torch import SIGNATURE, TorchBackend, damaged
from shipline.errors import ServingError

#: Which sets of instructions a library uses, in its metadata.
INSTRUCTIONS = "SHIPLINE_INSTRUCTIONS"

_MODEL = "model"
_RECORDS = re.compile(
    rf"data/aotinductor/{_MODEL}/\w+\.wrapper(\.so|_metadata\.json)|extra/{re.escape(SIGNATURE)}"
    r"|archive_format|archive_version|byteorder|\.data/\w+"
)


class AotInductorBackend(TorchBackend):
    """A shared library, made for one kind of processor.

    There is nothing to unpickle in its archive; the library is machine code, and runs as this process may. torch
    runs it with Python's lock held: a process computes one batch at a time, on one core, and nothing else meanwhile.
    """

    format: ClassVar[str] = "aotinductor"
    model_file: ClassVar[str] = "model.pt2"

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the library; it needs no other file, and lies in a temporary directory while it is loaded.

        Raises:
            IntegrityError: the archive holds something else, too.
            ServingError: it was compiled for another processor than this one.
        """
        archive = PyTorchFileReader(io.BytesIO(model))
        for name in archive.get_all_records():
            if not _RECORDS.fullmatch(name):
                raise damaged(cls.model_file, repr(name))
        # Not torch._inductor.aoti_load_package: that imports the whole compiler, and calls the C++ one.
        with tempfile.TemporaryDirectory(prefix="shipline-") as directory:
            path = str(Path(directory) / cls.model_file)
            Path(path).write_bytes(model)
            _check_machine(_aoti.AOTIModelPackageLoader.load_metadata_from_package(path, _MODEL))  # type: ignore[attr-defined]
            library = _aoti.AOTIModelPackageLoader(path, _MODEL, False, 1, -1)  # noqa: FBT003
        alone = threading.Lock()  # whoever waited inside torch would do so with Python's own lock in hand, for ever

        def function(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            with alone:
                return library.boxed_run(tensors)

        return cls.of(function, archive.get_record(f"extra/{SIGNATURE}").decode(), settings)


def _check_machine(made_for: dict[str, str]) -> None:
    """Raise ServingError unless this machine has the instructions that the library uses: it would die of the first."""
    machine = {"AOTI_PLATFORM": sys.platform, "AOTI_MACHINE": platform.machine()}
    missing = [made_for[name] for name, value in machine.items() if made_for[name] != value]
    missing = missing or missing_instructions(made_for[INSTRUCTIONS].split())
    if missing:
        raise ServingError(
            f"The model was compiled for {made_for['AOTI_PLATFORM']} on {made_for['AOTI_MACHINE']} with "
            f"{made_for[INSTRUCTIONS] or 'no further instructions'}; this machine has no {', '.join(missing)}. "
            "Export it on a machine like this one, or with backend='onnxruntime'."
        )


def missing_instructions(names: list[str]) -> list[str]:
    """Return those of the instruction sets, named as compilers of C++ do (`avx512f`), that this processor lacks."""
    has = {name.replace("_", ""): bool(value) for name, value in torch.cpu.get_capabilities().items()}
    has["fma"] = has.get("fma3", False)
    return [name for name in names if not has.get(name, False)]
