"""What becomes of a run that was stopped when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import Scripted, new_trainer, numbers

import shipline as sl


def test_a_run_that_early_stopping_has_ended_trains_no_further_unless_told_to(tmp_path: Path) -> None:
    """It may have been killed after its last checkpoint, or be started again by itself."""

    def fit(patience: int, ckpt_path: str | None = None, **options: Any) -> int:
        stopping = sl.EarlyStopping("score", patience=patience)
        trainer = new_trainer(tmp_path, max_epochs=9, callbacks=stopping, **options)
        trainer.fit(Scripted([3.0, *[4.0] * 9]), numbers(2), numbers(1), ckpt_path=ckpt_path)
        return trainer.global_step

    assert fit(2) == fit(2, "last") == 6
    assert fit(3, "last") == 8
    assert fit(2, val_check_interval=0.5) == fit(2, "last", val_check_interval=0.5) == 3
