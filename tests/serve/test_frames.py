"""Arrays between two processes: they arrive as they were sent, and what is no array of numbers is refused."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest

from shipline.serve import frames
from shipline.serve.errors import RequestError


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3)[:, ::2],
        np.array([[True], [False]]),
        np.float16([1, np.nan, -np.inf]),
        np.zeros((0, 3), np.int64),
        np.array(7, np.uint8),
        np.array([[1 + 2j]]),
        np.array([[b"a\0b", b""]], object),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_arrive_as_they_were_sent(array: np.ndarray) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, frames.packed({"call": 3}, {"x": array, "again": array}))
        header, found = frames.receive(theirs)
        assert header == {"call": 3}
        for name in ("x", "again"):
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)
            assert found[name].flags.writeable
        ours.close()
        with pytest.raises(EOFError):
            frames.receive(theirs)


@pytest.mark.parametrize(("dtype", "says"), [("O", "4 bytes behind"), ("M8[s]", "no backend"), ("V8", "no backend")])
def test_what_is_no_array_of_numbers_is_refused(dtype: str, says: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, [*frames.packed({"call": 0}), *_frame([["x", dtype, [1], 8]]), bytes(7) + b"\x01"])
        assert frames.receive(theirs)[0] == {"call": 0}
        with pytest.raises((ValueError, RequestError), match=says):
            frames.receive(theirs)


def _frame(described: list[Any]) -> frames.Parts:
    text = json.dumps({"call": 1, "arrays": described}).encode()
    return [len(text).to_bytes(4, "little"), text]
