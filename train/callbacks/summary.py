"""What a module is made of."""

from __future__ import annotations

from shipline.train.callbacks.base import Callback


class ModelSummary(Callback):
    """Prints the module's parts.

    Args:
        max_depth: how many levels of submodules to show.
    """

    def __init__(self, max_depth: int = 1) -> None:
        self.max_depth = max_depth
