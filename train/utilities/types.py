"""Types for annotations of a module's methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

STEP_OUTPUT = torch.Tensor | Mapping[str, Any] | None
OptimizerLRScheduler = Any
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
LRSchedulerTypeUnion = torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau
