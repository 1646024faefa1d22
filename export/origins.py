"""Where a trained module may come from."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath

from torch import nn

from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import ConfigError
from shipline.export.huggingface import huggingface, is_pretrained
from shipline.export.lightning import SUFFIX, LightningCheckpoint
from shipline.export.source import Source
from shipline.store import open_store
from shipline.store.commit import MANIFEST

#: What can be exported: a URL, a checkpoint, a module; or a source, which says all that is to be known.
Exportable = str | PathLike[str] | Checkpoint | LightningCheckpoint | nn.Module | Source


def source_of(trained: Exportable, module_class: Callable[..., nn.Module] | None = None) -> Source:
    """Return what is exported, not yet with what evaluates it.

    Args:
        trained: a checkpoint or its URL, a module, or a source.
        module_class: what a checkpoint is of. It comes from the caller, never from a file.

    Raises:
        ConfigError: it is none of these, or nobody said which class it is of.
    """
    if isinstance(trained, Source):
        return trained
    if isinstance(trained, nn.Module):
        return Source.of_module(trained)
    if isinstance(trained, str | PathLike) and is_pretrained(trained):
        return huggingface(trained)
    if isinstance(trained, str | PathLike):
        trained = opened(fspath(trained))
    if isinstance(trained, LightningCheckpoint):
        if module_class is None:
            raise ConfigError(
                f"Which class is {trained.url} of? Code is never chosen by a file: give module=YourLightningModule."
            )
        return trained.source(module_class)
    if not isinstance(trained, Checkpoint):
        raise ConfigError(
            f"What is to be exported is a {type(trained).__name__}: give what Trainer.fit returned, a checkpoint or "
            "its URL, or a module (an object, not its class)."
        )
    if module_class is None:
        raise ConfigError(
            f"Which class is {trained} of? It says {trained.manifest.module!r}, but text in a checkpoint is not "
            "trusted to choose code. Give module=YourModule."
        )
    return Source.of_checkpoint(trained, module_class)


def opened(url: str) -> Checkpoint | LightningCheckpoint:
    """Return the checkpoint at a URL: one of ours, which is a directory, or a file of Lightning's."""
    if url.endswith(SUFFIX) and not open_store(url).exists(MANIFEST):
        return LightningCheckpoint.open(url)
    return open_checkpoint(url)
