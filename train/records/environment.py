"""What a run ran on: Python, packages, machine, accelerator, command line, and the variables that matter."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from shipline.store import redact

#: Variables that change what a run computes, where, or how fast. All others stay out.
_MATTERS = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NCCL|GLOO|OMP|MKL|KMP|OPENBLAS|TORCH|PYTORCH|TORCHINDUCTOR|TORCHELASTIC|ROCR|HIP|HSA|XLA|ZE)_.*"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|NODE_RANK|MASTER_(ADDR|PORT)|SLURM_(JOB|NODE|NTASKS|PROC|STEP).*"
    r"|PYTHON(HASHSEED|PATH|WARNINGS|OPTIMIZE)|SHIPLINE_.*|RAY_(ADDRESS|TRAIN_.*)|WANDB_(MODE|PROJECT|ENTITY)"
    r"|MLFLOW_TRACKING_URI|HF_(HOME|HUB_OFFLINE)|CONDA_DEFAULT_ENV|VIRTUAL_ENV"
)
_SECRET_NAME = re.compile(
    r"passw|secret|credential|token$|(api|access|auth|private|secret)_?(key|token)", re.IGNORECASE
)
_DISTRIBUTION = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)\.dist-info")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what this process runs on, as plain data without credentials."""
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "accelerator": _accelerator(device),
        "command": command_line(sys.argv),
        "working_directory": str(Path.cwd()),
        "environment": {
            name: "***" if _SECRET_NAME.search(name) else redact(value)
            for name, value in sorted(os.environ.items())
            if _MATTERS.fullmatch(name)
        },
        "packages": installed_packages(),
    }


def command_line(arguments: list[str]) -> list[str]:
    """Return the arguments without credentials: in URLs, or given to an option whose name says what it is."""
    shown, hide = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret = argument.startswith("-") and _SECRET_NAME.search(name) is not None
        if hide and not argument.startswith("-"):
            shown.append("***")
        else:
            shown.append(f"{name}=***" if secret and equals else redact(argument))
        hide = secret and not equals
    return shown


def installed_packages() -> dict[str, str]:
    """Return the versions of all installed packages: read off directory names, which is a hundred times faster."""
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = [item.name for item in os.scandir(entry or ".")]
        except OSError:
            continue
        for name in names:
            if match := _DISTRIBUTION.fullmatch(name):  # what comes first on the path is what is imported
                found.setdefault(match["name"].lower().replace("_", "-"), match["version"])
    return dict(sorted(found.items()))


def _cpu() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:  # only Linux has it
        pass
    return {"model": model, "count": os.cpu_count(), "torch_threads": torch.get_num_threads()}


def _accelerator(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {
            "name": torch.cuda.get_device_name(device),
            "count": torch.cuda.device_count(),
            "memory": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return found
