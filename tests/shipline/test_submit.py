"""`shipline train --submit` up to the job server; tests/k8s/test_jobs.py goes on from there, with a real one."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from shipline.commands import folder, submit
from shipline.config import Sources, read_sources
from shipline.errors import ConfigError, TrainingError

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Ray sets a variable when it is imported, and keeps it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import shipline.train.submission  # noqa: F401


# --- what is sent -----------------------------------------------------------------------------------------------------


def put(where: Path, *names: str) -> None:
    for name in names:
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(name)


def packed(where: Path, tmp_path: Path, *excludes: str) -> set[str]:
    folder.pack(where, excludes, tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        return set(archive.namelist())


CODE = ("train.yaml", "models/net.py", "pkg/sub/a.py")
REST = (".env", ".venv/lib/b.py", "pkg/__pycache__/a.pyc", "runs/net/version_0/log.csv", "wandb/c", "x.egg-info/PKG")


@pytest.mark.parametrize("git", [False, True])
def test_the_code_is_sent_and_the_rest_is_not(tmp_path: Path, git: bool) -> None:
    where = tmp_path / "work"
    put(where, *CODE, *REST, "data/rows.csv", "data/more/rows.csv", "venv/pyvenv.cfg", "venv/lib/d.py", "ignored.bin")
    (where / "link").symlink_to("nowhere")
    if git:
        put(where, ".gitignore")
        (where / ".gitignore").write_text("*.bin\nvenv\n")
        subprocess.run(["git", "init", "-q", where], check=True)
    kept = {*CODE} if git else {*CODE, "ignored.bin"}
    assert packed(where, tmp_path, "data") == kept
    assert packed(where, tmp_path, "*.csv", "pkg/sub") == kept - {"pkg/sub/a.py"}
    assert "data/more/rows.csv" in packed(where, tmp_path, "data/rows.csv")


@pytest.mark.parametrize("broken", ["index", "gitdir"])
def test_a_tree_that_git_does_not_read_is_not_sent(tmp_path: Path, broken: str) -> None:
    """Nobody would know what it ignores."""
    where = tmp_path / "work"
    put(where, *CODE, "secret.txt", ".gitignore")
    if broken == "index":
        subprocess.run(["git", "init", "-q", where], check=True)
        (where / ".git/index").write_text("no index")
    else:
        (where / ".git").write_text("gitdir: /nowhere")
    with pytest.raises(ConfigError, match=r"git does not read, .*fatal: .*Run `git status` there"):
        packed(where, tmp_path)


def test_the_same_code_is_the_same_archive(tmp_path: Path) -> None:
    """Ray knows archives by their content, and takes each once."""
    put(tmp_path / "work", *CODE)
    packed(tmp_path / "work", tmp_path)
    before = (tmp_path / "code.zip").read_bytes()
    os.utime(tmp_path / "work" / "train.yaml", (0, 0))
    packed(tmp_path / "work", tmp_path)
    assert (tmp_path / "code.zip").read_bytes() == before


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LIMIT", 3_000_000)
    put(tmp_path / "work", *CODE)
    (tmp_path / "work" / "rows.bin").write_bytes(bytes(5_000_000))
    with pytest.raises(
        ConfigError, match=r"holds 5 MB in 4 files, and 3 MB can be sent.*: rows.bin \(5 MB\), .*'\[rows"
    ):
        packed(tmp_path / "work", tmp_path)
    assert packed(tmp_path / "work", tmp_path, "rows.bin") == {*CODE}
    with pytest.raises(ConfigError, match="no file to send"):
        packed(tmp_path / "work", tmp_path, "*")


# --- the command line -------------------------------------------------------------------------------------------------


def command(where: Path, monkeypatch: pytest.MonkeyPatch, *words: str, config: str | None = None) -> str:
    monkeypatch.chdir(where)
    return submit._command(read_sources(words, config), where)


def test_the_job_has_the_same_command_line_without_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.yaml", "conf/b.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("seed_everything: 1")
    (tmp_path / "cluster.yaml").write_text("submit: http://head:8265")
    words = ["--submit", "http://head:8265", "--trainer.name", "a b", "--submit_exclude=[x]", "--config=conf/b.yaml"]
    said = command(tmp_path, monkeypatch, *words, config=str(tmp_path / "a.yaml"))
    assert said == "shipline train a.yaml --config=conf/b.yaml --trainer.name 'a b'"
    said = command(tmp_path, monkeypatch, "--trainer.workers=2", config="cluster.yaml")
    assert said == "shipline train cluster.yaml --trainer.workers=2 --submit=null"


@pytest.mark.parametrize("words", [["--config", "../out.yaml"], ["--import_path", "[/somewhere]"]])
def test_what_is_not_sent_is_not_named(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "out.yaml").write_text("seed_everything: 1")
    with pytest.raises(ConfigError, match=r"is outside of .*/work, whose files are sent with the job"):
        command(tmp_path / "work", monkeypatch, *words)


@pytest.mark.parametrize("root", [None, "runs", "./runs", "memory://runs"])
def test_results_that_would_be_lost_are_refused(root: str | None) -> None:
    trainer = Namespace(default_root_dir=root)
    with pytest.raises(ConfigError, match=r"would be lost .* Set --trainer\.default_root_dir to a store"):
        submit.submit("http://127.0.0.1:9", [], None, Namespace(trainer=trainer), Sources())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workers", "accelerator", "asked"),
    [(1, "auto", {"CPU": 1}), (1, "gpu", {"CPU": 1, "GPU": 1}), (4, "gpu", {}), ((2, 4), "auto", {})],
)
def test_one_process_is_put_where_there_is_room(workers: Any, accelerator: str, asked: dict[str, int]) -> None:
    assert submit._resources(Namespace(workers=workers, accelerator=accelerator)) == asked


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """Start a server that answers everything with this status and body."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None: ...

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, b"", ConfigError, "wants a token: set RAY_AUTH_TOKEN"),
        (403, b"", ConfigError, "refuses the token"),
        (404, b"", TrainingError, r"is no job server of Ray \(status 404\)"),
        (200, b"<html>", TrainingError, "is no job server of Ray"),
        (200, b"[]", TrainingError, "is no job server of Ray"),
        (
            200,
            json.dumps({"ray_version": "2.9.1"}).encode(),
            ConfigError,
            r"runs Ray 2\.9\.1, .*pip install .*==2\.9\.1",
        ),
    ],
)
def test_a_server_that_does_not_take_jobs_from_us(
    answering: Callable[[int, bytes], str], status: int, body: bytes, kind: type[Exception], said: str
) -> None:
    from shipline.train.submission import JobServer

    with pytest.raises(kind, match=said):
        JobServer(answering(status, body))


