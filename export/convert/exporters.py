"""What exporters have in common: they talk, and what goes wrong is wrapped in how to debug them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch import nn

from shipline.errors import GateError


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Hide what an exporter says of itself: deprecations inside torch, optional packages that it looks for."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in found:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(found, levels, strict=True):
                logger.setLevel(level)


def refused(module: nn.Module, how: str, error: BaseException, advice: str = "") -> GateError:
    """Return the error for a module on which an exporter gave up, with its first cause."""
    root = root_of(error)
    said = f"{type(root).__name__}: {str(root).strip()[:800].rstrip('.')}"
    return GateError(f"{type(module).__name__} cannot be {how}, so nothing was published: {said}.{advice}")


def root_of(error: BaseException) -> BaseException:
    """Return the first cause."""
    return error if error.__cause__ is None else root_of(error.__cause__)
