"""Tensors in parts: made whole again, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from shipline.errors import IntegrityError
from shipline.shards import ShardIndex, assemble

WHOLE = {
    "matrix": np.arange(15, dtype=np.float32).reshape(5, 3),
    "count": np.array(7, np.int64),
    "none": np.zeros((0, 2), np.float16),
}


def in_parts() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The matrix by rows and columns in two files, the rest in one."""
    matrix = WHOLE["matrix"]
    boxes = {"a": [(0, 0, 3, 3)], "b": [(3, 0, 2, 2), (3, 2, 2, 1)]}
    files = {
        name: {f"matrix@{r},{c}": matrix[r : r + h, c : c + w].copy() for r, c, h, w in found}
        for name, found in boxes.items()
    }
    files["a"] |= {"count@": WHOLE["count"], "none@0,0": WHOLE["none"]}
    parts = [
        {"file": name, "offsets": [r, c], "sizes": [h, w]} for name, found in boxes.items() for r, c, h, w in found
    ]
    index = {
        "matrix": {"dtype": "F32", "shape": [5, 3], "parts": parts},
        "count": {"dtype": "I64", "shape": [], "parts": [{"file": "a", "offsets": [], "sizes": []}]},
        "none": {"dtype": "F16", "shape": [0, 2], "parts": [{"file": "a", "offsets": [0, 0], "sizes": [0, 2]}]},
    }
    return index, {name: save(tensors) for name, tensors in files.items()}


def made(index: dict[str, Any], files: dict[str, bytes]) -> bytes:
    return assemble(ShardIndex.parse(json.dumps(index).encode(), "weights.index.json"), files.__getitem__, "run")


def test_the_whole_is_made_of_its_parts() -> None:
    found = load(made(*in_parts()))
    assert found.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def _change(path: list[Any], value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(index: dict[str, Any], _files: dict[str, bytes]) -> None:
        *before, last = path
        place: Any = index
        for key in before:
            place = place[key]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change(["matrix", "parts"], []), "no index of shards"),
        (
            _change(["matrix", "parts", 0, "sizes"], [2, 3]),
            r"^weights\.index\.json says of 'matrix' \(F32, \[5, 3\]\) what cannot be: its 3 parts have 12 numbers",
        ),
        (_change(["matrix", "parts", 0, "offsets"], [-1, 0]), "what cannot be"),
        (_change(["matrix", "parts", 0, "offsets"], [3, 0]), "what cannot be"),
        (_change(["matrix", "parts", 0, "offsets"], [0]), "what cannot be"),
        (_change(["matrix", "shape"], [5, 2**62]), "what cannot be"),
        (_change(["matrix", "dtype"], "F128"), "what cannot be"),
        (
            _change(["matrix", "dtype"], "I32"),
            r"run/a does not hold 'matrix@0,0' as the index says, I32, \[3, 3\]; it has F32, \[3, 3\] at ",
        ),
        (_change(["matrix", "parts", 2], {"file": "b", "offsets": [3, 0], "sizes": [2, 1]}), "over each other"),
        (
            _change(["count", "parts", 0, "file"], "b"),
            "run/b does not hold 'count@' as the index says, I64, \\[\\]; it has nothing of that name. Do not use this",
        ),
        (lambda _index, files: files.update(a=b"\x00" * 4), "run/a has 4 bytes and is no safetensors file"),
        (
            lambda _index, files: files.update(a=files["a"][:8] + b"{" * 100),
            "run/a has 108 bytes and is no safetensors",
        ),
        (lambda _index, files: files.update(a=files["a"][:-20]), "run/a does not hold 'none@0,0'|'count@'|'matrix"),
        (
            lambda _index, files: files.update(a=b"\x02" + b"\x00" * 7 + b"[]"),
            "does not hold 'matrix@0,0' .* it has nothing",
        ),
    ],
)
def test_what_cannot_be_is_refused(damage: Callable[..., None], message: str) -> None:
    index, files = in_parts()
    damage(index, files)
    with pytest.raises(IntegrityError, match=message):
        made(index, files)
