"""Lightning's classes as types, without importing Lightning: who names a class of his in a configuration imports it."""

from __future__ import annotations

from abc import ABC

from shipline.train.hooks import is_foreign_class


def foreign(kind: str) -> type:
    """Return a class whose subclasses are those of Lightning's `kind`, such as "LightningModule"; of either package."""

    class Foreign(ABC):  # noqa: B024 -- nothing derives from it; it only knows who does from another
        """One of Lightning's."""

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            return is_foreign_class(other, kind)

    Foreign.__name__ = f"Lightning{kind.removeprefix('Lightning')}"
    Foreign.__qualname__ = f"foreign.<locals>.{Foreign.__name__}"
    return Foreign
