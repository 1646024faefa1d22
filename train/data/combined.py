"""Several loaders as one; modes and meanings are those of Lightning's CombinedLoader."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

from shipline.errors import ConfigError
from shipline.train.data.feed import Feed, State, feed
from shipline.train.hooks import is_foreign

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
_MODES = ("min_size", "max_size_cycle", "max_size", "sequential")


class CombinedLoader:
    """Takes a batch from each of several loaders at once, or from one after the other.

    Args:
        iterables: loaders in lists and dicts; a batch has the same form.
        mode: "min_size" ends with the shortest, "max_size_cycle" begins those anew that end before the longest,
            "max_size" gives None in their place, "sequential" takes one loader after the other.
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in _MODES:
            raise ConfigError(f"CombinedLoader has mode={mode!r}; choose one of {', '.join(_MODES)}.")
        self.iterables = iterables
        self.mode = mode

    @property
    def flattened(self) -> list[Any]:
        """The loaders in a list."""
        return flatten(self.iterables)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches without keeping a position: (batch, index, loader's index), as Lightning's does."""
        if self.mode == "sequential":
            for loader_index, loader in enumerate(self.flattened):
                for index, batch in enumerate(loader):
                    yield batch, index, loader_index
            return
        for index, (batch, _last) in enumerate(CombinedFeed(self).batches(None)):
            yield batch, index, 0


def own_combined(loader: Any) -> Any:
    """Return Lightning's CombinedLoader as ours, and any other loader as it is."""
    if not is_foreign(loader, "CombinedLoader"):
        return loader
    return CombinedLoader(loader.iterables, loader._mode)  # noqa: SLF001 -- it has no other name


def any_feed(loader: Any, every: int = 1, first: int = 0) -> Feed:
    """Return the loader, which may be several side by side, as a Feed of each `every`-th batch from `first` on."""
    if isinstance(loader, CombinedLoader):
        return CombinedFeed(loader, every, first)
    return feed(loader, every, first)


class CombinedFeed(Feed):
    """Feeds side by side: each batch holds one of each."""

    def __init__(self, combined: CombinedLoader, every: int = 1, first: int = 0) -> None:
        super().__init__(None, every, first)
        if combined.mode == "sequential":
            raise ConfigError(
                "Training takes a batch from each loader at once: give CombinedLoader another mode than 'sequential', "
                "or one loader over a ConcatDataset."
            )
        self._combined = combined
        self._feeds = [feed(loader, every, first) for loader in combined.flattened]
        self._over: list[bool] = []

    def __len__(self) -> int:
        lengths = [len(part) for part in self._feeds]
        return (min if self._combined.mode == "min_size" else max)(lengths, default=0)

    def set_epoch(self, epoch: int) -> None:
        """Tell the samplers which epoch begins."""
        for part in self._feeds:
            part.set_epoch(epoch)

    def end_epoch(self) -> None:
        """Say that the epoch is over."""
        super().end_epoch()
        for part in self._feeds:
            part.end_epoch()

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        super().load_state_dict(state)
        for part, own in zip(self._feeds, state["feeds"], strict=True):
            part.load_state_dict(own)

    def _begin(self) -> Iterator[Any]:
        self._over = [False] * len(self._feeds)
        return self._side_by_side()

    def _go_on(self, state: State) -> Iterator[Any]:
        self._over = list(state["over"])
        return self._side_by_side()

    def _side_by_side(self) -> Iterator[Any]:
        return self._joined([part.each() for part in self._feeds])

    def _joined(self, sources: list[Iterator[Any]]) -> Iterator[Any]:
        ends = any if self._combined.mode == "min_size" else all
        while sources:
            batch = [self._next(index, sources) for index in range(len(sources))]
            if ends(self._over):
                return
            yield unflatten(self._combined.iterables, iter(batch))

    def _next(self, index: int, sources: list[Iterator[Any]]) -> Any:
        for batch in sources[index]:
            return batch
        self._over[index] = True
        if self._combined.mode != "max_size_cycle" or all(self._over):
            return None
        self._feeds[index].end_epoch()
        sources[index] = self._feeds[index].each()
        return next(sources[index], None)

    def _extra(self, done: int) -> State:
        behind = self.position - done
        feeds = [part.state_dict(max(0, part.position - behind)) for part in self._feeds]
        return {"feeds": feeds, "over": list(self._over)}

    def _between_epochs(self) -> State:
        return {"feeds": [part.state_dict() for part in self._feeds]}


def flatten(loaders: Any) -> list[Any]:
    """Return the loaders in nested lists and dicts, in order."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        return list(itertools.chain.from_iterable(flatten(loader) for loader in loaders))
    return [loaders]


def unflatten(form: Any, items: Iterator[Any]) -> Any:
    """Return the items in the form of nested lists and dicts."""
    if isinstance(form, dict):
        return {key: unflatten(value, items) for key, value in form.items()}
    if isinstance(form, list | tuple):
        return [unflatten(value, items) for value in form]
    return next(items)
