"""On what a run computes: this machine's own, and what other packages bring; and how batches get there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from accelerator_conformance import AcceleratorConformance
from helpers import Install
from torch import Tensor
from training import Mlp, Scripted, bare_trainer, new_trainer, numbers, train_loader

import shipline as sl
from shipline.errors import ConfigError, TrainingError, UnknownNameError
from shipline.train.accelerators import Accelerator, CpuAccelerator, TorchAccelerator, pick_accelerator, pick_device
from shipline.train.accelerators.devices import to_device


class TestCpu(AcceleratorConformance):
    @pytest.fixture
    def accelerator(self) -> Accelerator:
        return CpuAccelerator("cpu")

    def test_its_figures(self) -> None:
        stats = CpuAccelerator("cpu").get_device_stats(torch.device("cpu"))
        assert set(stats) == {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent"}
        assert stats["cpu_vm_percent"] == pytest.approx(psutil.virtual_memory().percent, abs=20)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="this machine has no accelerator")
class TestTorch(AcceleratorConformance):
    @pytest.fixture
    def accelerator(self) -> Accelerator:
        return TorchAccelerator("gpu")

    def test_its_figures(self, accelerator: Accelerator) -> None:
        device = accelerator.device(0)
        before = accelerator.get_device_stats(device)
        tensor = torch.ones(2**20, device=device)
        after = accelerator.get_device_stats(device)
        name = "allocated_bytes" if device.type == "mps" else "allocated_bytes.all.current"
        assert after[name] - before.get(name, 0) >= tensor.numel() * 4


def test_figures_of_mps_are_those_of_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.accelerator` has none of it."""
    for number, name in enumerate(("current_allocated_memory", "driver_allocated_memory", "recommended_max_memory")):
        monkeypatch.setattr(torch.mps, name, lambda number=number: number)
    stats = TorchAccelerator("mps").get_device_stats(torch.device("mps"))
    assert stats == {"allocated_bytes": 0, "driver_allocated_bytes": 1, "recommended_max_bytes": 2}


def test_names_that_nobody_has() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown accelerator 'cud'\. Did you mean 'cuda'\? Known: cpu, cuda, "):
        pick_accelerator("cud")
    with pytest.raises(ConfigError, match=r"Unknown accelerator 'tpu'\..* A TPU is a plug-in's: docs/extending\.md"):
        bare_trainer(accelerator="tpu", max_steps=1).fit(Mlp(), train_loader(32))


class Three(Accelerator):
    """Three devices that nobody computes on."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 3

    def device(self, local_rank: int) -> torch.device:
        return torch.device("meta", local_rank)


@pytest.mark.parametrize(("devices", "number"), [("auto", 0), (1, 0), ([2], 2)])
def test_a_device_may_be_named_by_its_number(devices: Any, number: int) -> None:
    trainer = bare_trainer(max_epochs=0, accelerator=Three("three"), devices=devices)
    trainer.fit(Mlp(), train_loader(32))
    assert trainer.device == torch.device("meta", number)


def test_a_device_that_is_not_there() -> None:
    trainer = bare_trainer(max_epochs=0, accelerator=Three("three"), devices=[3])
    with pytest.raises(ConfigError, match=r"devices=\[3\], and this machine has 3 of 'three': choose from 0 to 2"):
        trainer.fit(Mlp(), train_loader(32))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there(accelerator: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"accelerator='{accelerator}', but this machine has cpu: choose one of"):
        new_trainer(tmp_path / "runs", accelerator=accelerator, max_epochs=1).fit(Scripted(), numbers(1))
    assert not (tmp_path / "runs").exists()
    assert pick_device("auto") == torch.device("cpu")


class Named(NamedTuple):
    """A batch with names."""

    x: Tensor
    y: int


class HasTo:
    """A batch that knows how to move, such as those of tokenizers."""

    device = torch.device("cpu")

    def to(self, device: torch.device, **_options: Any) -> HasTo:
        self.device = device
        return self


def test_batches_of_any_shape_are_moved() -> None:
    x = torch.zeros(2)
    batch: Any = {"a": [x, (x, "text")], "b": Named(x, 3), "c": HasTo(), "d": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert moved["b"].x.is_meta
    assert (type(moved["b"]), moved["b"].y, moved["d"]) == (Named, 3, None)
    assert moved["c"].device.type == "meta"
    assert batch["a"][0] is x


# ---- out of tree: what another package brings ------------------------------------------------------------------------

PACKAGE = '''
import torch
from shipline.train.accelerators import Accelerator

seen = []

class ToyAccelerator(Accelerator):
    """A card that computes on the CPU."""

    def is_available(self):
        return %r

    def device_count(self):
        return 2

    def device(self, local_rank):
        return torch.device("cpu")

    def setup_device(self, device):
        seen.append(("setup", str(device)))

    def get_device_stats(self, device):
        return {"watts": 3.5}

    @property
    def ray_resource(self):
        return "TOY"

    def teardown(self):
        seen.append("teardown")
'''
ENTRY_POINT = "[shipline.accelerator]\ntoy = ext_plugins:ToyAccelerator\n"


def test_a_package_adds_an_accelerator(install: Install) -> None:
    """By its name, or by "auto", which prefers what somebody has installed on purpose."""
    install(ENTRY_POINT, PACKAGE % True)
    for wanted in ("toy", "auto"):
        trainer = bare_trainer(max_epochs=8, accelerator=wanted)
        module = Mlp()
        trainer.fit(module, train_loader(1000))
        assert trainer.accelerator.name == "toy"
        import ext_plugins  # type: ignore[import-not-found]

        assert ext_plugins.seen[-2:] == [("setup", "cpu"), "teardown"]
        assert float(trainer.callback_metrics["train_loss"]) < 1.5
    assert trainer.accelerator.get_device_stats(trainer.device) == {"watts": 3.5}


def test_a_packages_accelerator_that_this_machine_lacks(install: Install) -> None:
    install(ENTRY_POINT, PACKAGE % False)
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ConfigError, match=r"accelerator='toy', but this machine has .*cpu: choose one of them"):
        pick_accelerator("toy")


def test_a_driver_needs_no_accelerator_of_its_own(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The head of a cluster drives workers on GPUs, and has none."""
    install(ENTRY_POINT, PACKAGE % False)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")

    def launched(*args: Any, **options: Any) -> None:
        raise TrainingError("launched")

    monkeypatch.setattr(sl.Trainer, "_run", launched)
    with pytest.raises(TrainingError, match="launched"):
        new_trainer(tmp_path, workers=2, accelerator="toy", max_steps=1).fit(Mlp(), train_loader(32))
    with pytest.raises(ConfigError, match="but this machine has"):
        new_trainer(tmp_path, workers=1, accelerator="toy", max_steps=1).fit(Mlp(), train_loader(32))
    with pytest.raises(UnknownNameError, match="toi"):
        new_trainer(tmp_path, workers=2, accelerator="toi", max_steps=1).fit(Mlp(), train_loader(32))


def test_a_broken_package_stops_only_those_who_ask_for_it(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(ENTRY_POINT, "import no_such_driver\n")
    bare_trainer(max_steps=1, accelerator="auto").fit(Mlp(), train_loader(32))
    assert "The accelerator 'toy' is passed over: No module named 'no_such_driver'" in caplog.text
    with pytest.raises(ModuleNotFoundError, match="no_such_driver"):
        pick_accelerator("toy")
