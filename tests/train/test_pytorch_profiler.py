"""torch.profiler as a profiler of the Trainer: which steps its traces hold, and where they are written."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from profiler_conformance import ProfilerConformance
from torch.profiler import ProfilerAction
from training import Mlp, bare_trainer, new_trainer, train_loader, val_loader

from shipline.errors import ConfigError, StoreError
from shipline.store import open_store
from shipline.train.profilers import Profiler, PyTorchProfiler


def record_all(_step: int) -> ProfilerAction:
    return ProfilerAction.RECORD


class TestPyTorch(ProfilerConformance):
    name = "pytorch"

    @pytest.fixture
    def profiler(self) -> Profiler:
        return PyTorchProfiler(schedule=record_all, row_limit=-1)


def trace(store: Any, name: str) -> list[dict[str, Any]]:
    """The events of a Chrome trace."""
    return json.loads(gzip.decompress(store.read(name)))["traceEvents"]  # type: ignore[no-any-return]


def test_the_trace_holds_the_steps_it_should(url: str) -> None:
    """On any store. It is what https://ui.perfetto.dev opens: Chrome's format, compressed."""
    trainer = new_trainer(url, max_epochs=2, profiler="pytorch")
    run = trainer.fit(Mlp(), train_loader(192), val_loader(64))
    store = open_store(str(run.url))
    [name] = [name for name in store.list() if name.endswith(".json.gz")]
    assert name == "fit-profile-0-1.pt.trace.json.gz"
    events = trace(store, name)
    calls = Counter(event["name"] for event in events if event.get("cat") in ("cpu_op", "user_annotation"))
    for action in ("training_step", "backward", "optimizer_step"):
        assert calls[f"[Module]Mlp.{action}"] == 3
    assert calls["Linear: layers.0"] == calls["Linear: layers.3"] == 3
    assert calls["aten::cross_entropy_loss"] == calls["train_dataloader_next"] == 3
    assert not any("validation" in name for name in calls)  # which comes after the epoch's six batches
    [step] = [event for event in events if event["name"] == "[Module]Mlp.training_step"][:1]
    inside = [
        event for event in events
        if event.get("ph") == "X" and step["ts"] <= event["ts"] <= step["ts"] + step["dur"]
    ]  # fmt: skip
    assert {"Linear: layers.0", "aten::relu", "aten::cross_entropy_loss"} <= {event["name"] for event in inside}


def test_the_pytorch_profilers_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profiler = PyTorchProfiler(
        str(tmp_path), "p", wait=0, warmup=1, active=1, repeat=2, record_module_names=False, record_shapes=True,
        group_by_input_shapes=True, profile_memory=True, sort_by_key="self_cpu_memory_usage", row_limit=50,
    )  # fmt: skip
    module = Mlp()
    trainer = bare_trainer(max_epochs=1, profiler=profiler)
    trainer.fit(module, train_loader(192))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"fit-p-0.txt", "fit-p-0-1.pt.trace.json.gz", "fit-p-0-2.pt.trace.json.gz"}
    assert not any(
        "Linear:" in event["name"] for event in trace(open_store(str(tmp_path)), "fit-p-0-1.pt.trace.json.gz")
    )
    report = (tmp_path / "fit-p-0.txt").read_text()
    assert "[32, 64]" in report
    assert "CPU Mem" in report
    assert not module.layers[0]._forward_hooks

    trainer.validate(module, val_loader(32))
    assert "no trace: of 1 batches, wait=0 and warmup=1 were let pass. Set both to 0." in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_trace_that_cannot_be_written_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    trainer = bare_trainer(max_epochs=1, profiler=PyTorchProfiler(str(tmp_path / "file"), "p"))
    with pytest.raises(StoreError, match="file"):
        trainer.fit(Mlp(), train_loader(256))
    bare_trainer(max_epochs=1, profiler=PyTorchProfiler(str(tmp_path), "p")).fit(Mlp(), train_loader(256))
    assert (tmp_path / "fit-p-0-1.pt.trace.json.gz").exists()


def test_a_schedule_and_what_is_done_with_a_trace_can_be_the_users_own() -> None:
    taken: list[int] = []
    profiler = PyTorchProfiler(
        filename="own",
        schedule=torch.profiler.schedule(wait=0, warmup=1, active=2, repeat=1),
        on_trace_ready=lambda profile: taken.append(
            sum(event.count for event in profile.key_averages() if event.key == "[Module]Mlp.training_step")
        ),
    )
    bare_trainer(max_epochs=1, profiler=profiler).fit(Mlp(), train_loader(128))
    assert taken == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort_by_key": "cpu_tim"}, r"sort_by_key='cpu_tim'\. Did you mean 'cpu_time'\?"),
        ({"with_stacks": True}, r"PyTorchProfiler has no option 'with_stacks'\. Did you mean 'with_stack'\?"),
    ],
)
def test_options_of_the_pytorch_profiler_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PyTorchProfiler(**options)
