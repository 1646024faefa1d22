"""A command as a job of a Ray cluster that runs elsewhere, over the HTTP of its dashboard.

Beside `launch` the only module that imports ray: its client of the job server, which starts and joins no cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from shipline.errors import ConfigError, MissingExtraError, TrainingError
from shipline.store import redact

try:
    import aiohttp
    import ray
    import requests
    from ray.job_submission import JobSubmissionClient
except ModuleNotFoundError as error:
    raise MissingExtraError("--submit needs Ray. Run: pip install 'shipline[ray]'") from error

# They tell of every request, on the terminal that shows the job's own words.
for _talkative in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_talkative).setLevel(logging.WARNING)

_ADDRESS = re.compile(r"https?://[^/\s]+")
_TIMEOUT_S = 20.0
_RETRIES = 5  # of a connection that breaks, with 1, 2, 4 ... seconds between them
_VARIABLES = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # what a job that is stopped has to save itself; Ray gives it three
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what workers print comes twice
}
_CAUSES = (
    re.compile(r"^shipline [\w-]+: (.+)"),  # what the command line says of an error of ours
    re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception|Interrupt): .+)"),  # the end of a traceback
    re.compile(r"^(?:/bin/)?(?:ba)?sh: (.+)"),
)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        status: SUCCEEDED, FAILED or STOPPED.
        code: exit code of its command.
        cause: what it said of its failure.
    """

    status: str
    code: int
    cause: str = ""


class JobServer:
    """The job server of a cluster.

    Args:
        address: of the dashboard, such as http://head:8265.

    Raises:
        ConfigError: it is no such address; or the server wants a token, refuses ours, or runs another Ray.
        TrainingError: nobody answers, or somebody else does.
    """

    def __init__(self, address: str) -> None:
        if not _ADDRESS.fullmatch(address.rstrip("/")):
            raise ConfigError(
                f"--submit is {redact(address)!r}: give the address of the cluster's dashboard, such as "
                "http://head:8265. (ray:// and host:port are for RAY_ADDRESS, with the script running here.)"
            )
        self.address = address.rstrip("/")
        headers = _token()
        _check_server(self.address, headers)
        with _environment("RAY_API_SERVER_ADDRESS", self.address):  # or it would win over the argument, as RAY_ADDRESS
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(self, command: str, files: Path, environment: Mapping[str, str], resources: Mapping[str, float]) -> Job:
        """Start a shell command in a copy of the files, with these variables, where these resources are (CPU, GPU)."""
        with _asking(self.address):
            name = self._client.submit_job(
                entrypoint=command,
                runtime_env={
                    "working_dir": str(files),
                    "env_vars": {**_VARIABLES, **environment},
                },
                entrypoint_num_cpus=resources.get("CPU", 0),
                entrypoint_num_gpus=resources.get("GPU", 0),
            )
        return Job(self.address, name, self._client)


