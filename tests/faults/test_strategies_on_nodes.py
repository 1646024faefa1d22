"""Strategies that divide a model, on three nodes: see strategies_on_nodes.py, which runs it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import found_by

SCRIPT = Path(__file__).parent / "strategies_on_nodes.py"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # whichever comes first waits for all


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each run."""
    return found_by(SCRIPT, tmp_path_factory.mktemp("strategies"))


@pytest.mark.parametrize("name", ["zero1", "fsdp", "tp", "pp", "fsdp+tp"])
def test_weights_are_those_of_one_process(found: dict[str, Any], name: str) -> None:
    far, loss, workers, nodes = found[name]
    assert (workers, nodes) == (4, 3)
    assert far < 1e-5
    assert loss < 1e-5


def test_a_module_without_memory_has_the_weights_of_the_run(found: dict[str, Any]) -> None:
    """The driver's, too, which nobody has sharded."""
    assert found["meta"] == 0
