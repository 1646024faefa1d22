"""Rows that differ in length: a module is proved on them all padded to the longest, and on each as servers pad it."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shipline.backends.base import Arrays
from shipline.errors import GateError, ProcessingError, SignatureError
from shipline.export.outputs import outputs_of
from shipline.export.rows import Rows, in_batches
from shipline.export.source import Source
from shipline.processing import Processing
from shipline.signature import DYNAMIC, Signature

#: How many raw rows are looked at.
RAW_ROWS = 128
#: Few at once, since the longest rows may take much memory.
BATCH = 8
#: What to do where rows cannot differ in length.
OTHERWISE = "Pad all rows to one length: set pad_to_multiple_of=None in the processing, or in sl.huggingface(...)."


@dataclass(frozen=True)
class Shorter:
    """Rows of one length, as servers make them, and the module's answers to the same rows at full length, in order.

    `cut` of them, the last ones, are beginnings of real texts.
    """

    inputs: Arrays
    outputs: Sequence[np.ndarray]
    cut: int = 0

    @property
    def length(self) -> int:
        """That of each row."""
        return int(next(iter(self.inputs.values())).shape[1])

    def __len__(self) -> int:
        return len(self.outputs[0])


def freed(signature: Signature, source: Source) -> Signature:
    """Return the signature with inputs of any length, where the processing gives such rows.

    Raises:
        SignatureError: an input has no such dimension.
    """
    if source.processing is None or (longest := source.processing.longest) is None:
        return signature
    for spec in signature.inputs:
        if len(spec.shape) < 2 or spec.shape[1] != longest:
            raise SignatureError(
                f"The processing gives rows of up to {longest}, and forward takes {spec.name!r} of shape "
                f"{list(spec.shape)}. {OTHERWISE}"
            )
    free = [spec.model_copy(update={"shape": (DYNAMIC, DYNAMIC, *spec.shape[2:])}) for spec in signature.inputs]
    return signature.model_copy(update={"inputs": tuple(free)})


def shorter(module: nn.Module, source: Source, signature: Signature, known: Rows) -> tuple[Shorter, ...]:
    """Return real rows and beginnings of real texts by length, the shortest first; none where all have one shape.

    The module's answers to most of them at full length are `known`.

    Raises:
        GateError: the module gives outputs that are as long as its inputs, or cannot take shorter ones; or there are no
            shorter ones.
    """
    processing = source.processing
    if processing is None or processing.longest is None:
        return ()
    real = list(itertools.islice(source.raw_rows(), RAW_ROWS))
    raw = [*real, *_beginnings(real, processing, signature)]
    pairs = [(processing.inputs(row, signature), processing.whole.inputs(row, signature)) for row in raw]
    lengths = [_length(short) for short, _ in pairs]
    if raw and min(lengths) == processing.longest:
        raise GateError(
            f"All {len(raw)} rows that were looked at are as long as the longest, {processing.longest}: nothing shows "
            f"how shorter ones are answered. Nothing was published. Give some that are shorter. {OTHERWISE}"
        )
    found, answers = [], _answers_in_full(module, [whole for _, whole in pairs], known)
    for length in sorted(set(lengths)):
        same = [number for number, each in enumerate(lengths) if each == length]
        inputs = _together([pairs[number][0] for number in same])
        outputs = [output[same] for output in answers]
        _check_shorter(module, {name: array[:1] for name, array in inputs.items()}, outputs, signature)
        found.append(Shorter(inputs, outputs, sum(number >= len(real) for number in same)))
    return tuple(found)


def usual(found: Sequence[Shorter]) -> Shorter:
    """Return the rows whose length is the median of all real ones."""
    middle, each = sum(len(each) - each.cut for each in found) / 2, found[0]
    for each in found:
        middle -= len(each) - each.cut
        if middle <= 0:
            break
    return each


def _beginnings(rows: Sequence[Any], processing: Processing, signature: Signature) -> Iterator[str]:
    """Yield beginnings of the texts that just fill the longest row, half of it, a quarter, down to the shortest.

    Clients send texts of lengths that no real row may have; and what looks beyond a text's end sees the padding best
    where it follows at once.
    """
    text, longest = " ".join(row for row in rows if isinstance(row, str)), processing.longest or 0
    most = 2 * longest

    def length(characters: int) -> int:
        try:
            return _length(processing.inputs(text[:characters], signature))
        except ProcessingError:  # so many characters are not even looked at
            return longest + 1

    while text and (most := most // 2) >= length(0):
        if characters := bisect_right(range(len(text)), most, key=length) - 1:
            yield text[:characters]


def _length(row: Arrays) -> int:
    return int(next(iter(row.values())).shape[1])


def _together(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _answers_in_full(module: nn.Module, rows: Sequence[Arrays], known: Rows) -> list[np.ndarray]:
    """The module's answers to rows at full length, of which it is only asked for those that are not known."""
    places, outputs = [known.place_of(row) for row in rows], known.outputs
    if missing := [row for row, place in zip(rows, places, strict=True) if place is None]:
        more = _answers(module, _together(missing))
        outputs = [np.concatenate(pair) for pair in zip(outputs, more, strict=True)]
    behind = itertools.count(len(known))
    numbers = [next(behind) if place is None else place for place in places]
    return [output[numbers] for output in outputs]


def _answers(module: nn.Module, inputs: Arrays) -> list[np.ndarray]:
    parts = [_answered(module, batch) for batch in in_batches(inputs, BATCH)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _answered(module: nn.Module, inputs: Arrays) -> list[np.ndarray]:
    with torch.no_grad():
        found = module.eval()(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()})
    return [leaf.numpy(force=True) for leaf in outputs_of(found)]


def _check_shorter(module: nn.Module, row: Arrays, whole: Sequence[np.ndarray], signature: Signature) -> None:
    """Raise GateError where the module cannot take a shorter row, or answers it in another shape."""
    try:
        short = _answers(module, row)
    except Exception as error:  # whatever a user's forward raises
        raise GateError(
            f"{type(module).__name__} cannot take rows of a length of {_length(row)}: {type(error).__name__}: "
            f"{str(error).strip()[:500]}. Nothing was published. {OTHERWISE}"
        ) from error
    for spec, one, other in zip(signature.outputs, whole, short, strict=True):
        if one.shape[1:] != other.shape[1:]:
            raise GateError(
                f"{type(module).__name__} answers longer rows with a longer {spec.name!r} ({list(one.shape[1:])} and "
                f"{list(other.shape[1:])}), and only inputs may differ in length. Nothing was published. {OTHERWISE}"
            )
