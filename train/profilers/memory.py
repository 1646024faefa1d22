"""What takes the memory of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shipline.errors import ConfigError
from shipline.train.profilers.base import Profiler
from shipline.train.profilers.table import table

if TYPE_CHECKING:
    from torch import nn

    from shipline.store import Store

_MIB = 2**20


class MemoryProfiler(Profiler):
    """A snapshot of all allocations with the lines that made them, and a table of what each action leaves allocated.

    The `.pickle` file opens in https://pytorch.org/memory_viz; it is written after an error, too, such as one for want
    of memory.

    Args:
        dirpath: URL of the directory for its files; default: the run's.
        filename: in the names of its files. Where it is left out, the report is printed, too.
        max_entries: allocations that are remembered, the last ones.

    Source: https://docs.pytorch.org/docs/stable/torch_cuda_memory.html
    """

    def __init__(self, dirpath: str | None = None, filename: str | None = None, max_entries: int = 100_000) -> None:
        super().__init__(dirpath, filename)
        self.max_entries = max_entries
        self.growth: dict[str, list[int]] = {}
        self._running: list[int] = []

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Begin to remember allocations.

        Raises:
            ConfigError: there is no GPU of NVIDIA's or AMD's, which are those that PyTorch remembers this of.
        """
        if not torch.cuda.is_available():
            raise ConfigError(
                "profiler='memory' remembers the allocations on a cuda device, and this machine has none: leave it "
                "out, or choose 'pytorch' with profile_memory=True."
            )
        super().setup(stage, run, rank, module)
        self.growth, self._running = {}, []
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.memory._record_memory_history(max_entries=self.max_entries)  # noqa: SLF001 -- it has no public name

    def start(self, action_name: str) -> None:
        """Note what is allocated."""
        self._running.append(torch.cuda.memory_allocated())

    def stop(self, action_name: str) -> None:
        """Note what has come to it."""
        self.growth.setdefault(action_name, []).append(torch.cuda.memory_allocated() - self._running.pop())

    def summary(self) -> str:
        """Return the actions by the most that one call left allocated, in MiB."""
        rows = [
            (name, str(len(found)), f"{max(found) / _MIB:.2f}", f"{sum(found) / _MIB:.2f}")
            for name, found in sorted(self.growth.items(), key=lambda item: -max(item[1]))
        ]
        peak = f"peak {torch.cuda.max_memory_allocated() / _MIB:.1f} MiB"
        titles = ("Action", "Num calls", "Most left by a call (MiB)", "Left by all (MiB)")
        return f"{(self.stage or '').upper()} Memory Report, {peak}\n{table(titles, rows)}"

    def teardown(self, stage: str) -> None:
        """Write the report and the snapshot, and forget the allocations."""
        super().teardown(stage)
        self.write_file(self.file_name(".pickle"), _dump)
        torch.cuda.memory._record_memory_history(enabled=None)  # noqa: SLF001


def _dump(path: Path) -> None:
    torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]  # noqa: SLF001
