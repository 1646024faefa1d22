"""The store of checkpoints is full, away, forbidden or slow: what training does, and what is left."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_store import FaultyFileSystem, Stuck, away, forbidden, full
from helpers import wait_until
from training import Mlp, metric_rows, new_trainer, on_hook, same_weights, train_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import NotFoundError, TrainingError
from shipline.store import open_store
from shipline.train.checkpoints import writer

pytestmark = pytest.mark.timeout(120)  # who waits for a store that never comes back

ROOT = "faulty://runs"
KEPT = f"{ROOT}/mlp/version_0/checkpoints"


def fine(_operation: str, _path: str) -> None:
    """All goes well."""


def becomes(fault: Callable[[str, str], None]) -> None:
    FaultyFileSystem.fault = staticmethod(fault)


class Clock:
    """A minute passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 60
        return self.now


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty store; who tries again does so at once."""
    monkeypatch.setattr(writer.random, "uniform", lambda _least, _most: 0.0)
    FaultyFileSystem.store.clear()
    becomes(fine)
    yield
    becomes(fine)


def fit(*callbacks: Any, root: str = ROOT, ckpt_path: str | None = None, **options: Any) -> Mlp:
    """Eight steps in two epochs, with a checkpoint of every second step."""
    torch.manual_seed(0)
    module = Mlp(dropout=0.1)
    keep = sl.ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    trainer = new_trainer(root, max_epochs=2, log_every_n_steps=1, callbacks=[*callbacks, keep], **options)
    trainer.fit(module, train_loader(128), ckpt_path=ckpt_path)
    return module


def at_step(step: int, act: Callable[[], Any]) -> Any:
    """A callback that acts after a step."""

    def look(trainer: Any, *_arguments: Any) -> None:
        if trainer.global_step == step:
            act()

    return on_hook("on_train_batch_end", look)


def becomes_at_step(step: int, fault: Callable[[str, str], None]) -> Any:
    """The fault begins after a step, when the checkpoints before it are written."""

    def look(trainer: Any, *_arguments: Any) -> None:
        if trainer.global_step == step:
            trainer.saver.writer.wait()
            becomes(fault)

    return on_hook("on_train_batch_end", look)


def committed() -> list[int]:
    """The steps of the checkpoints that are there, each read whole."""
    found = []
    for name in open_store(KEPT).list():
        try:
            checkpoint = open_checkpoint(f"{KEPT}/{name}")
        except NotFoundError:
            continue
        for file in checkpoint.manifest.files:
            checkpoint.read(file)
        found.append(checkpoint.manifest.global_step)
    return sorted(found)


def after_the_weights(fault: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """The fault begins in the middle of the checkpoint of step 4."""
    begun = threading.Event()

    def act(operation: str, path: str) -> None:
        if begun.is_set():
            fault(operation, path)
        elif operation == "write" and "step=4/" in path and path.endswith("weights.safetensors"):
            begun.set()

    return act


# ---- it stays so -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        (full, "No space left on device", 5),
        (away, "Connection reset by peer", 5),
        (forbidden, r"access denied \(The provided token has expired\). Check the credentials", 1),
    ],
)
def test_the_last_good_checkpoint_is_named_and_goes_on(
    fault: Any,
    reason: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Tried again for five minutes, or, where nothing could change, not at all."""
    monkeypatch.setattr(writer, "time", Clock())
    written: list[str] = []
    broken = after_the_weights(fault)

    def watch(operation: str, path: str) -> None:
        if operation == "write" and "step=4" in path:
            written.append(path)
        broken(operation, path)

    becomes(watch)
    good = f"{KEPT}/epoch=0-step=2"
    message = (
        rf"epoch=0-step=4 could not be written in \d+ s: .*{reason}.* The last good one of this run: {good}\. Make room"
    )
    with pytest.raises(TrainingError, match=f"{message} or bring the store back, then resume with ckpt_path='last'"):
        fit()
    assert caplog.text.count("Training goes on; trying again") == tries - 1
    assert len([path for path in written if path.endswith("weights.safetensors")]) == tries
    becomes(fine)
    assert committed() == [2]
    if fault is not away:  # nobody could tidy up there
        assert open_store(KEPT).list() == ["epoch=0-step=2"]
    whole = fit(root=str(tmp_path))
    assert same_weights(fit(ckpt_path="last"), whole)
    assert committed() == [2, 4, 6, 8]
    tried = {path.partition("/data-")[2][:12] for path in FaultyFileSystem.store if "step=4/data-" in path}
    assert len(tried) == 1  # what the failed tries left is gone


