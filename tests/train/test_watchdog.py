"""A step that hangs is ended at its deadline, and the message says who is missing and where the others wait."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from helpers import free_port, wait_until
from training import Scripted, bare_trainer, numbers

from shipline.errors import ConfigError
from shipline.runs import open_run
from shipline.train.distributed import watchdog
from shipline.train.distributed.verdict import Heard, judge
from shipline.train.distributed.watchdog import EXIT_CODE, Watchdog
from shipline.train.distributed.whereabouts import Process, Whereabouts

SCRIPT = Path(__file__).parent / "scripts" / "hanging.py"


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Any, Any]]]:
    """How both workers ended each time, and what they said; where their runs lie."""
    directory, tasks = tmp_path_factory.mktemp("hung"), []
    ports = [str(free_port()) for _ in range(4)]
    for rank in range(2):
        variables = {
            "SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}",
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "SLURM_JOB_NAME": "hangs",
        }  # fmt: skip
        command = [sys.executable, str(SCRIPT), str(rank), str(directory), *ports]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        tasks.append(subprocess.Popen(command, env={**os.environ, **variables}, **pipes))
    try:
        ended = [json.loads(task.communicate(timeout=200)[0].splitlines()[-1]) for task in tasks]
    finally:
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(task.pid, signal.SIGKILL)  # what it forked, too
            task.wait()
    return directory, list(zip(*ended, strict=True))


@pytest.mark.parametrize(
    ("time", "said"),
    [
        (0, "Worker 0 is in training batch 2, at loops/optimization.py:"),
        (1, "Worker 0 is in end of validation, at distributed/collectives.py:"),
    ],
    ids=["stopped", "holds the GIL"],
)
def test_a_worker_that_does_not_run_is_named_and_ended(hung: Any, time: int, said: str) -> None:
    """T8. It cannot end itself; the run's own record says what has happened."""
    directory, times = hung
    (code, text), (other, _) = times[time]
    assert (code, other) == (EXIT_CODE, -signal.SIGKILL), text
    [message] = [line for line in text.splitlines() if line.startswith("HungError: ")]
    assert "A step has taken longer than step_timeout=3 s. Missing: worker 1 of 2 (process " in message
    assert said in message
    assert message.endswith(("and waits in the exchange of gradients.", "and waits in all_gather_object."))
    [run] = (directory / ["stopped-train", "gil-validate"][time]).glob("version_*")
    record = open_run(str(run)).record
    assert (record.state, record.error) == ("failed", message)


def test_a_slow_worker_is_named_and_ends_itself(hung: Any) -> None:
    """T8. While a checkpoint is made: the others wait for what it is to give."""
    (code, text), (other, own) = hung[1][2]
    assert (code, other) == (EXIT_CODE, EXIT_CODE), text
    for said in (text, own):
        assert "Late: worker 1 of 2 is still in " in said
        assert "scripts/hanging.py:" in said
        assert "Worker 0 waits in all_gather_object: it is in checkpoint of step 4, at " in said


def test_a_worker_that_is_gone_ends_the_others_at_once(hung: Any) -> None:
    """T9. Without waiting for the deadline: its connections have ended."""
    (code, text), (other, _) = hung[1][3]
    assert (code, other) == (1, -signal.SIGKILL)
    assert "TrainingError: Worker 0 of 2 has lost another one, whose own words, or those of what started it" in text


def at(step: str, collective: str | None) -> Whereabouts:
    return Whereabouts(3, step, "mine/train.py:7 in training_step", collective)


def _processes(count: int) -> dict[int, Process]:
    return {rank: Process(f"node{rank}", "m", 100 + rank, 0.0) for rank in range(count)}


HERE = "training batch 4, at mine/train.py:7 in training_step"


@pytest.mark.parametrize(
    ("own", "others", "deaf", "said", "silent"),
    [
        (
            "all_reduce", {1: Heard(9.0, at("training batch 3", None)), 2: Heard(0.1, at("x", "all_reduce"))}, False,
            "Missing: worker 1 of 3 (process 101 on node1) has not been heard from for at least 9.0 s; it was last "
            "seen in training batch 3, at mine/train.py:7 in training_step. Worker 0 is in " + HERE + ", and waits in "
            "all_reduce.", (1,),
        ),
        (
            "all_reduce", {1: Heard(9.0, None)}, False,
            "Missing: worker 1 of 2 (process 101 on node1) has not been heard from for at least 9.0 s. Worker 0 ", (1,),
        ),
        (
            "barrier", {1: Heard(0.1, at("training batch 3", None))}, False,
            "Late: worker 1 of 2 is still in training batch 3, at mine/train.py:7 in training_step. Worker 0 waits in "
            "barrier: it is in " + HERE, (),
        ),
        (None, {1: Heard(0.1, at("x", "barrier"))}, False, "Late: worker 0 of 2 is still in " + HERE, ()),
        (
            "barrier", {1: Heard(0.1, at("training batch 3", "all_reduce"))}, False,
            "All 2 workers wait for each other: worker 0 in barrier (" + HERE + "); worker 1 in all_reduce (", (),
        ),
        ("barrier", {1: Heard(9.0, None)}, True, "The store of the workers does not answer", ()),
        (None, {}, False, "Worker 0 is in " + HERE + ".", ()),
        (
            None, {rank: Heard(9.0, None) for rank in range(1, 20)}, False,
            "worker 8 of 20 (process 108 on node8) has not been heard from for at least 9.0 s; and 11 more.",
            tuple(range(1, 20)),
        ),
    ],
)  # fmt: skip
def test_who_is_to_blame(own: Any, others: Any, deaf: bool, said: str, silent: tuple[int, ...]) -> None:
    processes = _processes(len(others) + 1)
    found = judge(60, 0, at("training batch 4", own), others, processes, 2.0, deaf=deaf)
    assert found.message.startswith("A step has taken longer than step_timeout=60 s. ")
    assert said in found.message
    assert found.silent == silent


