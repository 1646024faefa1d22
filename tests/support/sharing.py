"""How several processes share the tests: file by file, and the files that start Ray clusters go all to one of them."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling


class Sharing(LoadFileScheduling):
    """Two clusters at a time would starve each other on a small machine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._shares: dict[str, str] = {}

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if file not in self._shares:
            starts_ray = "pytest.mark.ray" in (self.config.rootpath / file).read_text()
            self._shares[file] = "ray" if starts_ray else file
        return self._shares[file]
