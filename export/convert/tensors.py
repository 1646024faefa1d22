"""A module as what a file holds: a function of tensors in order, computed in one precision."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from shipline.export.lengths import OTHERWISE
from shipline.export.outputs import outputs_of
from shipline.export.rows import Rows
from shipline.signature import DYNAMIC, Signature


class TensorFunction(nn.Module):
    """Takes the inputs of a signature in its order, and gives its outputs as a tuple.

    Args:
        module: in evaluation mode.
        names: of the parameters of forward that the inputs are for.
        compute: "bfloat16": the weights are, and what goes in becomes so; a request carries no such numbers, so what
            comes out has the dtype of the signature again.
        dtypes: of the outputs.
        copies: whether forward writes into its inputs, which belong to whoever sent them.
    """

    def __init__(self, module: nn.Module, names: list[str], compute: str, dtypes: list[torch.dtype], copies: bool):
        super().__init__()
        self.module, self._names, self._dtypes, self._copies = module, names, dtypes, copies
        self._compute = torch.bfloat16 if compute == "bfloat16" else None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in order."""
        given = {name: self._taken(tensor) for name, tensor in zip(self._names, tensors, strict=True)}
        outputs = outputs_of(self.module(**given))
        return tuple(output.to(dtype) for output, dtype in zip(outputs, self._dtypes, strict=True))

    def _taken(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._compute is not None and tensor.is_floating_point():
            return tensor.to(self._compute)
        return tensor.clone() if self._copies else tensor


def as_function(
    module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"]
) -> TensorFunction:
    """Return the module, or for bfloat16 a copy of it, as a function of tensors."""
    if compute == "bfloat16":
        module = copy.deepcopy(module).to(torch.bfloat16)
    names = [spec.name for spec in signature.inputs]
    dtypes = [getattr(torch, spec.dtype) for spec in signature.outputs]
    function = TensorFunction(module.eval(), names, compute, dtypes, copies=False).eval()
    example = example_of(rows, signature)
    before = [tensor._version for tensor in example]  # noqa: SLF001 -- counts what is written into a tensor
    with torch.no_grad():
        function(*example)
    function._copies = [tensor._version for tensor in example] != before  # noqa: SLF001
    return function


def free_dimensions(signature: Signature) -> list[dict[int, str]]:
    """Return what may vary of each input: its batch and, where rows differ in that, its length, in all the same."""
    names = ("batch", "length")
    return [
        {place: name for place, name in enumerate(names) if spec.shape[place : place + 1] == (DYNAMIC,)}
        for spec in signature.inputs
    ]


def advice_on(error: BaseException, signature: Signature) -> str:
    """Return what to do where the module fixes the length, which torch says by the dimension; nothing otherwise."""
    free = any("length" in names.values() for names in free_dimensions(signature))
    return f" {OTHERWISE}" if free and "shape[1]" in str(error) else ""


def example_of(rows: Rows, signature: Signature, count: int = 2) -> tuple[torch.Tensor, ...]:
    """Return the first real row, several times: with one row, exporters would quietly fix the batch at 1."""
    return tuple(torch.from_numpy(rows.inputs[spec.name][:1].repeat(count, axis=0)) for spec in signature.inputs)
