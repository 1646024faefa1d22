"""The signature of a module: as it declares it, or as its real rows show it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
from torch import nn

from shipline.errors import SignatureError, nearest
from shipline.export.outputs import Structure
from shipline.export.rows import Rows
from shipline.signature import DYNAMIC, Signature, TensorSpec


def signature_of(module: nn.Module, rows: Rows) -> Signature:
    """Return what the module takes and gives.

    Raises:
        SignatureError: the declared signature names inputs that forward does not have, or real rows do not fit it.
    """
    if len(rows) == 0:
        raise SignatureError(
            f"validation_step of {type(module).__name__} never called forward, so there is nothing to export: "
            "let it call self(...), and give the DataModule a val_dataloader."
        )
    declared: Signature | None = getattr(module, "signature", None)
    if declared is None:
        inputs = tuple(_spec(name, array) for name, array in rows.inputs.items())
        names = _output_names(rows.structure, len(rows.outputs))
        found = Signature(inputs=inputs, outputs=tuple(map(_spec, names, rows.outputs)))
    else:
        _check_declared(module, declared, rows)
        found = declared
    _check_distinct(module, found)
    return found


def _check_declared(module: nn.Module, declared: Signature, rows: Rows) -> None:
    _check_parameters(module, declared)
    declared.check_inputs(rows.inputs)
    names = [spec.name for spec in declared.outputs]
    if len(names) != len(rows.outputs):
        raise SignatureError(
            f"The signature of {type(module).__name__} names {len(names)} outputs; forward gives {len(rows.outputs)}."
        )
    keys = _keys(rows.structure, len(rows.outputs))
    if keys is not None and keys != names:
        raise SignatureError(
            f"The signature of {type(module).__name__} names the outputs {', '.join(names)}; forward gives "
            f"{', '.join(keys)}, in this order. Name them alike."
        )
    declared.check_outputs(dict(zip(names, rows.outputs, strict=True)))


def _check_distinct(module: nn.Module, found: Signature) -> None:
    both = {spec.name for spec in found.inputs} & {spec.name for spec in found.outputs}
    if both:
        raise SignatureError(
            f"{', '.join(sorted(both))} is the name of an input and of an output of {type(module).__name__}; a graph "
            "knows each name once. Rename one of the two."
        )


def _check_parameters(module: nn.Module, declared: Signature) -> None:
    parameters = list(inspect.signature(module.forward).parameters)
    for spec in declared.inputs:
        if DYNAMIC in spec.shape[1:]:
            raise SignatureError(
                f"The signature of {type(module).__name__} leaves {spec.name!r} open in a dimension besides the batch "
                f"({list(spec.shape)}); a graph is exported for one size. Name it, and pad rows to it."
            )
        if spec.name not in parameters:
            raise SignatureError(
                f"The signature of {type(module).__name__} names the input {spec.name!r}, which forward does not take."
                f"{nearest(spec.name, parameters)} forward takes: {', '.join(parameters) or 'nothing'}."
            )


def _spec(name: str, array: np.ndarray) -> TensorSpec:
    return TensorSpec(name=name, dtype=array.dtype.name, shape=(-1, *array.shape[1:]))


def _output_names(structure: Structure | None, count: int) -> list[str]:
    """The keys of a dict or the names of fields, `output` for one tensor, `output_0` ... for several."""
    return _keys(structure, count) or (["output"] if count == 1 else [f"output_{i}" for i in range(count)])


def _keys(structure: Structure | None, count: int) -> list[str] | None:
    """The keys of a flat dict, dataclass or named tuple in the order of its tensors; None for other outputs."""
    assert structure is not None
    found = _by_name(structure.filled(range(count)))
    named = {name: value for name, value in found.items() if value is not None}
    if named and all(isinstance(value, int) for value in named.values()):
        return [str(key) for key in sorted(named, key=named.__getitem__)]
    return None


def _by_name(output: Any) -> dict[Any, Any]:
    if isinstance(output, dict):
        return dict(output)
    if dataclasses.is_dataclass(output):
        return {each.name: getattr(output, each.name) for each in dataclasses.fields(output)}
    return dict(output._asdict()) if hasattr(output, "_asdict") else {}