# ---- it comes back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [full, away])
def test_training_goes_on_while_a_checkpoint_is_tried_again(
    fault: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The store is away before the checkpoint begins, until a later batch; nobody else notices."""
    refused = threading.Event()
    seen: list[int] = []

    def refuse(operation: str, path: str) -> None:
        if operation == "write":
            refused.set()
        fault(operation, path)

    def back() -> None:
        assert refused.wait(60)
        seen.extend(committed_now())
        becomes(fine)
        wait_until(lambda: 4 in committed_now())

    whole = fit(root=str(tmp_path))
    module = fit(becomes_at_step(3, refuse), at_step(5, back))
    assert seen == [2]  # of step 4 nothing was there in step 5
    assert committed() == [2, 4, 6, 8]
    assert same_weights(module, whole)
    assert "Training goes on; trying again in 0.0 s." in caplog.text


@pytest.mark.parametrize("step", [7, 8])
def test_training_does_not_wait_for_a_store_that_is_away_over_several_checkpoints(
    step: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those due meanwhile are left out; but the last one is saved, however long the store takes."""
    monkeypatch.setattr(writer.random, "uniform", lambda _least, _most: 0.001)
    whole = fit(root=str(tmp_path))

    def comes_back() -> None:
        becomes(fine)
        wait_until(lambda: 4 in committed_now())

    at_the_end = on_hook(
        "on_train_epoch_end", lambda trainer, _module: becomes(fine) if trainer.global_step == 8 else None
    )
    back = at_step(7, comes_back) if step == 7 else at_the_end
    module = fit(becomes_at_step(3, away), back)
    assert same_weights(module, whole)
    assert "The store has not taken the checkpoint before yet; that of step 6 is left out." in caplog.text
    assert committed() == [2, 4, 8]


def committed_now() -> list[int]:
    """The steps of the checkpoints that are there, whether the store answers or not."""
    paths = [path for path in FaultyFileSystem.store if path.endswith("manifest.json")]
    return sorted(int(path.rpartition("step=")[2].partition("/")[0]) for path in paths)


def test_metrics_are_kept_while_the_store_is_away() -> None:
    """A logger that cannot write now does so later, and the run goes on."""
    logger = sl.train.loggers.CSVLogger(flush_logs_every_n_steps=2)
    torch.manual_seed(0)
    trainer = new_trainer(
        ROOT, max_epochs=1, log_every_n_steps=1, enable_checkpointing=False, logger=logger,
        callbacks=[becomes_at_step(1, away), becomes_at_step(6, fine)],
    )  # fmt: skip
    run = trainer.fit(Mlp(), train_loader(256))
    assert [row["step"] for row in metric_rows(str(run.url))] == [str(step) for step in range(8)]


def test_the_error_that_ended_the_run_is_the_one_that_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """Metrics that cannot be written any more are named in the log."""

    def fail(trainer: Any, *_arguments: Any) -> None:
        if trainer.global_step == 3:
            trainer.saver.writer.wait()
            becomes(away)
            raise ValueError("the user's own")

    with pytest.raises(ValueError, match="the user's own"):
        fit(on_hook("on_train_batch_start", fail))
    assert "metrics.csv: Connection reset by peer" in caplog.text
    assert committed_now() == [2]


# ---- it is slow ------------------------------------------------------------------------------------------------------


def test_training_does_not_wait_for_the_store() -> None:
    """While the checkpoint of step 2 is stuck, training goes on; what is written in the end is that of step 2."""
    stuck = Stuck("step=2")
    then: dict[str, Any] = {}
    becomes(stuck)

    def note(trainer: Any, module: Any, *_arguments: Any) -> None:
        if trainer.global_step == 2:
            then.update(copy.deepcopy(module.state_dict()))
        if trainer.global_step == 3:
            assert stuck.waiting.wait(60)
            assert committed_now() == []
            stuck.go_on.set()

    module = fit(on_hook("on_train_batch_end", note))
    saved = Mlp.load_from_checkpoint(f"{KEPT}/epoch=0-step=2")
    assert all(torch.equal(saved.state_dict()[name], value) for name, value in then.items())
    assert not same_weights(saved, module)
    assert committed() == [2, 4, 6, 8]


# ---- processes of their own ------------------------------------------------------------------------------------------

WORKER = Path(__file__).with_name("checkpoint_faults.py")


def test_a_checkpoint_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    """200 MB of state; several checkpoints of it; what the process holds grows by one copy, and not by two."""
    command = [sys.executable, str(WORKER), "memory", str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert found["checkpoints"] == 3
    assert 190 <= found["grown_mb"] <= 300, found


def can_mount() -> bool:
    """Whether this user may mount a small disk in a name space of their own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real one, of 2 MB."""
    if not can_mount():
        pytest.skip("no right to mount a small disk (unshare -rm)")
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=2m none "$1/small" && exec "$2" "$3" full "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(WORKER)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert "No space left on device. The last good one of this run: " in found["error"]
    assert found["there"] == found["good"] > 0
    assert found["leftovers"] == []
    assert found["goes_on"] is True
