"""Which operations run, on the CPU and on a device, as a trace to look at."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity

from shipline.errors import ConfigError, nearest
from shipline.train.profilers.base import Profiler

if TYPE_CHECKING:
    from torch import nn

    from shipline.store import Store

logger = logging.getLogger(__name__)

_STEPS = {"fit": "run_training_batch"}  # of the other stages, their steps
_SORT_KEYS = (
    "count",
    *(
        name.format(device)
        for device in ("cpu", "device", "cuda", "xpu")
        for name in ("{}_time", "{}_time_total", "self_{}_time_total", "{}_memory_usage", "self_{}_memory_usage")
    ),
)


class PyTorchProfiler(Profiler):
    """`torch.profiler` over a few batches: a Chrome trace that opens in https://ui.perfetto.dev, and a table.

    Args:
        dirpath: URL of the directory for its files; default: the run's.
        filename: in the names of its files. Where it is left out, the table is printed, too.
        wait: batches that are let pass first,
        warmup: that are measured and thrown away,
        active: that are in the trace;
        repeat: and how often this is done; 0: until the stage ends. In a fit, batches are those of training.
        export_to_chrome: write the trace.
        group_by_input_shapes: tell apart, in the table, calls with other shapes; needs `record_shapes=True`.
        sort_by_key: what the table is sorted by; default: the time on the device, or on the CPU.
        row_limit: rows of the table.
        record_module_names: name in the trace which submodule runs; switch it off where steps are compiled, whose
            graphs it would break.
        options: of `torch.profiler.profile`, such as `profile_memory` or `with_stack`; a `schedule` takes the place of
            wait, warmup, active and repeat.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        repeat: int = 1,
        export_to_chrome: bool = True,
        group_by_input_shapes: bool = False,
        sort_by_key: str | None = None,
        row_limit: int = 20,
        record_module_names: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        if sort_by_key is not None and sort_by_key not in _SORT_KEYS:
            raise ConfigError(
                f"PyTorchProfiler has sort_by_key={sort_by_key!r}.{nearest(sort_by_key, _SORT_KEYS)} Known: "
                f"{', '.join(_SORT_KEYS)}."
            )
        known = inspect.signature(torch.profiler.profile.__init__).parameters
        for name in options:
            if name not in known:
                raise ConfigError(f"PyTorchProfiler has no option {name!r}.{nearest(name, known)}")
        self._schedule = (wait, warmup, active, repeat)
        self._export, self._group, self._sort_by, self._rows = (
            export_to_chrome, group_by_input_shapes, sort_by_key, row_limit
        )  # fmt: skip
        self._names = record_module_names
        self._options = options
        self._reset()

    def _reset(self) -> None:
        self._profile: Any = None
        self._module: nn.Module | None = None
        self._running: list[Any] = []
        self._hooks: list[Any] = []
        self._table = ""
        self._batches = self._traces = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_profile": None, "_module": None, "_running": [], "_hooks": []}

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Begin to count batches."""
        super().setup(stage, run, rank, module)
        self._reset()
        self._module = module if self._names else None
        options: dict[str, Any] = {"activities": _activities(), "on_trace_ready": self._take} | self._options
        if "schedule" not in options:
            wait, warmup, active, repeat = self._schedule
            options["schedule"] = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=repeat)
            options.setdefault("acc_events", repeat > 1)  # the table is of all traces, unless there is no end of them
        self._profile = torch.profiler.profile(**options)
        self._profile.start()

    def start(self, action_name: str) -> None:
        """Name the action in the trace."""
        if self._module is not None and action_name.endswith("_step"):
            self._hooks, self._module = _name_submodules(self._module), None  # by now it has all of them
        self._running.append(_begun(action_name))

    def stop(self, action_name: str) -> None:
        """End the action; where it was a batch, count it."""
        self._running.pop().__exit__(None, None, None)
        if self._profile is not None and action_name.endswith(_STEPS.get(self.stage or "", "_step")):
            # Where taking a trace fails, torch's profiler must not be stopped once more: that ends the process.
            profile, self._profile = self._profile, None
            self._batches += 1
            profile.step()
            self._profile = profile

    def summary(self) -> str:
        """Return the table of the operations in the traces."""
        return self._table

    def teardown(self, stage: str) -> None:
        """End the trace, and write the table."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._module = [], None
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
        if self._is_too_short():
            logger.warning(
                "The profiler has no trace: of %d batches, wait=%d and warmup=%d were let pass. Set both to 0.",
                self._batches, *self._schedule[:2],
            )  # fmt: skip
        super().teardown(stage)

    def _is_too_short(self) -> bool:
        """Whether no batch was measured, as far as we know."""
        return "schedule" not in self._options and self._batches <= sum(self._schedule[:2])

    def _take(self, profile: Any) -> None:
        """Take what was measured over some batches."""
        if self._is_too_short():
            return
        averages = profile.key_averages(group_by_input_shape=self._group)
        sort_by = self._sort_by or ("device_time_total" if len(_activities()) > 1 else "cpu_time_total")
        self._table = averages.table(sort_by=sort_by, row_limit=self._rows)
        if self._export:
            self._traces += 1
            self.write_file(self.file_name(f"-{self._traces}.pt.trace.json.gz"), _exporter(profile))


def _begun(name: str) -> Any:
    record: Any = torch.profiler.record_function(name)
    record.__enter__()
    return record


def _exporter(profile: Any) -> Callable[[Any], None]:
    return lambda path: profile.export_chrome_trace(str(path))


def _activities() -> list[ProfilerActivity]:
    devices = {ProfilerActivity.CUDA: torch.cuda, ProfilerActivity.XPU: torch.xpu}
    return [ProfilerActivity.CPU, *(kind for kind, device in devices.items() if device.is_available())]


def _name_submodules(module: nn.Module) -> list[Any]:
    """Let each submodule's forward pass have its name in the trace; return what removes the hooks."""
    handles = []
    for name, part in module.named_modules():
        if name:
            running: list[Any] = []
            handles.append(part.register_forward_pre_hook(partial(_enter, running, f"{type(part).__name__}: {name}")))
            handles.append(part.register_forward_hook(partial(_leave, running), always_call=True))
    return handles


def _enter(running: list[Any], name: str, _module: nn.Module, _inputs: Any) -> None:
    running.append(_begun(name))


def _leave(running: list[Any], _module: nn.Module, _inputs: Any, _output: Any) -> None:
    if running:
        running.pop().__exit__(None, None, None)
