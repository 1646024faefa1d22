"""Gradients that travel between workers in fewer bytes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from workers import run_workers

from shipline.errors import ConfigError
from shipline.train.strategies import Ddp


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers saw."""
    return run_workers(Path(__file__).with_name("compressed_worker.py"), 2, tmp_path_factory.mktemp("compressed"))


@pytest.mark.parametrize("hook", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["plain", "by hand", "two"])
def test_weights_are_nearly_those_of_gradients_as_they_are(found: list[dict[str, Any]], name: str, hook: str) -> None:
    """Nearly, since they were rounded: alike on all workers; the weights keep their dtype."""
    for worker in found:
        far, alike, kinds = worker[f"{name}, {hook}"]
        assert 0 < far < {"fp16": 1e-3, "bf16": 1e-2}[hook]
        assert alike
        assert kinds == ["torch.float32"]


def test_other_strategies_of_copies_have_them_too(found: list[dict[str, Any]]) -> None:
    assert max(worker["zero1"] for worker in found) < 1e-6


def test_a_resumed_run_is_the_whole_one(found: list[dict[str, Any]]) -> None:
    assert [worker["resumed"] for worker in found] == [0, 0]


def test_a_hook_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"comm_hook='fp61'\. Did you mean 'fp16'\? Known: fp16, bf16\."):
        Ddp(comm_hook="fp61")
    with pytest.raises(ConfigError, match=r"comm_hook='powersgd'\. Known: "):
        Ddp(comm_hook="powersgd")


def test_it_travels_to_workers() -> None:
    again = pickle.loads(pickle.dumps(Ddp(comm_hook="bf16", static_graph=True)))  # noqa: S301 -- our own
    assert (again._comm_hook, again._options) == ("bf16", {"static_graph": True})
