"""The loops of a run: fit, evaluate, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shipline.train.loops.evaluation import evaluate, predict
from shipline.train.loops.fit import fit

if TYPE_CHECKING:
    from shipline.train.stage import Work
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

__all__ = ["evaluate", "fit", "predict", "run"]


def run(trainer: Trainer, stage: Work, module: Any, data: Any, strategy: Strategy | None, **options: Any) -> Any:
    """Run a stage on this worker, or a function of the user's own in place of a module; return what it finds."""
    if stage == "run":
        from shipline.train.plain import run_function

        return run_function(trainer, module, options["resume"], strategy)
    if stage == "fit":
        return fit(trainer, module, data, options["resume"], strategy)
    if stage == "predict":
        return predict(trainer, module, data, strategy, **options)
    return evaluate(trainer, module, data, stage, strategy)
