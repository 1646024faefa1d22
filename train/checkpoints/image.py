"""A safetensors file in memory, kept from one checkpoint to the next.

Training waits while tensors are copied, and for nothing else; so the copy goes into pages that are there already (to
touch 400 MB of fresh ones costs about six times the copy: that is done beforehand, in a thread), and has the very
form in which it is then written: no second copy is ever made. The format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import json
import mmap
import sys
import threading
from collections.abc import Iterable

import numpy as np
import torch

from shipline.train.checkpoints.tree import DTYPES, Tensors, storable

_ALIGNMENT = 64

#: Bytes: what an entry of the header takes at most, as a rule; what the state holds besides the optimizers'; and from
#: where on a thread is worth its start.
_ENTRY, _BESIDES, _MUCH = 256, 2**20, 16 * 2**20


class Image:
    """Memory that holds a file of tensors; written over by the next one."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._header = b""
        self._size = 0
        self._views: Tensors = {}
        self._taking: threading.Thread | None = None

    def reserve(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take memory for a file of these tensors and a little more, in the background."""
        size = sum(tensor.numel() * tensor.element_size() + _ENTRY for tensor in tensors) + _BESIDES
        if size >= _MUCH and self._taking is None and self._memory is None:
            self._taking = threading.Thread(target=self._take, args=(size,), name="shipline-checkpoint-memory")
            self._taking.start()

    def _take(self, size: int) -> None:
        with contextlib.suppress(OSError):  # there is none: the checkpoint will say so, if it cannot do without
            memory = _fresh(size)
            np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 0  # numpy lets go of the interpreter for it
            self._memory = memory

    def fill(self, tensors: Tensors) -> memoryview:
        """Copy the tensors in, and return the bytes of the file; they stay valid until the next call.

        Raises:
            TrainingError: a tensor has a dtype that no file can hold.
        """
        if self._taking is not None:
            self._taking.join()
            self._taking = None
        header, offsets, end = _layout({name: storable(tensor, name) for name, tensor in tensors.items()})
        if header != self._header or self._memory is None:
            self._lay_out(header, offsets, end, tensors)
        for name, view in self._views.items():
            view.copy_(tensors[name].detach())
        assert self._memory is not None
        return memoryview(self._memory)[: self._size]

    def _lay_out(self, header: bytes, offsets: dict[str, int], end: int, tensors: Tensors) -> None:
        self._views = {}
        self._size = len(header) + end
        if self._memory is None or len(self._memory) < self._size:
            self._memory = _fresh(self._size)
        self._memory[: len(header)] = header
        self._header = header
        for name, start in offsets.items():
            if (tensor := tensors[name]).numel():
                count = tensor.numel() * tensor.element_size()
                raw = torch.frombuffer(self._memory, dtype=torch.uint8, offset=len(header) + start, count=count)
                self._views[name] = raw.view(tensor.dtype).view(tensor.shape)


def _fresh(size: int) -> mmap.mmap:
    """Return that much memory: private to this process, which takes a third less time to touch than what is shared."""
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)  # data workers would have each page copied that is written while they live
    return memory


def _layout(tensors: Tensors) -> tuple[bytes, dict[str, int], int]:
    """Return the file's header, where each tensor begins after it, and where they end; larger numbers come first."""
    entries: dict[str, dict[str, object]] = {}
    offsets: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        offsets[name] = end
        end += tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offsets[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, offsets, end
