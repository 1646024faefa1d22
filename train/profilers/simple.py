"""How often each action was done, and how long it took."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from shipline.errors import TrainingError
from shipline.train.profilers.base import Profiler
from shipline.train.profilers.table import table

if TYPE_CHECKING:
    from torch import nn

    from shipline.store import Store


class SimpleProfiler(Profiler):
    """A table of all actions: mean and total time in seconds, calls, and the share of the stage's whole time.

    An action's time holds that of the actions within it, so that shares add up to more than the whole.

    Args:
        dirpath: URL of the directory for the report; default: the run's.
        filename: in the report's name. Where it is left out, the report is printed, too.
        extended: show calls and shares.
    """

    def __init__(self, dirpath: str | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}
        self.recorded_durations: dict[str, list[float]] = {}
        self.start_time = time.perf_counter()

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Begin with an empty table."""
        super().setup(stage, run, rank, module)
        self.current_actions, self.recorded_durations = {}, {}
        self.start_time = time.perf_counter()

    def start(self, action_name: str) -> None:
        """Start the action's clock; TrainingError where it runs."""
        if action_name in self.current_actions:
            raise TrainingError(f"The action {action_name!r} is being measured: it cannot begin within itself.")
        self.current_actions[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop the action's clock; TrainingError where it does not run."""
        now = time.perf_counter()
        if action_name not in self.current_actions:
            raise TrainingError(f"The action {action_name!r} ends, and never began: call start({action_name!r}) first.")
        self.recorded_durations.setdefault(action_name, []).append(now - self.current_actions.pop(action_name))

    def summary(self) -> str:
        """Return the table, what took longest first."""
        whole = time.perf_counter() - self.start_time
        sums = {name: math.fsum(durations) for name, durations in self.recorded_durations.items()}
        if not sums:
            return ""
        rows = [("Total", "", str(sum(map(len, self.recorded_durations.values()))), f"{whole:.5g}", "100")]
        for name in sorted(sums, key=lambda name: -sums[name]):
            calls = len(self.recorded_durations[name])
            share = 100 * sums[name] / whole
            rows.append((name, f"{sums[name] / calls:.5g}", str(calls), f"{sums[name]:.5g}", f"{share:.4g}"))
        titles = ("Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %")
        shown = (0, 1, 2, 3, 4) if self.extended else (0, 1, 3)
        return f"{(self.stage or '').upper()} Profiler Report".lstrip() + "\n" + table(titles, rows, shown)
