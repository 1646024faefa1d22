"""Where a logger keeps its files: in the run's directory, or where it was told to."""

from __future__ import annotations

from dataclasses import dataclass

from shipline.store import Store, absolute, check_name, join, open_store, redact


@dataclass(frozen=True)
class Place:
    """What a logger was told; without `save_dir` the run's directory is the place. Names are PyTorch Lightning's."""

    save_dir: str | None = None
    name: str | None = None
    version: int | str | None = None

    def __post_init__(self) -> None:
        """Fix a relative directory: workers run in directories of their own.

        Raises:
            ConfigError: name or version is none that a directory can have.
        """
        if self.save_dir is not None:
            object.__setattr__(self, "save_dir", absolute(str(self.save_dir)))
        for kind, given in (("experiment", self.name), ("version", self.version)):
            if isinstance(given, str) and given:
                check_name(kind, given)

    @property
    def shown(self) -> str | None:
        """The directory that was given, without credentials."""
        return None if self.save_dir is None else redact(self.save_dir)

    def store(self, run: Store | None) -> Store | None:
        """Return where files go: `<save_dir>/<name>/<version>`, named as the run is; or the run's directory."""
        if self.save_dir is None:
            return run
        url = self.save_dir
        for part in (self.name_in(run), self.version_in(run)):
            url = join(url, part) if part else url
        return open_store(url)

    def name_in(self, run: Store | None) -> str:
        """Return the name of the experiment: that given, or that of the run; empty where there is neither."""
        if self.name is not None:
            return self.name
        return "" if run is None else _part(run.url, -2)

    def version_in(self, run: Store | None) -> str:
        """Return the name of the version: that given, or that of the run."""
        if self.version is not None:
            return f"version_{self.version}" if isinstance(self.version, int) else self.version
        return "version_0" if run is None else _part(run.url, -1)

    def number(self, run: Store | None) -> int | str | None:
        """Return the version as Lightning says it: that given, or the N of `version_N`."""
        if self.version is not None or (run is None and self.save_dir is None):
            return self.version
        name = self.version_in(run)
        number = name.removeprefix("version_")
        return int(number) if number != name and number.isdecimal() else name


def _part(url: str, index: int) -> str:
    parts = [part for part in url.split("/") if part]
    return parts[index] if len(parts) >= abs(index) else ""
