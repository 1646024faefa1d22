"""8 bits for weights and activations, by torch's own quantiser."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.export import Dim

from shipline.backends.base import Arrays
from shipline.errors import GateError
from shipline.export.convert.tensors import free_dimensions
from shipline.export.latency import batch_of
from shipline.export.passes.base import Material, ModulePass, quiet
from shipline.export.processor import cuts_sums
from shipline.export.rows import in_batches

with quiet():  # its import says which of its kernels this machine has not
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

CALIBRATION_BATCH = 32

_PART = "pt2e"  # what holds the program, of the module whose forward it becomes
_ROUNDS = "quantize_per_tensor"


@dataclass(frozen=True, kw_only=True)
class Pt2eInt8(ModulePass):
    """int8 weights and uint8 activations, by torchao's PT2E with its quantiser for x86, whose form the runtimes know.

    What `StaticInt8` does to the graph, done to the program of `torch.export`: scales follow from histograms, products
    between activations, as in attention, stay float. The graph is compared with the rounded program.

    Args:
        reduce_range: 7 bits for activations, where `StaticInt8` has them for weights, and for the same reason.

    Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/index.html
    """

    reduce_range: bool | None = None

    precision: ClassVar[str] = "int8"
    tolerance: ClassVar[float] = 5e-2
    measures: ClassVar[bool] = True

    @property
    def label(self) -> str:
        """What a module is called that went through it."""
        return _PART

    def apply(self, module: nn.Module, material: Material) -> nn.Module:
        """Return the module, whose forward is the rounded program; GateError where torchao cannot round it."""
        rows = material.calibration()
        inputs = {spec.name: rows[spec.name] for spec in material.signature.inputs}
        try:
            with quiet(), torch.no_grad():
                rounded = copy.deepcopy(module).eval()
                program = self._rounded(rounded, inputs, free_dimensions(material.signature))
        except Exception as error:  # whatever torch meets in a user's module
            raise _refused(module, f"{type(error).__name__}: {str(error).strip()[:800]}") from error
        if not any(_ROUNDS in str(node.target) for node in program.graph.nodes):
            raise _refused(module, "it has no linear layer or convolution that the quantiser knows")
        rounded.add_module(_PART, _Program(program))
        rounded.__dict__["forward"] = _Forward(rounded, inspect.signature(module.forward))
        return rounded.requires_grad_(requires_grad=False)

    def _rounded(self, module: nn.Module, inputs: Arrays, free: list[dict[int, str]]) -> Any:
        """Export the module, let all rows go through it, and let torchao round it."""
        dimensions = {"batch": Dim("batch"), "length": Dim.AUTO}  # which depends on what the module does with it
        free_of = zip(inputs, free, strict=True)
        shapes = {name: {at: dimensions[what] for at, what in each.items()} for name, each in free_of}
        program = torch.export.export(module, (), _batch(batch_of(inputs, 2)), dynamic_shapes=shapes)
        narrow = cuts_sums() if self.reduce_range is None else self.reduce_range
        config = x86.get_default_x86_inductor_quantization_config(reduce_range=narrow)
        quantiser = x86.X86InductorQuantizer().set_global(config)
        exported = program.module()
        exported.graph.eliminate_dead_code()  # layers that nobody takes, such as BERT's pooler, end the quantiser
        exported.recompile()
        prepared = prepare_pt2e(exported, quantiser)
        for rows in in_batches(inputs, CALIBRATION_BATCH):
            prepared(**_batch(rows))
        return convert_pt2e(prepared)


class _Program(nn.Module):
    """An exported program as part of a module: it evaluates, whatever the module is told."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        for part in self.modules():  # a program has no `eval` of its own
            part.training = False

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.program(**inputs)

    def train(self, mode: bool = True) -> _Program:
        return self


class _Forward:
    """A module's forward that is the program."""

    def __init__(self, module: nn.Module, signature: inspect.Signature) -> None:
        self._module = module
        self.__signature__ = signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._module.get_submodule(_PART)(**self.__signature__.bind(*args, **kwargs).arguments)


def _batch(inputs: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def _refused(module: nn.Module, why: str) -> GateError:
    return GateError(f"{type(module).__name__} cannot be quantised by torchao, so nothing was published: {why}")
