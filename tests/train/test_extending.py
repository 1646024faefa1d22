"""docs/extending.md, as it stands there: each example is installed as a package, found by its name, and trains."""

from __future__ import annotations

import configparser
import importlib
import io
import json
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Install
from precision_conformance import PrecisionConformance
from profiler_conformance import ProfilerConformance
from strategy_conformance import StrategyConformance
from torch import nn
from training import Mlp, bare_trainer, new_trainer, train_loader, val_loader

from docs import blocks, classes
from shipline.errors import ConfigError
from shipline.store import open_store
from shipline.train.accelerators import pick_accelerator
from shipline.train.precision import Precision
from shipline.train.profilers import Profiler
from shipline.train.strategies import Strategy, pick_strategy

PAGE = "extending"


def entry_points() -> str:
    """What an installer makes of the lines in the page's pyproject.toml."""
    found = configparser.ConfigParser()
    for text in blocks(PAGE, "toml"):
        [(group, names)] = tomllib.loads(text)["project"]["entry-points"].items()
        found[group] = {name: target.replace("my_package:", "ext_plugins:") for name, target in names.items()}
    text = io.StringIO()
    found.write(text)
    return text.getvalue()


@pytest.fixture
def package(install: Install) -> Any:
    """The page's code, installed."""
    install(entry_points(), classes(PAGE))
    return importlib.import_module("ext_plugins")


def test_each_example_is_short(package: Any) -> None:
    assert len(blocks(PAGE, "python")) == 7
    for text in blocks(PAGE, "python"):
        assert len(text[text.index("class ") :].splitlines()) <= 35


def test_the_callback(package: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fit(epochs: int, ckpt_path: str | None = None) -> Any:
        callback = package.WorstBatches()
        run = new_trainer(tmp_path, max_epochs=epochs, callbacks=[callback]).fit(
            Mlp(), train_loader(128), ckpt_path=ckpt_path
        )
        return callback.worst, run.metrics

    worst, _ = fit(1)
    assert set(worst) == {0}
    resumed, metrics = fit(2, "last")
    assert resumed[0] == worst[0]
    assert metrics["worst_loss"] == resumed[1][1]
    assert f"worst batch of epoch 1: {resumed[1][0]}, with a loss of" in capsys.readouterr().out


def test_the_environment(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"JSM_NAMESPACE_{name}", value)
    monkeypatch.setenv("LSB_JOBID", "41")
    monkeypatch.setenv("LSB_MCPU_HOSTS", "batch1 1 node1 42 node2 42")
    trainer = bare_trainer()
    assert type(trainer.environment) is package.Lsf
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank) == (4, 3, 1)
    assert (package.Lsf().main_address, package.Lsf().main_port) == ("node1", 10_041)


def test_the_logger(package: Any, url: str) -> None:
    def fit(epochs: int, ckpt_path: str | None = None) -> list[Any]:
        logger = ["json_lines", "csv"]
        run = new_trainer(url, max_epochs=epochs, logger=logger, log_every_n_steps=1).fit(
            Mlp(), train_loader(128), ckpt_path=ckpt_path
        )
        return [json.loads(line) for line in open_store(str(run.url)).read("metrics.jsonl").splitlines()]

    assert [row["step"] for row in fit(1)] == [0, 1, 2, 3]
    resumed = fit(2, "last")
    assert [row["step"] for row in resumed] == list(range(8))
    assert all("train_loss" in row for row in resumed)


class TestStrategyOfThePage(StrategyConformance):
    """One worker; test_ddp.py runs it with two."""

    @pytest.fixture
    def strategy(self, package: Any) -> Strategy:
        assert type(pick_strategy("compressed_ddp", 2)) is package.CompressedDdp
        return pick_strategy("compressed_ddp", 1)


class TestPrecisionOfThePage(PrecisionConformance):
    """What the page's own test class says."""

    weights = computes = torch.bfloat16
    tolerance = 0.2

    @pytest.fixture
    def precision(self, package: Any) -> Precision:
        return package.Bf16ExceptNorms("bf16-except-norms", torch.device("cpu"))  # type: ignore[no-any-return]

    def test_norms_compute_in_32_bits(self, package: Any) -> None:
        class Normed(Mlp):
            seen: list[torch.dtype] = []

            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.LayerNorm(64)
                self.norm.register_forward_pre_hook(lambda _l, inputs: self.seen.append(inputs[0].dtype))

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return super().forward(self.norm(image))

            def on_train_start(self) -> None:
                assert self.norm.weight.dtype == torch.float32

        module = Normed()
        bare_trainer(max_epochs=1, precision="bf16-except-norms").fit(module, train_loader(64), val_loader(32))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert module(torch.rand(2, 64).bfloat16()).dtype == torch.bfloat16


def test_the_pages_test_class(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_package", package)
    [text] = blocks(PAGE, "python test")
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(text, namespace)  # noqa: S102 -- our own page
    found = namespace["TestBf16ExceptNorms"]
    assert issubclass(found, PrecisionConformance)
    own = TestPrecisionOfThePage
    assert (found.weights, found.computes, found.tolerance) == (own.weights, own.computes, own.tolerance)


class TestProfilerOfThePage(ProfilerConformance):
    name = "percentiles"

    @pytest.fixture
    def profiler(self, package: Any) -> Profiler:
        return package.Percentiles()  # type: ignore[no-any-return]


def test_the_accelerator(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its driver is missing, and where it is: a stand-in, for there is no such card here."""
    with pytest.raises(ConfigError, match="accelerator='hpu', but this machine has"):
        pick_accelerator("hpu")
    used: list[Any] = []
    driver = types.ModuleType("habana_frameworks.torch.hpu")
    vars(driver).update(
        is_available=lambda: True, device_count=lambda: 8, set_device=used.append, memory_stats=lambda _device: {"a": 1}
    )
    for name in ("habana_frameworks", "habana_frameworks.torch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, driver.__name__, driver)
    monkeypatch.setattr(sys.modules["habana_frameworks.torch"], "hpu", driver, raising=False)
    accelerator = pick_accelerator("auto")
    assert type(accelerator) is package.HpuAccelerator
    assert (accelerator.device_count(), accelerator.ray_resource) == (8, "HPU")
    device = accelerator.device(3)
    assert str(device) == "hpu:3"
    accelerator.setup_device(device)
    assert used == [device]
    assert accelerator.get_device_stats(device) == {"a": 1}
