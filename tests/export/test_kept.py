"""Answers that are asked for again."""

from __future__ import annotations

import numpy as np
import torch

from shipline.export.kept import Kept


def test_what_is_kept_is_no_view_of_something_larger() -> None:
    kept = Kept[dict[str, torch.Tensor | np.ndarray]]()
    found = kept.answer("first", lambda: {"tensor": torch.ones(100, 100)[:, 0], "array": np.ones((100, 100))[:, 0]})
    tensor, array = found["tensor"], found["array"]
    assert isinstance(tensor, torch.Tensor)
    assert tensor.untyped_storage().nbytes() == 400
    assert isinstance(array, np.ndarray)
    assert array.base is None
    assert kept.answer("first", dict) is found
    assert kept.answer("second", dict) == {}
