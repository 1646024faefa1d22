"""The right classes of rows, where validation is given them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from shipline.export.rows import Rows, replaced


@contextlib.contextmanager
def noting_labels(module: nn.Module, rows: Rows) -> Iterator[None]:
    """Note down the classes in the batches that the module's validation step gets, while rows are recorded."""
    step = getattr(module, "validation_step", None)
    if step is None:
        yield
        return

    @functools.wraps(step)
    def noted(*args: Any, **kwargs: Any) -> Any:
        before = rows.seen
        result = step(*args, **kwargs)
        rows.add_labels(labels_in((args, kwargs), rows.seen - before, rows.given))
        return result

    with replaced(module, "validation_step", noted):
        yield


def labels_in(batch: Any, count: int, given: set[int] | None = None) -> np.ndarray | None:
    """Return the whole numbers, one for each of `count` rows, that a batch holds once beside what forward is given."""
    found = [
        leaf
        for leaf in pytree.tree_leaves(batch)
        if isinstance(leaf, torch.Tensor) and leaf.shape in ((count,), (count, 1)) and _is_whole(leaf)
    ]
    labels = [leaf for leaf in found if leaf.data_ptr() not in (given or ())]
    return labels[0].numpy(force=True).reshape(-1).astype(np.int64) if count and len(labels) == 1 else None


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
