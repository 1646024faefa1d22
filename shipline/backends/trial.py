"""A trial: a file loaded and run in a process of its own first, where it may crash or hang.

Runtimes are not made for files that nobody has tried: onnxruntime 1.31 ends the process on some graphs in float16.
"""

from __future__ import annotations

import contextlib
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
ADVICE = "Set another precision or backend."


def survive(file: Path, backend: str, settings: ServingSettings, inputs: Arrays) -> None:
    """Raise GateError where the backend ends its process, or takes too long, when it loads the file and runs it.

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
    if done.returncode:  # a trial that was none
        raise GateError(f"{said} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-500:]}")


def main(file: str, backend: str, settings: str) -> None:
    """Load and run, for the rows on the standard input."""
    inputs = safetensors.numpy.load(sys.stdin.buffer.read())
    with contextlib.suppress(Exception):
        chosen: type[Backend] = plugins.load("backend", backend)
        chosen.load(Path(file).read_bytes(), ServingSettings.model_validate_json(settings)).run(inputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
