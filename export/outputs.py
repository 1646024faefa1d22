"""What forward gives: tensors in a structure. None stands there for what was not asked for, such as a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Structure:
    """How outputs lie in what forward gives."""

    spec: pytree.TreeSpec
    present: tuple[bool, ...]

    def filled(self, outputs: Sequence[Any]) -> Any:
        """Return the structure with these outputs in their places."""
        left = iter(outputs)
        return pytree.tree_unflatten([next(left) if there else None for there in self.present], self.spec)


def taken_apart(given: Any) -> tuple[list[Any], Structure]:
    """Return the outputs in order, and how they lie."""
    leaves, spec = pytree.tree_flatten(given)
    present = tuple(leaf is not None for leaf in leaves)
    return [leaf for leaf in leaves if leaf is not None], Structure(spec, present)


def outputs_of(given: Any) -> list[Any]:
    """Return the outputs in order."""
    return taken_apart(given)[0]
