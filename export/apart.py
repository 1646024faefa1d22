"""Work in a process of its own, where it may hang, crash, or ask for all memory, and ends nobody else.

The process is a fork of this one, so that it has the user's module as it stands here: defined at a prompt, wrapped,
pruned, in no file that a fresh interpreter could import. What the work makes it writes to files; plain data comes back.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import itertools
import json
import os
import re
import select
import signal
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pydantic_core
import torch

from shipline import errors
from shipline.backends.trial import is_out_of_memory, limit_memory
from shipline.errors import GateError, ShiplineError

#: How long a process that is to say where it hangs may take for that.
GRACE_S = 10.0
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
#: Where there is code that is nobody's module.
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parent))


def apart(work: Callable[[], Any], doing: str, timeout: float) -> Any:
    """Return the plain data that the work returns, done in a fork of this process.

    Where a process cannot be forked safely, which is everywhere but on Linux, it is done here.

    Args:
        work: writes to files what is no plain data; whatever else it changes is changed in the fork alone.
        doing: how a message begins, such as "Converting Net to onnx".
        timeout: how many seconds it may take. Its memory is limited to what is free.

    Raises:
        ShiplineError: the one that the work raised.
        GateError: it raised another one, took too long or too much memory, or was ended.
    """
    if sys.platform != "linux":
        return work()
    with (
        tempfile.TemporaryDirectory(prefix="shipline-apart-") as scratch,
        os.fdopen(os.memfd_create("said"), "w+b") as said,  # which a full disk does not keep from being told
        tempfile.TemporaryFile() as printed,
    ):
        pid = _fork()
        if pid == 0:
            tempfile.tempdir = os.environ["TMPDIR"] = scratch  # what it cannot tidy away is removed here
            _work(work, said, printed, timeout)
        status = _status(pid, timeout + GRACE_S)
        said.seek(0)
        printed.seek(0)
        answer, text = said.read(), printed.read().decode(errors="replace")
    if answer and status == 0:
        return _returned(json.loads(answer), doing)
    raise _refusal(doing, _ended(status, text, timeout))


def _refusal(doing: str, why: str) -> GateError:
    return GateError(f"{doing} {why}, so nothing was published.")


def _fork() -> int:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # there is none, or it is closed
            stream.flush()
    with warnings.catch_warnings():
        # Python warns of forks beside threads. As in DataLoader's workers, those that compute are not asked for again
        # (`set_num_threads` below), and whatever else should hang ends at the timeout.
        warnings.simplefilter("ignore")
        collecting = gc.isenabled()
        gc.disable()
        try:
            if (pid := os.fork()) == 0:
                # What the parent has thrown away is not ended here: runtimes would look for threads that are not there.
                gc.freeze()
        finally:
            if collecting:
                gc.enable()
        return pid


def _status(pid: int, timeout: float) -> int | None:
    """Wait for the process; return its exit status, or the signal that ended it, negative; None: it took too long."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        done = bool(poll.poll(timeout * 1000))
    finally:
        os.close(handle)
        with contextlib.suppress(ProcessLookupError):  # it has not come to make a group of its own
            os.killpg(pid, signal.SIGKILL)  # compilers that it started, too
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if done else None


def _work(work: Callable[[], Any], said: IO[bytes], printed: IO[bytes], timeout: float) -> NoReturn:
    """Do it, and end this process without what others have registered for its end."""
    try:
        _settle(printed, timeout)
        said.write(_answer(work))
        said.flush()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _settle(printed: IO[bytes], timeout: float) -> None:
    """Be a process of its own: it ends with its parent, and at the timeout says where it was."""
    parent = os.getppid()
    os.setpgid(0, 0)
    _end_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    faulthandler.disable()  # else it takes for its own the handlers that others, such as Ray, have put in their place
    faulthandler.enable(printed.fileno())
    _handle_signals_on_the_ordinary_stack()
    faulthandler.dump_traceback_later(timeout, exit=True, file=printed.fileno())
    torch.set_num_threads(1)
    for name, answer in (("is_available", False), ("device_count", 0)):
        # A fork cannot use CUDA where this process has; torch's compilers would, to keep its generators as they are.
        setattr(torch.cuda, name, lambda answer=answer: answer)
    limit_memory()


def _end_with_parent() -> None:
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


class _Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def _handle_signals_on_the_ordinary_stack() -> None:
    """What has computed with AMX has registers that are larger than faulthandler's own stack: it would say nothing."""
    disable = 2
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, disable, 0)), None)


def _answer(work: Callable[[], Any]) -> bytes:
    try:
        return pydantic_core.to_json({"found": work()})
    except BaseException as error:
        kind, text = "", f"failed with {type(error).__name__}: {error}".rstrip(".")
        if any(is_out_of_memory(each) for each in _causes(error)):
            text = "needed more memory than is free here"
        elif isinstance(error, ShiplineError):
            kind, text = type(error).__name__, str(error)
        return pydantic_core.to_json({"kind": kind, "text": text, "trace": traceback.format_exception(error)})


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _returned(answer: dict[str, Any], doing: str) -> Any:
    if "found" in answer:
        return answer["found"]
    known = getattr(errors, answer["kind"] or "None", None)
    error = _refusal(doing, answer["text"]) if known is None else known(answer["text"])
    error.add_note("In a process of its own:\n" + "".join(answer["trace"]))
    raise error


def _ended(status: int | None, printed: str, timeout: float) -> str:
    """Say how a process ended that gave no answer."""
    frames = list(itertools.takewhile(lambda frame: frame["file"] != __file__, _FRAME.finditer(printed)))
    own = next((each for each in frames if not each["file"].startswith(_LIBRARIES)), frames[0] if frames else None)
    where = f" (at {Path(own['file']).name}:{own['line']}, in {own['function']})" if own else ""
    if status is None or "Timeout (" in printed:
        return f"took longer than {timeout:g} s{where}, which is the recipe's timeout"
    if is_out_of_memory(printed):
        return f"needed more memory than is free here{where}"
    if status == -signal.SIGKILL:
        return "was ended by SIGKILL, as Linux does where memory runs out"
    if status < 0:
        return f"ended its process by {signal.Signals(-status).name}{where}"
    return f"ended its process with the exit status {status}{where}"