@dataclass
class Job:
    """A job that was submitted."""

    address: str
    name: str
    _client: Any = field(repr=False)
    _shown: int = 0  # characters of its log
    _last: deque[str] = field(default_factory=lambda: deque([""], maxlen=200), repr=False)

    def follow(self, show: Callable[[str], None]) -> Outcome:
        """Show what the job says until it has ended; where this was interrupted, go on from there.

        Raises:
            TrainingError: the server is gone; the job may go on.
        """
        failures = 0
        while True:
            before = self._shown
            try:
                asyncio.run(self._tail(show))
                outcome = self._outcome()
                if outcome is not None:
                    return outcome
            except (OSError, RuntimeError, aiohttp.ClientError) as error:  # requests' errors are of OSError
                failures = failures + 1 if self._shown == before else 1
                if failures > _RETRIES:
                    raise TrainingError(
                        f"The job server at {self.address} does not answer any more ({_said(error)}). "
                        f"{self.name} may still run. {self.how_to_follow}"
                    ) from error
                time.sleep(2 ** (failures - 1))

    async def _tail(self, show: Callable[[str], None]) -> None:
        """Each connection begins with the whole log again."""
        skip = self._shown
        async for text in self._client.tail_job_logs(self.name):
            new = text[skip:]
            skip = max(0, skip - len(text))
            if new:
                self._shown += len(new)
                self._keep(new)
                show(new)

    def _keep(self, text: str) -> None:
        first, *others = text.split("\n")
        self._last[-1] += first
        self._last.extend(others)

    def _outcome(self) -> Outcome | None:
        found = self._client.get_job_info(self.name)
        if not found.status.is_terminal():
            return None
        code = found.driver_exit_code
        if found.status == "SUCCEEDED":
            return Outcome("SUCCEEDED", 0)
        if found.status == "STOPPED":
            return Outcome("STOPPED", 143)
        return Outcome("FAILED", 1 if code is None else code if code > 0 else 128 - code, self._cause(found.message))

    def _cause(self, message: str | None) -> str:
        """The first cause as its own process told it; where that said nothing, as Ray has it."""
        for pattern in _CAUSES:
            for line in reversed(self._last):
                if match := pattern.match(line.strip()):
                    return match[1]
        return (message or "it said nothing").strip().splitlines()[0]

    def stop(self) -> None:
        """Tell the job to end: it gets SIGTERM, and time to save itself."""
        with _asking(self.address):
            self._client.stop_job(self.name)

    @property
    def how_to_follow(self) -> str:
        """The commands for those who leave it running."""
        return (
            f"To follow it: ray job logs --follow --address {self.address} {self.name}   "
            f"To stop it: ray job stop --address {self.address} {self.name}"
        )


def _check_server(address: str, headers: Mapping[str, str]) -> None:
    """What answers there must be Ray's job server, of our version, and let us in."""
    try:
        answer = httpx.get(f"{address}/api/version", headers=dict(headers), timeout=_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise TrainingError(
            f"No job server answers at {redact(address)} ({_said(error)}). Is the cluster up, and its dashboard, which "
            "'ray[default]' brings? On Kubernetes, kubectl port-forward makes a way to it."
        ) from error
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise ConfigError(f"The cluster at {redact(address)} wants a token: set RAY_AUTH_TOKEN to it.")
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise ConfigError(
            f"The cluster at {redact(address)} refuses the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token: it is another cluster's."
        )
    theirs = _version(answer)
    if theirs is None:
        raise TrainingError(
            f"What answers at {redact(address)} is no job server of Ray (status {answer.status_code}): give the "
            "address of the cluster's dashboard, whose port is 8265 unless it was set."
        )
    if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise ConfigError(
            f"The cluster at {redact(address)} runs Ray {theirs}, here is {ray.__version__}: jobs go between the same "
            f"versions only. Run: pip install 'ray[default,train]=={theirs}'"
        )


def _version(answer: httpx.Response) -> str | None:
    try:
        found = answer.json()["ray_version"] if answer.is_success else None
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _token() -> dict[str, str]:
    """The header that lets us in: Ray's own variables and, where RAY_AUTH_MODE=token, its own file."""
    token, path = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and not path and os.environ.get("RAY_AUTH_MODE") == "token":
        path = str(Path.home() / ".ray" / "auth_token")
    if not token and path:
        try:
            token = Path(path).read_text()
        except OSError as error:
            raise ConfigError(f"The token of the cluster cannot be read from {path}: {error.strerror}.") from error
    return {"Authorization": f"Bearer {token.strip()}"} if token else {}


@contextlib.contextmanager
def _asking(address: str) -> Iterator[None]:
    """Requests to a server that has answered before."""
    try:
        yield
    except (requests.RequestException, RuntimeError) as error:
        raise TrainingError(f"The job server at {redact(address)} refused: {_said(error)}") from error


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _said(error: BaseException) -> str:
    return redact(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
