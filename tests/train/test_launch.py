"""What decides about several workers, without a cluster: options, leases, faults and their budgets, shares of rows."""

from __future__ import annotations

import os
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, strategies as st

from shipline.errors import ConfigError
from shipline.store import open_store
from shipline.train import RayCluster, Trainer
from shipline.train.data.shares import Moved, SharedSampler, shared
from shipline.train.launch.lease import Lease
from shipline.train.signals import TakenAway

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelled option": ({"max_failure": 1}, "Did you mean 'max_failures'"),
    "a placement": ({"placement": "SPRED"}, r"placement='SPRED'. Did you mean 'SPREAD'"),
    "a budget": ({"max_losses": -2}, "max_losses=-2; set a whole number from 0 on, or -1"),
    "a budget that is no number": ({"max_failures": True}, "max_failures=True"),
    "a time": ({"grace_s": 0}, "grace_s=0; set a number of seconds above 0"),
    "a resource": ({"resources_per_worker": {"CPU": -1}}, r"resources_per_worker\['CPU'\]=-1"),
    "a runtime environment": ({"runtime_env": {"workingdir": "."}}, "Did you mean 'working_dir'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_mean_nothing_are_refused(case: str) -> None:
    options, text = WRONG[case]
    with pytest.raises(ConfigError, match=text):
        RayCluster(**options)


@pytest.mark.parametrize("workers", [(2, 1), (0, 2), (1, 2, 3), (1.5, 2), "2-4"])
def test_a_range_of_workers_is_two_numbers(workers: Any) -> None:
    with pytest.raises(ConfigError, match="the least and the most"):
        Trainer(workers=workers)


def test_a_range_of_workers() -> None:
    trainer = Trainer(workers=(2, 8))
    assert (trainer.worker_range, trainer.workers) == ((2, 8), 8)


# ---- shares of rows --------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 4), st.integers(1, 8))
def test_a_step_keeps_its_rows_as_nearly_as_workers_can_share_them(most: int, size: int, every: int, now: int) -> None:
    assume(now <= most)
    rows = most * size * every
    share = shared(rows, now, size)
    assert share.workers == now
    assert 1 <= share.batch_size <= size
    assert abs(share.rows - rows) <= now * share.accumulate / 2
    if now == most:
        assert (share.batch_size, share.accumulate) == (size, every)


@pytest.mark.parametrize(
    ("rows", "workers", "most", "batch_size", "accumulate"),
    [(30, 2, 10, 5, 3), (64, 1, 32, 32, 2), (128, 3, 32, 21, 2), (48, 3, 12, 8, 2), (34, 2, 16, 8, 2)],
)
def test_shares(rows: int, workers: int, most: int, batch_size: int, accumulate: int) -> None:
    """Even ones where there are; else the nearest, rather than batches of one row."""
    share = shared(rows, workers, most)
    assert (share.batch_size, share.accumulate) == (batch_size, accumulate)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("before", "after", "done"), [(3, 2, 8), (2, 3, 7), (4, 1, 5), (1, 4, 10)])
def test_others_go_on_where_an_epoch_stands(shuffle: bool, before: int, after: int, done: int) -> None:
    """Of 61 rows each comes once, but for those that make all shares even."""
    rows = range(61)

    def samplers(count: int) -> list[SharedSampler]:
        made = [SharedSampler(rows, count, rank, shuffle=shuffle, seed=3) for rank in range(count)]  # type: ignore[arg-type]
        for sampler in made:
            sampler.set_epoch(2)
        return made

    first = [row for sampler in samplers(before) for row in list(sampler)[:done]]
    second = []
    for sampler in samplers(after):
        sampler.moved = Moved(2, len(first), given=4)
        own = list(sampler)
        assert len(own) == len(sampler)
        second.append(own[4:])
    assert len({len(own) for own in second}) == 1
    seen = Counter([*first, *(row for own in second for row in own)])
    assert set(seen) == set(rows)
    assert sum(seen.values()) - len(rows) < after
    sampler.set_epoch(3)  # the next epoch is whole again
    assert len(list(sampler)) == len(sampler) == -(-61 // after)


# ---- leases ----------------------------------------------------------------------------------------------------------


def test_one_of_many_drivers_wins(tmp_path: Path) -> None:
    run, wins, refusals = open_store(str(tmp_path)), [], []
    all_there, all_tried = threading.Barrier(8), threading.Barrier(8)

    def drive() -> None:
        all_there.wait()
        try:
            with Lease(run) as lease:
                wins.append(lease)
                all_tried.wait()
        except ConfigError as error:
            refusals.append(str(error))
            all_tried.wait()

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(wins), len(refusals)) == (1, 7)
    assert all("is being trained by process" in text for text in refusals)
    with Lease(run):  # which was given back
        pass


