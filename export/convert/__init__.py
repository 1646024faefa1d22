"""From a torch module to the file that a backend takes.

A new format is one module with one function, one line in `shipline/plugins.py`, and the backend that names it as its
`format`.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import nn

from shipline.export.rows import Rows
from shipline.signature import Signature


class Convert(Protocol):
    """Makes a file of a module."""

    def __call__(
        self, module: nn.Module, rows: Rows, signature: Signature, compute: Literal["float32", "bfloat16"]
    ) -> bytes:
        """Return the module in this format, dynamic in its batch dimension.

        Args:
            module: in evaluation mode; it stays as it is.
            rows: real inputs, to trace it with.
            signature: what the file takes and gives, whatever it computes in.
            compute: what to compute in, where it is the file that says so and not the backend's settings.

        Raises:
            GateError: it cannot be done; the message says why, and that nothing was published.
        """
        ...