def test_one_process_is_watched_too() -> None:
    """It says where it hangs; what rests may take any time."""
    said: list[str] = []
    dog = Watchdog(0.2, said.append)
    with dog.running():
        dog.mark("training batch", 7)
        dog.rest()
        assert not threading.Event().wait(0.6)
        assert said == []
        dog.mark("training batch", 8)
        wait_until(lambda: bool(said))
    [message] = said
    assert message.startswith("A step has taken longer than step_timeout=0.2 s. Worker 0 is in training batch 8, at ")
    assert "helpers.py" in message or "test_watchdog.py" in message


class Simulated:
    """A clock that moves only where the watchdog waits, in place of its module `time` and of its event."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.then: dict[float, Callable[[], None]] = {}

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        for at in [at for at in self.then if at <= self.now]:
            self.then.pop(at)()
        return self.now > 2000.0


@pytest.mark.parametrize("deadline", [3.0, 60.0, 300.0])
def test_a_step_is_ended_after_its_deadline_and_before_a_tenth_more(
    monkeypatch: pytest.MonkeyPatch, deadline: float
) -> None:
    """In the time of a simulated clock: a step that has ended by then is left alone, the next one is not."""
    clock = Simulated()
    monkeypatch.setattr(watchdog, "time", clock)
    ended: list[float] = []
    dog = Watchdog(deadline, lambda _: ended.append(clock.now))
    monkeypatch.setattr(dog, "_stopped", clock)
    dog.mark("training batch", 1)
    clock.then = {1000.0 + 0.9 * deadline: lambda: dog.mark("training batch", 2)}
    dog._keep_time()
    assert dog._step is not None
    what, number, began = dog._step
    assert (what, number) == ("training batch", 2)
    [at] = ended
    assert deadline <= at - began <= deadline * (1.1 - watchdog._LAST_WORDS)


def test_a_store_that_hangs_does_not_hold_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Said first, then written down if the store answers soon, then ended."""
    events: list[str] = []
    answers = threading.Event()

    def fail(*_: Any) -> None:
        events.append("writes")
        answers.wait()
        events.append("has written")

    records, run = SimpleNamespace(fail=fail), SimpleNamespace(store=None)
    trainer: Any = SimpleNamespace(is_global_zero=True, run_directory=run, step_timeout=1.0, records=records)
    monkeypatch.setattr(os, "_exit", lambda code: events.append(f"ends with {code}"))
    watchdog.ending(trainer)("A step has taken longer")
    assert events == ["writes", f"ends with {EXIT_CODE}"]
    assert "HungError: A step has taken longer" in capfd.readouterr().err
    answers.set()


def test_where_a_thread_waits(tmp_path: Path) -> None:
    """In the collective that was called, not in what that calls."""
    store = dist.FileStore(f"{tmp_path}/meeting", 2)
    began, failed = threading.Event(), []

    def meet() -> None:
        began.set()
        try:
            dist.init_process_group("gloo", store=store, rank=0, world_size=2, timeout=timedelta(seconds=1))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=meet)
    thread.start()
    began.wait()
    assert thread.ident is not None
    wait_until(lambda: Whereabouts.of_thread(thread.ident or 0, 1, "start").collective == "init_process_group")
    thread.join()
    assert failed


def test_only_the_process_that_was_meant_is_ended() -> None:
    own = Process.own()
    assert str(own) == f"process {os.getpid()} on {own.host}"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        import psutil

        started = psutil.Process(child.pid).create_time()
        assert not own.kill()
        for other in (
            Process(own.host, "elsewhere", child.pid, started),
            Process(own.host, own.machine, child.pid, started - 60),  # one that had the same number
        ):
            assert not other.kill()
        assert child.poll() is None
        assert Process(own.host, own.machine, child.pid, started).kill()
        assert child.wait() == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()
    assert not Process(own.host, own.machine, child.pid, started).kill()


def test_a_run_that_does_not_hang_is_left_alone() -> None:
    before = threading.active_count()
    trainer = bare_trainer(max_epochs=2, step_timeout=timedelta(minutes=1))
    trainer.fit(Scripted(), numbers(4), numbers(2))
    assert trainer.step_timeout == 60
    wait_until(lambda: threading.active_count() == before)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), True, "soon", timedelta(0)])
def test_deadlines_that_are_none(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="step_timeout="):
        bare_trainer(step_timeout=wrong)
