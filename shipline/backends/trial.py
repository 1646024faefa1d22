"""A trial: a file loaded and run in a process of its own first, where it may crash or hang.

Runtimes are not made for files that nobody has tried: onnxruntime 1.31 ends the process on some graphs in float16.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.errors import GateError

TIMEOUT_S = 300.0
OUT_OF_MEMORY = 3
MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
GROUP = Path("/sys/fs/cgroup")
_ALLOCATION = re.compile(r"bad_?alloc|allocate memory|out of memory", re.IGNORECASE)
ADVICE = "Set another precision or backend."


def survive(file: Path, backend: str, settings: ServingSettings, inputs: Arrays) -> None:
    """Raise GateError where the backend, loading the file and running it, ends its process, or takes too long or much.

    An error that it raises is none here: whoever loads the file next meets it, with all that it says.
    """
    rows = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in inputs.items()})
    command = [sys.executable, "-m", __name__, str(file), backend, settings.model_dump_json()]
    said = f"{backend} cannot be trusted with the graph, so nothing was published: in a process of its own it"
    try:
        done = subprocess.run(  # noqa: S603 -- of this interpreter, with arguments of ours
            command, input=rows, capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise GateError(f"{said} took longer than {TIMEOUT_S:g} s for one batch. {ADVICE}") from error
    if done.returncode < 0:
        raise GateError(f"{said} was ended by {signal.Signals(-done.returncode).name}. {ADVICE}")
    if done.returncode == OUT_OF_MEMORY:
        raise GateError(f"{said} needed more memory than is free here, for one batch of the largest size. {ADVICE}")
    if done.returncode:  # a trial that was none
        raise GateError(f"{said} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-500:]}")


def main(file: str, backend: str, settings: str) -> int:
    """Load and run, for the rows on the standard input; return the exit status."""
    inputs = safetensors.numpy.load(sys.stdin.buffer.read())
    try:
        chosen: type[Backend] = plugins.load("backend", backend)
        limit_memory()
        chosen.load(Path(file).read_bytes(), ServingSettings.model_validate_json(settings)).run(inputs)
    except Exception as error:
        return OUT_OF_MEMORY if is_out_of_memory(error) else 0
    return 0


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or what a process said at its end, is that there was no more memory."""
    return isinstance(error, MemoryError) or bool(_ALLOCATION.search(str(error)))


def limit_memory() -> None:
    """Let this process take what memory is free now and no more, so that nobody else is ended for it."""
    if not STATUS.exists():  # not Linux
        return
    import resource

    free = free_memory()
    taken = _kibibytes(STATUS, "VmSize") * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + free
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def free_memory() -> int:
    """Return the bytes that are free on this machine, or in its container where that has fewer.

    A container's are those of Linux's control groups, version 2, which count files that are only cached as taken.
    """
    free = _kibibytes(MEMINFO, "MemAvailable") * 1024
    try:
        most, taken = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is none, or it says "max"
        return free
    return max(min(free, most - taken + int(parts["active_file"]) + int(parts["inactive_file"])), 0)


def _kibibytes(file: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
