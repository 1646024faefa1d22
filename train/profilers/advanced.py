"""Which functions an action spends its time in."""

from __future__ import annotations

import cProfile
import io
import pstats
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError, TrainingError
from shipline.train.profilers.base import Profiler

if TYPE_CHECKING:
    from torch import nn

    from shipline.store import Store


class AdvancedProfiler(Profiler):
    """Python's own cProfile of each action; detailed, and slow. Of what an action calls, other actions are left out.

    Args:
        dirpath: URL of the directory for the report; default: the run's.
        filename: in the report's name. Where it is left out, the report is printed, too.
        line_count_restriction: functions shown of each action: a number, or as a float their share.
        dump_stats: also write a `.prof` file for each action, for pstats, snakeviz and others to read.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        limit = line_count_restriction
        if limit < 0 or (isinstance(limit, float) and limit > 1):
            raise ConfigError(
                f"AdvancedProfiler has line_count_restriction={limit!r}; set a whole number, or a share up to 1.0."
            )
        self.line_count_restriction = limit
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._running: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "profiled_actions": {},
            "_running": [],
        }  # what travels to a worker has measured nothing

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Begin anew."""
        super().setup(stage, run, rank, module)
        self.profiled_actions, self._running = {}, []

    def start(self, action_name: str) -> None:
        """Profile this action, and for that time no longer the one that it is within."""
        if self._running:
            self.profiled_actions[self._running[-1]].disable()
        self._running.append(action_name)
        self.profiled_actions.setdefault(action_name, cProfile.Profile()).enable()

    def stop(self, action_name: str) -> None:
        """Go on with the action that this one is within."""
        if not self._running or self._running[-1] != action_name:
            raise TrainingError(
                f"The action {action_name!r} ends, and is not the one that began last: {self._running}."
            )
        self.profiled_actions[self._running.pop()].disable()
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def summary(self) -> str:
        """Return each action's functions, what took longest first."""
        return "\n".join(
            f"Profile stats for: {name} rank: {self.rank}\n{self._functions(profile)}"
            for name, profile in self.profiled_actions.items()
        )

    def describe(self) -> None:
        """Write the report, and the files."""
        super().describe()
        for name, profile in self.profiled_actions.items() if self.dump_stats else ():
            self.write_file(self.file_name(".prof", name), profile.dump_stats)

    def _functions(self, profile: cProfile.Profile) -> str:
        text = io.StringIO()
        stats = pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative")
        stats.print_stats(self.line_count_restriction)
        return text.getvalue().strip() + "\n"
