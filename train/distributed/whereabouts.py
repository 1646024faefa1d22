"""What a worker does at a moment: in which step, at which line, in which collective; and which process it is."""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

_TORCH = str(Path("torch") / "")
_COLLECTIVES = (str(Path("torch") / "distributed" / ""), str(Path("torch") / "nn" / "parallel" / ""))
_WRAPPERS = ("c10d_logger.py", "contextlib.py")


@dataclass(frozen=True)
class Process:
    """A process that can be told from every other, also from a later one of the same number."""

    host: str
    machine: str
    pid: int
    started: float

    @classmethod
    def own(cls) -> Process:
        """Return this process."""
        return cls(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time())

    def kill(self) -> bool:
        """End it, if it is on this machine and still the same; say whether it was."""
        if self.machine != _machine() or self.pid == os.getpid():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.create_time() != self.started:
                return False
            process.send_signal(signal.SIGKILL)
        except (psutil.Error, OSError):
            return False
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Whereabouts:
    """What a worker tells the others of itself."""

    #: Rises each time that it tells.
    number: int
    #: The step that it is in, such as "training batch 12".
    step: str
    #: The line of the user's, or ours, that runs.
    line: str
    #: The collective in which it waits for the others, if it does.
    collective: str | None

    @classmethod
    def of_thread(cls, thread: int, number: int, step: str) -> Whereabouts:
        """Look where a thread is now."""
        frame = sys._current_frames().get(thread)  # noqa: SLF001 -- it has no public name
        return cls(number, step, _line(frame), _collective(frame))

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.step}, at {self.line}"


def _line(frame: FrameType | None) -> str:
    """The innermost line outside of PyTorch."""
    while frame is not None and frame.f_back is not None and _is_in(frame, (_TORCH,)):
        frame = frame.f_back
    if frame is None:
        return "a line that nobody knows"
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _collective(frame: FrameType | None) -> str | None:
    """The function of torch.distributed that was called first of those that run, if the innermost frames are its."""
    if frame is not None and frame.f_code.co_name == "_engine_run_backward":
        return "the exchange of gradients"
    name = None
    while frame is not None and _is_in(frame, _COLLECTIVES):
        if Path(frame.f_code.co_filename).name not in _WRAPPERS:
            name = frame.f_code.co_name
        frame = frame.f_back
    return name


def _is_in(frame: FrameType, folders: tuple[str, ...]) -> bool:
    path = frame.f_code.co_filename
    return any(f"{os.sep}{folder}" in path for folder in folders)


def _machine() -> str:
    """What only processes on this machine, that see the same process numbers, have alike."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time()}"
