"""What the tests of export share: two short trainings, and an artifact of each precision, made once."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from small_modules import Cells, CellTable, Digits, Tiny, fit
from torch import nn

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.compose import evaluator
from shipline.errors import GateError, ShiplineError
from shipline.export import Source, exporter, workbench
from shipline.export.convert import onnx
from shipline.export.plan import SEARCHED
from shipline.export.proof import Proof, prove
from shipline.export.trained import Trained, look_at
from shipline.train import Run
from shipline.train.seed import isolate_rng

# How fast a model this small is on a busy machine decides no test, nor how int8 rounds.
LAX: dict[str, Any] = {"min_speedup": 0.0, "max_metric_drop": 0.05}


@pytest.fixture(scope="module")
def no_bars() -> Iterator[None]:
    """Let transformers show none while it loads."""
    from transformers import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def quick_search(monkeypatch: pytest.MonkeyPatch, converted_once: Callable[..., bytes]) -> None:
    """Search what is made and tried in a moment; a compiler takes its time, and so does a process for each file."""
    monkeypatch.delitem(SEARCHED, "aotinductor")
    monkeypatch.setattr(workbench, "survive", lambda *_: None)
    monkeypatch.setattr(onnx, "to_onnx", converted_once)


@pytest.fixture(scope="session")
def converted_once(looked_at: Trained) -> Callable[..., bytes]:
    """What converts, and makes the graph of the trained digits once: for tests of what comes after."""
    convert, own = onnx.to_onnx, safetensors.torch.save(looked_at.module.state_dict())
    # Here, and not in the process of its own that an export converts in, which would keep it to itself.
    known = convert(looked_at.module, looked_at.rows, looked_at.signature)

    def converted(module: nn.Module, *rest: Any) -> bytes:
        if type(module) is not Tiny or safetensors.torch.save(module.state_dict()) != own:
            return convert(module, *rest)
        return known

    return converted


@pytest.fixture(scope="session")
def looked_at(source: Source) -> Trained:
    """What is known of the trained digits."""
    return look_at(source, sl.Recipe(precision="auto"))


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """torch parses the source of its 500 operators of ONNX anew for every graph: half of the time that one takes."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        ONNXRegistry.from_torchlib()  # here, for all processes that exports convert in
        yield


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Generators and the seed that runs record, for the block alone."""
    with isolate_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("shipline.train.seed._seed", None)
        sl.seed_everything(0)
        yield


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a test's searches remember what they have measured: nothing yet."""
    monkeypatch.setenv("SHIPLINE_CACHE_DIR", str(tmp_path / "remembered"))
    return tmp_path / "remembered"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network trained on scanned digits, to an accuracy of about 0.9."""
    with seeded():
        return fit(Tiny(), Digits(), tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def trained_cells(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network trained on a table."""
    with seeded():
        return fit(Cells(), CellTable(), tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="session")
def artifacts(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Precision -> the trained network as an artifact."""
    models = tmp_path_factory.mktemp("models")
    return {
        precision: sl.export(trained, {"precision": precision, **LAX}, to=f"{models}/{precision}")
        for precision in ("float32", "int8")
    }


@pytest.fixture(scope="session")
def source(trained: Run) -> Source:
    """The trained network, as export takes it."""
    return Source.of_checkpoint(trained.checkpoint, Tiny, evaluator(trained.data))


@pytest.fixture(scope="session")
def proof(source: Source) -> Proof:
    """What was proved of it."""
    return prove(source, sl.Recipe())


@pytest.fixture
def publish(source: Source, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Artifact]:
    """Export to a URL, as a version, what was proved already."""
    monkeypatch.setattr(exporter, "prove", lambda *_: proof)
    return lambda url, version=None: exporter.export(source, sl.Recipe(), open_model(url), version)


@pytest.fixture
def refused(trained: Run, tmp_path: Path) -> Callable[..., str]:
    """Export the trained weights as a module of another class or by another recipe; what is said of the failure."""

    def refused(
        module: type[Tiny] = Tiny, recipe: Any = "float32", error: type[ShiplineError] = GateError, **given: Any
    ) -> str:
        with pytest.raises(error) as caught:
            sl.export(given.pop("run", trained), recipe, to=str(tmp_path / "models" / "m"), module=module, **given)
        assert not (tmp_path / "models").exists(), "something was left in the store"
        return str(caught.value)

    return refused


@pytest.fixture
def command_line(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments that export the trained network."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # a configuration's directory is added to it
    config = tmp_path / "train.yaml"
    config.write_text("module: {class_path: small_modules.Tiny}\ndata: {class_path: small_modules.Digits}\n")
    return ["export", trained.checkpoint.url, "--run_config", str(config), "--to", str(tmp_path / "models" / "m")]
