"""Checkpoints of PyTorch Lightning (`.ckpt`), read without running what is in them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from shipline.errors import IntegrityError, NotFoundError
from shipline.export.apart import apart
from shipline.export.source import Source, check_finite, code_of, construct, load_weights, place_of
from shipline.lineage import Lineage, describe_code, publishable
from shipline.store import open_store, redact, split

SUFFIX = ".ckpt"
TIMEOUT_S = 900.0
_MODE = re.compile(r"'mode': '(min|max)'")
#: What only a resumed run needs.
_UNUSED = ("optimizer_states", "lr_schedulers", "loops")
#: What LightningCLI notes down beside the arguments.
_OF_THE_CLI = ("_instantiator", "_class_path")


class Lost:
    """Stands for an object whose class is not plain data: what would make one again is code in a file."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True)
class LightningCheckpoint:
    """A `.ckpt` file.

    Args:
        url: where it is.
        digest: its sha256.
        content: what it holds, with `Lost` in place of what is no plain data.
    """

    url: str
    digest: str
    content: dict[str, Any]

    @classmethod
    def open(cls, url: str) -> LightningCheckpoint:
        """Read the file.

        Raises:
            NotFoundError: it is not there.
            IntegrityError: it is no checkpoint of Lightning's, or cannot be read without running code that is in it.
        """
        data = _read(url)
        apart(lambda: _try(data, url), f"Reading {redact(url)}", TIMEOUT_S)
        content = _parsed(data, url)
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            raise IntegrityError(
                f"{redact(url)} has no state_dict: it is no checkpoint of Lightning's. Check the path."
            )
        kept = {name: value for name, value in content.items() if name not in _UNUSED}
        return cls(url, hashlib.sha256(data).hexdigest(), kept)

    def source(self, module_class: Callable[..., nn.Module]) -> Source:
        """Return it as a source; the class comes from the caller."""
        monitor, mode, score = self._best()
        progress = {name: self.content.get(name) for name in ("epoch", "global_step", "pytorch-lightning_version")}
        lineage = Lineage(
            **describe_code(code_of(module_class)),
            config=publishable({"hyper_parameters": self._plain(), **progress}),
            checkpoint=place_of(redact(self.url)),
            checkpoint_digest=self.digest,
        )
        recorded = {monitor: score} if monitor is not None and score is not None else {}
        build = functools.partial(self.build, module_class)
        return Source(build=build, lineage=lineage, monitor=monitor, mode=mode, recorded=dict(recorded))

    def build(self, module_class: Callable[..., nn.Module]) -> nn.Module:
        """Return the module in evaluation mode, made as Lightning's `load_from_checkpoint` makes it.

        Raises:
            ConfigError, IntegrityError, GateError: as `shipline.export.source.rebuild`.
        """
        name = getattr(module_class, "__qualname__", str(module_class))
        accepted = self._accepted(module_class)
        module = construct(module_class, name, accepted, self._lost(accepted), redact(self.url))
        content = {**self.content, "state_dict": dict(self.content["state_dict"])}
        for hook, arguments in (("configure_model", ()), ("on_load_checkpoint", (content,))):
            getattr(module, hook, lambda *_: None)(*arguments)
        load_weights(
            module, content["state_dict"], name, redact(self.url), strict=getattr(module, "strict_loading", True)
        )
        check_finite(module, redact(self.url))
        return module.eval()

    @property
    def keeps_arguments(self) -> bool:
        """Whether the module has called `save_hyperparameters`."""
        return bool(self.content.get("hyper_parameters"))

    @property
    def lost(self) -> list[str]:
        """The constructor's arguments that are no plain data."""
        return self._lost(self.content.get("hyper_parameters") or {})

    def _accepted(self, module_class: Callable[..., nn.Module]) -> dict[str, Any]:
        """The kept arguments that the class takes, without those that the caller gives."""
        kept = self.content.get("hyper_parameters") or {}
        kept = (
            {name: value for name, value in kept.items() if name not in _OF_THE_CLI} if isinstance(kept, dict) else {}
        )
        parameters = inspect.signature(module_class).parameters
        name = self.content.get("hparams_name")
        if isinstance(name, str) and name in parameters:  # they were given as one argument, a dict
            kept = {name: kept}
        given = module_class.keywords if isinstance(module_class, functools.partial) else {}
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        return {key: value for key, value in kept.items() if key not in given and (takes_all or key in parameters)}

    def _lost(self, arguments: Mapping[str, Any]) -> list[str]:
        return [name for name, value in arguments.items() if _holds_lost(value)] if isinstance(arguments, dict) else []

    def _plain(self) -> dict[str, Any]:
        kept = self.content.get("hyper_parameters") or {}
        return {k: v for k, v in kept.items() if not _holds_lost(v)} if isinstance(kept, dict) else {}

    def _best(self) -> tuple[str | None, Literal["min", "max"] | None, float | None]:
        """What a ModelCheckpoint says of this file: the metric that counts, which way, and its score where known."""
        callbacks = self.content.get("callbacks")
        for key, state in callbacks.items() if isinstance(callbacks, dict) else ():
            monitor = state.get("monitor") if isinstance(state, dict) and "ModelCheckpoint" in str(key) else None
            if not isinstance(monitor, str):
                continue
            mode = _MODE.search(str(key))
            scores = {str(path).rpartition("/")[2]: score for path, score in (state.get("best_k_models") or {}).items()}
            score = scores.get(self.url.rpartition("/")[2])
            return monitor, mode[1] if mode else None, None if score is None else float(score)  # type: ignore[return-value]
        return None, None, None


def _read(url: str) -> bytes:
    if "://" in url:
        parent, name = split(url)
        return open_store(parent).read(name)
    try:
        return Path(url).read_bytes()
    except OSError as error:
        raise NotFoundError(f"Cannot read {url!r}: {error.strerror}. Check the path.") from error


def _try(data: bytes, url: str) -> None:
    """Read it, as it is read here once it is known to harm nobody: what comes of it must be in this process."""
    _parsed(data, url)


def _parsed(data: bytes, url: str) -> Any:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        with torch.serialization.safe_globals([(Lost, name) for name in names]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged archives, and of objects that nothing can stand for
        raise IntegrityError(
            f"{redact(url)} cannot be read without running code that is in it: {str(error).strip()[:300]} Load it "
            "where you trust it, and export the module: sl.export(YourModule.load_from_checkpoint(...), ...)."
        ) from error


def _holds_lost(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_lost, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_lost, value))
    return isinstance(value, Lost) or value is Lost
