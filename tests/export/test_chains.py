"""The matrix of chains: what the page in the documentation says is what happens."""

from __future__ import annotations

import chains
import pytest
from chains import MODULES, PAGE, PRUNED

Found = dict[tuple[str, str], dict[tuple[str, str], str]]
FOUND: Found = {}


@pytest.mark.parametrize("pruned", PRUNED)
@pytest.mark.parametrize("module", MODULES)
def test_each_way_works_or_says_why_not(module: str, pruned: str) -> None:
    FOUND[module, pruned] = found = chains.tried(module, pruned)
    assert found["float32", "onnxruntime"] == ""
    assert found["int8", "onnxruntime"] == found["int8", "openvino"] == ""


def test_the_page_says_what_was_found() -> None:
    if len(FOUND) < len(MODULES) * len(PRUNED):
        pytest.skip("compares what all tests above have found")
    assert PAGE.read_text() == chains.table(FOUND), "run: python tests/support/chains.py"