@pytest.mark.parametrize("address", ["ray://head:10001", "head:8265", "http://", "s3://bucket", ""])
def test_an_address_of_something_else(address: str) -> None:
    from shipline.train.submission import JobServer

    with pytest.raises(ConfigError, match="give the address of the cluster's dashboard, such as http://head:8265"):
        JobServer(address)


def test_nobody_there_is_said_without_what_was_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from shipline.train.submission import JobServer

    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-token")
    with pytest.raises(TrainingError, match=r"No job server answers at http://\*\*\*@127\.0\.0\.1:9 \(") as raised:
        JobServer("http://user:planted@127.0.0.1:9")
    assert "planted" not in str(raised.value)


def test_a_token_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from shipline.train.submission import JobServer

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match=f"cannot be read from {tmp_path}/token: No such file"):
        JobServer("http://127.0.0.1:9")


# --- following --------------------------------------------------------------------------------------------------------


class Details:
    """What a job server tells of a job."""

    def __init__(self, status: str, code: int | None = None, message: str = "") -> None:
        from ray.job_submission import JobStatus

        self.status, self.driver_exit_code, self.message = JobStatus(status), code, message


class Client:
    """A job server's client: each connection shows some of the log from its beginning, then breaks or ends."""

    def __init__(self, log: str, ends: list[int | BaseException], details: Details) -> None:
        self.log, self.ends, self.details, self.stopped = log, ends, details, False

    async def tail_job_logs(self, job: str) -> Any:
        end = self.ends.pop(0)
        length = end if isinstance(end, int) else len(self.log) // 2
        for start in range(0, length, 7):
            yield self.log[start : min(start + 7, length)]
        if not isinstance(end, int):
            raise end
        if length < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> Details:
        return self.details

    def stop_job(self, job: str) -> None:
        self.stopped = True


def job(client: Client) -> Any:
    from shipline.train.submission import Job

    return Job("http://head:8265", "raysubmit_1", client)


LOG = "Running entrypoint\nepoch 1\nTraceback (most recent call last):\nValueError: first\nshipline: done\n"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("shipline.train.submission.time.sleep", waited.append)
    return waited


def test_a_connection_that_breaks_is_made_again_and_nothing_is_shown_twice(no_waiting: list[float]) -> None:
    shown: list[str] = []
    outcome = job(Client(LOG, [20, 31, OSError("reset"), len(LOG)], Details("SUCCEEDED", 0))).follow(shown.append)
    assert "".join(shown) == LOG
    assert (outcome.status, outcome.code) == ("SUCCEEDED", 0)
    assert no_waiting == [1, 1, 1]  # each of them showed something new


def test_a_server_that_is_gone_is_given_up(no_waiting: list[float]) -> None:
    with pytest.raises(
        TrainingError, match=r"does not answer any more \(reset\).*may still run. To follow it: ray job logs"
    ):
        job(Client(LOG, [OSError("reset")] * 9, Details("RUNNING"))).follow(lambda text: None)
    assert no_waiting == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("log", "details", "code", "cause"),
    [
        (LOG, ("FAILED", 1), 1, "ValueError: first"),
        (LOG + "shipline train: width is 0.\n", ("FAILED", 2), 2, "width is 0."),
        ("sh: 1: shipline: not found\n", ("FAILED", 127), 127, "1: shipline: not found"),
        ("", ("FAILED", -9, "killed"), 137, "killed"),
        ("", ("FAILED", None, "runtime_env setup failed\nmore"), 1, "runtime_env setup failed"),
        ("", ("FAILED", 1), 1, "it said nothing"),
    ],
)
def test_the_first_cause_of_a_failure(log: str, details: tuple[Any, ...], code: int, cause: str) -> None:
    outcome = job(Client(log, [len(log)], Details(*details))).follow(lambda text: None)
    assert (outcome.code, outcome.cause) == (code, cause)


def test_without_a_terminal_a_job_is_left_running(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(LOG, [KeyboardInterrupt()], Details("RUNNING"))
    with pytest.raises(KeyboardInterrupt):
        submit._end_as(job(client))
    assert not client.stopped
    said = capsys.readouterr().err
    assert (
        "raysubmit_1 is left running. To follow it: ray job logs --follow --address http://head:8265 raysubmit_1"
        in said
    )
    assert "To stop it: ray job stop --address http://head:8265 raysubmit_1" in said
