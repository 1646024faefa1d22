"""What is said of a Ray cluster, and of the faults that a run on it survives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from shipline.errors import ConfigError, nearest
from shipline.train.options.configurable import Configurable

Placement = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

_RUNTIME = (
    "working_dir", "py_modules", "py_executable", "excludes", "pip", "uv", "conda", "env_vars", "config", "image_uri",
    "worker_process_setup_hook", "nsight",
)  # fmt: skip


@dataclass(kw_only=True)
class RayCluster(Configurable):
    """How several workers use a Ray cluster; for `Trainer(cluster=RayCluster(...))`.

    Args:
        resources_per_worker: what each worker reserves: "CPU", "GPU", "memory" in bytes, names of your own.
        placement: where workers go: "PACK" on few machines, "SPREAD" over many, "STRICT_PACK" on one, "STRICT_SPREAD"
            on one each.
        accelerator_type: of the machines, such as "A100"; default: any.
        runtime_env: what each worker's process has of yours: `working_dir`, `py_modules`, `pip`, `env_vars` and so on.
        max_failures: errors of the code after which the run goes on from its last checkpoint; -1: always.
        max_losses: lost workers or machines after which it does.
        max_preemptions: workers taken away with notice after which it does.
        wait_s: seconds to wait for the resources of the workers, when they start and when they start again.
        resize_check_s: with `workers=(least, most)`, seconds between two looks for more resources.
        grace_s: seconds that the workers have for a checkpoint when they are told to end.
        head_timeout_s: seconds without an answer of the cluster's head after which the run fails.
        data_cpus: CPUs that a cluster which the run starts has besides those of the workers: for the tasks of Ray Data.
        keep_warm: leave a cluster that the run has started for the next run of this process; one that wants more CPUs,
            another runtime_env, or directories in it, which are copied at the start, gets a new one.
        allow_open: use a cluster that lets in everybody: without RAY_AUTH_MODE=token, who reaches it runs code on it.

    Raises:
        ConfigError: a value means nothing.
    """

    resources_per_worker: dict[str, float] = field(default_factory=dict)
    placement: Placement = "PACK"
    accelerator_type: str | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)
    max_failures: int = 0
    max_losses: int = 3
    max_preemptions: int = -1
    wait_s: float = 300.0
    resize_check_s: float = 60.0
    grace_s: float = 60.0
    head_timeout_s: float = 20.0
    data_cpus: int = 0
    keep_warm: bool = False
    allow_open: bool = False

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.placement not in get_args(Placement):
            raise ConfigError(
                f"RayCluster has placement={self.placement!r}.{nearest(str(self.placement), get_args(Placement))} "
                f"Known: {', '.join(get_args(Placement))}."
            )
        for name, least in (("max_failures", -1), ("max_losses", -1), ("max_preemptions", -1), ("data_cpus", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                or_all = ", or -1 for no limit" if least else ""
                raise ConfigError(f"RayCluster has {name}={value!r}; set a whole number from 0 on{or_all}.")
        for name in ("wait_s", "resize_check_s", "grace_s", "head_timeout_s"):
            if not _is_number(value := getattr(self, name)) or value <= 0:
                raise ConfigError(f"RayCluster has {name}={value!r}; set a number of seconds above 0.")
        for name, value in self.resources_per_worker.items():
            if not _is_number(value) or value < 0:
                raise ConfigError(f"RayCluster has resources_per_worker[{name!r}]={value!r}; set a number from 0 on.")
        for name in self.runtime_env:
            if name not in _RUNTIME:
                raise ConfigError(
                    f"RayCluster has runtime_env[{name!r}], which Ray does not know.{nearest(name, _RUNTIME)} Known: "
                    f"{', '.join(_RUNTIME)}."
                )

    def resources(self, accelerator: str) -> dict[str, float]:
        """Return what a worker reserves: what was given, with one CPU and one accelerator where nothing was."""
        return {"CPU": 1.0, accelerator: 1.0} | self.resources_per_worker


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def worker_range(workers: Any) -> tuple[int, int] | None:
    """Return the least and the most of `workers=(least, most)`; None where it is one number.

    Raises:
        ConfigError: they are no such pair.
    """
    if workers is None or isinstance(workers, int):
        return None
    pair = tuple(workers) if isinstance(workers, list | tuple) else ()
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in pair)
    if len(pair) != 2 or not whole or not 1 <= pair[0] <= pair[1]:
        raise ConfigError(
            f"Trainer has workers={workers!r}; set a whole number from 1 on, or the least and the most: (2, 8)."
        )
    return pair[0], pair[1]
