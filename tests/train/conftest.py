"""Fixtures for the training tests."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo

from shipline.train import seed
from shipline.train.seed import isolate_rng


@pytest.fixture(autouse=True)
def own_randomness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test starts without a seed of the process, and leaves every generator as it was."""
    monkeypatch.setattr(seed, "_seed", None)
    with isolate_rng():
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores are several times slower with two threads than with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Finders collect garbage, which takes half a second over all that the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def wandb_offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as it is without a key; its process ends with the test."""
    import wandb

    own = tmp_path_factory.mktemp("wandb")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(own))
    for name in [name for name in os.environ if name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


@pytest.fixture
def quiet_lightning() -> Iterator[None]:
    """Lightning's loggers say errors only, and are afterwards as they were."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    yield
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