def test_a_dead_drivers_lease_is_free(tmp_path: Path) -> None:
    """Here, its process is gone; elsewhere, its file does not change."""
    run = open_store(str(tmp_path))
    gone = Lease(run)
    gone._me["pid"], gone._me["started"] = 2**22 + 1, 0.0
    gone.__enter__()
    with Lease(run) as second:
        assert second._number == 1
    elsewhere = Lease(run, beat_s=60)
    elsewhere._me["host"] = "another"
    elsewhere.__enter__()
    with Lease(run, silent_s=0.2) as fourth:
        assert fourth._number == 3
    for lease in (gone, elsewhere):
        lease.__exit__()


def test_a_living_driver_elsewhere_keeps_its_lease_and_hears_if_it_has_lost_it(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    elsewhere = Lease(run, beat_s=0.02)
    elsewhere._me["host"] = "another"
    with elsewhere, pytest.raises(ConfigError, match="being trained by process"):
        Lease(run, silent_s=5.0).__enter__()
    slow = Lease(run, beat_s=0.02)
    with slow:
        run.create("driver/99", b'{"pid": 7, "host": "far"}')
        slow._beating.join(10)
        assert slow.is_lost
        assert re.search(r"Another driver, process 7 on far, has taken .* over, since", str(slow.lost()))


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_imported() -> None:
    """Ray sets a variable when it is imported, and keeps it."""
    import ray  # noqa: F401


def where(rank: int) -> Any:
    from shipline.train.launch.faults import Where

    return Where(rank, 2, "10.0.0.7", 40 + rank)


def raised(error: BaseException, rank: int = 0) -> Any:
    """What crosses from a worker when it raises."""
    from shipline.train.launch.faults import WorkerError

    return pickle.loads(pickle.dumps(WorkerError.of(error, where(rank), 7)))  # noqa: S301 -- as Ray does


def lost(rank: int = 1) -> Any:
    from shipline.train.launch.faults import WorkerLostError

    return pickle.loads(pickle.dumps(WorkerLostError(where(rank), "its node is gone", 7)))  # noqa: S301


ECHO = RuntimeError("[/pytorch/third_party/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:24999")
FIRST: dict[str, tuple[Callable[[], dict[int, Any]], str, str]] = {
    "an error of the code": (
        lambda: {1: raised(ValueError("no label"), 1)},
        "code", "Worker 1 of 2 (node 10.0.0.7, process 41) failed at step 7: ValueError: no label",
    ),
    "an error, and its echo": (
        lambda: {0: raised(ECHO), 1: raised(ValueError("no label"), 1)},
        "code", "Worker 1 of 2 (node 10.0.0.7, process 41) failed at step 7: ValueError: no label",
    ),
    "a lost worker, and its echo": (
        lambda: {0: raised(ECHO), 1: lost()},
        "loss", "Worker 1 of 2 (node 10.0.0.7, process 41) was lost at step 7: its node is gone.",
    ),
    "an echo alone": (
        lambda: {0: raised(ECHO)}, "loss", "(the first to miss another worker)",
    ),
    "an error of the code that has the words of one": (
        lambda: {0: raised(RuntimeError("the store has no row 7")), 1: raised(ConnectionError("no such host"), 1)},
        "code", "Worker 0 of 2 (node 10.0.0.7, process 40) failed at step 7: RuntimeError: the store has no row 7",
    ),
    "want of memory": (
        lambda: {0: raised(RuntimeError("DefaultCPUAllocator: can't allocate memory"))},
        "code", "failed at step 7: out of memory: RuntimeError: DefaultCPUAllocator: can't allocate memory",
    ),
    "a worker that will be taken away, though another is gone already": (
        lambda: {0: raised(TakenAway(143)), 1: lost()},
        "preemption", "Worker 0 of 2 (node 10.0.0.7, process 40) will be taken away; saved at step 7.",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("ray_imported")
@pytest.mark.parametrize("case", FIRST)
def test_the_first_cause_is_found(case: str) -> None:
    """Of what all workers say at once."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    from shipline.train.launch.faults import fault_of

    failures, cause, text = FIRST[case]
    fault = fault_of(WorkerGroupError("", failures()))
    assert (fault.cause, fault.step) == (cause, 7)
    assert text in fault.text


@pytest.mark.usefixtures("ray_imported")
def test_why_a_worker_is_gone_is_said_in_plain_words() -> None:
    """T10 among it: its machine had no memory left, and Ray has ended it."""
    import ray
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

    from shipline.train.launch.faults import reason_of

    no_memory = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
    assert reason_of(no_memory) == "Ray ended it because its machine ran out of memory"
    assert reason_of(ray.exceptions.NodeDiedError("x")) == "its node is gone"
    assert reason_of(WorkerHealthCheckTimeoutError("x")) == "it does not answer"
    assert reason_of(ray.exceptions.ActorDiedError()).startswith("its process is gone: killed")


@pytest.mark.usefixtures("ray_imported")
def test_each_cause_has_its_budget() -> None:
    """One of the code, two losses, and as many preemptions as there are."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    from shipline.train.launch.controller import Budgets

    budgets = Budgets(RayCluster(max_failures=1, max_losses=2), start_s=10)
    errors = {"c": raised(ValueError("x")), "l": lost(), "p": raised(TakenAway(143))}
    found = [budgets.make_decision(WorkerGroupError("", {0: errors[kind]})).name for kind in "lcplpplc"]
    assert found == ["RETRY"] * 6 + ["RAISE"] * 2


@pytest.mark.usefixtures("ray_imported")
def test_room_is_waited_for_but_not_for_ever() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    from shipline.train.launch.controller import Budgets

    budgets = Budgets(RayCluster(wait_s=30), start_s=10)
    error = ControllerError(WorkerGroupStartupTimeoutError(3))
    assert [budgets.make_decision(error).name for _ in range(3)] == ["RETRY", "RETRY", "RAISE"]


@pytest.mark.usefixtures("ray_imported")
def test_a_driver_gives_up_a_run_that_has_ended_with_a_timeout() -> None:
    """Which is no reason to go on waiting."""
    from shipline.train.launch.driver import _waited

    outcome: Future[Any] = Future()
    outcome.set_exception(TimeoutError("the disk does not answer"))
    with pytest.raises(TimeoutError, match="the disk"):
        _waited(outcome, Trainer(), "fit", "key", None)


@pytest.mark.usefixtures("ray_imported")
def test_the_environment_is_put_back_and_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    from shipline.train.launch.cluster import _environment

    def cleared() -> None:
        raise AssertionError("another thread may read it")

    monkeypatch.setattr(os.environ, "clear", cleared)
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("GONE", "2")
    before = dict(os.environ)
    with _environment({"MINE": "3", "NEW": "4"}):
        assert (os.environ["MINE"], os.environ["NEW"]) == ("1", "4")
        os.environ["MINE"] = os.environ["OTHER"] = "5"
        del os.environ["GONE"]
    assert dict(os.environ) == before


@pytest.mark.usefixtures("ray_imported")
def test_a_kept_cluster_serves_only_what_it_was_started_for() -> None:
    import contextlib

    from shipline.train.launch.cluster import _cpus, _Kept

    variables = {"env_vars": {"A": "1"}}
    kept = _Kept(contextlib.ExitStack(), _cpus(RayCluster(), 2), variables)
    assert kept.serves(RayCluster(runtime_env=dict(variables)), 2)
    assert not kept.serves(RayCluster(runtime_env={"env_vars": {"A": "2"}}), 2)
    assert not kept.serves(RayCluster(runtime_env=variables), kept.cpus + 1)
    copied = {"working_dir": "."}
    assert not _Kept(contextlib.ExitStack(), 2, copied).serves(RayCluster(runtime_env=copied), 2)
