"""What to make of a checkpoint, and how much it may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shipline.errors import ConfigError

Precision = Literal["float32", "int8"]

# The largest allowed difference from the trained module, in parts of the largest value that an output takes.
TOLERANCE: dict[str, float] = {"float32": 1e-4, "int8": 5e-2}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to export.

    Args:
        precision: "float32", or "int8": weights and activations in 8 bits, scales measured on training rows.
        metric: the metric that the export may not cost; default: the one that the checkpoint was chosen by.
        mode: "min" or "max" of that metric is best; default: as the checkpoint says.
        max_metric_drop: how much worse than the trained module's that metric may be, in its own unit.
        tolerance: allowed difference of outputs, in parts of the largest; default: 1e-4 (float32), 5e-2 (int8).
        min_speedup: how many times as fast as float32 an int8 graph must be, here, over batches of 1 and the largest.
        calibration_rows: training rows that int8 scales are measured on.
        proof_rows: validation rows that parity is proved on.
        golden_rows: validation rows kept in the artifact, for servers to check themselves with.
        max_batch_size: the largest batch that is proved, and that servers make.
    """

    precision: Precision = "float32"
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    max_metric_drop: float = 0.005
    tolerance: float | None = None
    min_speedup: float = 1.0
    calibration_rows: int = 512
    proof_rows: int = 256
    golden_rows: int = 8
    max_batch_size: int = 32

    def __post_init__(self) -> None:
        if self.precision not in tuple(TOLERANCE):
            raise ConfigError(f"Recipe has precision={self.precision!r}; choose one of {', '.join(TOLERANCE)}.")
        if self.mode not in (None, "min", "max"):
            raise ConfigError(f"Recipe has mode={self.mode!r}; choose 'min' or 'max'.")
        for name in ("calibration_rows", "proof_rows", "golden_rows", "max_batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"Recipe has {name}={value!r}; set a whole number from 1 on.")
        for name in ("max_metric_drop", "tolerance", "min_speedup"):
            value = getattr(self, name)
            if name == "tolerance" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"Recipe has {name}={value!r}; set a number from 0 on.")

    def allowed_difference(self, precision: str) -> float:
        """Return the tolerance, in parts of the largest output, for a graph of this precision."""
        own = precision == self.precision and self.tolerance is not None
        return self.tolerance if own and self.tolerance is not None else TOLERANCE[precision]
