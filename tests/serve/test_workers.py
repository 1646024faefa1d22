"""Several processes behind one address: what one does all do, and one that dies or hangs is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import httpx
import pytest
from bad_requests import x
from commands import Process, serve_fails, serving
from doubles import WAIT_S
from grpc_calls import X, calling, infer_request
from helpers import free_port, listens, wait_until
from serving import GRAPHS, check_error, connect, infer, post, receive, web

from shipline.errors import ConfigError
from shipline.serve import supervisor
from shipline.serve.doors import Doors
from shipline.serve.server import serve
from shipline.serve.settings import ServerSettings
from shipline.serve.supervisor import Supervisor, Worker

INFER = "/v2/models/linear/infer"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("linear", "total"):
        artifacts.publish(f"{tmp_path}/models/{name}", GRAPHS[name])
    return tmp_path / "models"


def workers(process: Process) -> list[int]:
    """The processes that answer."""
    pid = process.popen.pid
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def statuses(url: str, method: str, path: str, count: int = 12) -> set[int]:
    """What comes back over connections of their own, so that each process is likely asked."""
    return {web.request(method, url + path).status_code for _ in range(count)}


def test_two_processes_answer_as_one(repository: Path, tmp_path: Path) -> None:
    port = free_port()
    options = ("--workers", "2", "--admin-without-key", "--grpc-port", str(port))
    with serving(repository, tmp_path / "log", *options) as process:
        url = process.url
        assert len(workers(process)) == 2
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: infer(url, seed=seed), range(40)))
        counts = [web.get(f"{url}/v2/models/linear/stats").json()["model_stats"][0] for _ in range(6)]
        assert all(count == counts[0] for count in counts)  # the sum of both, whoever is asked
        assert counts[0]["inference_stats"]["success"]["count"] == 40
        answered = re.search(r'shipline_requests_total{.*status="200".*} (\S+)', web.get(f"{url}/metrics").text)
        assert answered is not None
        assert float(answered[1]) == 40
        with calling(f"127.0.0.1:{port}") as caller:
            assert caller.infer(infer_request("linear", x=X)).model_name == "linear"
        # What an operator asks of one, all do.
        assert web.post(f"{url}/v2/repository/models/linear/unload").status_code == 200
        assert statuses(url, "GET", "/v2/models/linear/ready") == {404}
        assert web.post(f"{url}/v2/repository/models/linear/load").status_code == 200
        assert statuses(url, "GET", "/v2/models/linear/ready") == {200}
        check_error(web.post(f"{url}/v2/repository/models/nobody/load"), 404)
        process.popen.terminate()
        assert process.popen.wait(30) == 0
    assert "Traceback" not in process.log.read_text()


def test_a_process_that_is_killed_costs_its_own_requests_only_and_is_replaced(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--workers", "2", "--admin-without-key") as process:
        assert web.post(f"{process.url}/v2/repository/models/total/unload").status_code == 200
        artifacts.publish(f"{repository}/linear", GRAPHS["linear"], version="2")  # and nobody has loaded it
        before, over = workers(process), threading.Event()
        wrong: list[object] = []

        def ask() -> None:
            while not over.is_set():
                try:
                    infer(process.url)
                except httpx.TransportError:  # on a connection of the process that is dying
                    continue
                except AssertionError as error:
                    wrong.append(error)

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda: len(workers(process)) == 2 and before[0] not in workers(process))
            over.set()
            for one in asking:
                one.result()
        assert not wrong
        new = next(pid for pid in workers(process) if pid != before[1])
        os.kill(before[1], signal.SIGSTOP)  # now only the new one can answer
        try:
            wait_until(process.ready)
            infer(process.url)
            assert statuses(process.url, "GET", "/v2/models/total/ready") == {404}  # it heard of that, too
            assert statuses(process.url, "GET", "/v2/models/linear/versions/1/ready") == {200}  # as the other
        finally:
            os.kill(before[1], signal.SIGCONT)
        assert new in workers(process)


def test_a_process_that_hangs_is_replaced(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--workers", "2") as process:
        hung, other = workers(process)
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: hung not in workers(process))
        wait_until(lambda: len(workers(process)) == 2)
        assert other in workers(process)
        infer(process.url)
    assert "has not been heard of" in process.log.read_text()


def test_a_signal_stops_all_when_what_was_accepted_is_answered(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--workers", "2") as process:
        held = [connect(process.url) for _ in range(6)]
        request = post(INFER, x())
        for connection in held:
            connection.sendall(request[:-10])
        infer(process.url)
        process.popen.terminate()
        wait_until(lambda: not listens(int(process.url.rpartition(":")[2])))  # nobody new is let in, to wait in vain
        assert process.popen.poll() is None
        for connection in held:
            connection.sendall(request[-10:])
            assert receive(connection).status == 200
            connection.close()
        assert process.popen.wait(30) == 0


def test_a_process_that_is_just_starting_stops_with_the_others(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Supervisor):
        async def _start(self, metrics: str) -> Worker:
            worker = await super()._start(metrics)
            self._stop.set()
            await asyncio.sleep(0)  # as it takes a while
            return worker

    monkeypatch.setattr(supervisor, "REST_S", 10 * WAIT_S)
    with contextlib.closing(Doors.open("127.0.0.1", 0, health_port=None, grpc_port=None, shared=True)) as doors:
        stopped = Stopped(str(repository), 2, doors, (), 0, ServerSettings())
        asyncio.run(asyncio.wait_for(stopped.run(), WAIT_S))


def test_no_process_is_left_when_the_supervisor_is_killed(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--workers", "2") as process:
        left = workers(process)
        process.popen.kill()
        process.popen.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_what_cannot_be_served_ends_the_start_as_it_does_with_one(repository: Path, tmp_path: Path) -> None:
    artifacts.publish(f"{repository}/broken", GRAPHS["linear"], files={"model.onnx": artifacts.linear(seed=1).model})
    options = (str(repository), "--port", str(free_port()))
    together, alone = serve_fails(*options, "--workers", "2"), serve_fails(*options)
    assert together[0] == alone[0] == 1
    for _, said in (together, alone):
        assert "is wrong on this machine: golden row 0" in said.splitlines()[-1]
        assert "Traceback" not in said


@pytest.mark.parametrize("count", [0, -1])
def test_no_process_at_all_is_refused(repository: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"workers is {count}; choose 1 or more"):
        serve(str(repository), port=0, workers=count)


def test_settings_that_are_wrong_are_said_before_there_are_processes(repository: Path, tmp_path: Path) -> None:
    (keys := tmp_path / "keys").write_text("inference short\n")
    keys.chmod(0o600)
    for options, says in (
        (("--api-keys", str(keys)), "key"),
        (("--trust", ""), "trust is"),
        (("--port", "99999"), "port is"),
    ):
        code, said = serve_fails(str(repository), "--workers", "2", *options)
        assert code == 2
        assert says in said
        assert len(said.splitlines()) == 1
