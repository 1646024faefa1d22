"""What the backends that run on torch share: tensors in and out by name, threads, and a signature in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores
from shipline.errors import IntegrityError
from shipline.signature import Signature

#: The record of a file that says what goes in and comes out; torch keeps such records apart from its own.
SIGNATURE = "signature.json"


class TorchBackend(Backend):
    """A function of tensors in the order of a signature. Several threads may run it at once."""

    runs_code: ClassVar[bool] = True

    def __init__(self, function: Callable[[list[torch.Tensor]], Sequence[Any]], signature: Signature, threads: int):
        self._function, self._signature, self._threads = function, signature, threads

    @classmethod
    def of(
        cls, function: Callable[[list[torch.Tensor]], Sequence[Any]], signature: bytes | str, settings: ServingSettings
    ) -> Self:
        """Return the backend for a function and the signature that its file holds, in JSON."""
        return cls(function, Signature.model_validate_json(signature), min(settings.threads, cores()))

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name.

        Raises:
            SignatureError: inputs that the file was not made for; compiled code would read past their end.
        """
        self._signature.check_inputs(inputs)
        tensors = [_tensor(inputs[spec.name]) for spec in self._signature.inputs]
        with _threads(self._threads), torch.inference_mode():
            outputs = self._function(tensors)
            arrays = [output.numpy(force=True) for output in outputs]
        return {spec.name: array for spec, array in zip(self._signature.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Let go of the function: compiled code keeps files for as long as it is loaded."""
        del self._function


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in the block.

    torch keeps the number for each thread that calls it, and starts new ones with the last that anybody set. It is set
    for each batch and put back, not once: an export would leave the training after it with one thread.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor: the same memory where that is in one piece and may be written to, as torch expects."""
    flags = array.flags
    return torch.from_numpy(array if flags.c_contiguous and flags.writeable else array.copy())


def damaged(model_file: str, found: str) -> IntegrityError:
    """Return the error for an archive that holds what none of ours does."""
    return IntegrityError(f"{model_file} is not as Shipline writes it: it holds {found}. Export the model again.")
