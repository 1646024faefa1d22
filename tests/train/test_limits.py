"""How much of the data a run takes, and where several loaders give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import Mlp, Recorder, bare_trainer, new_trainer, numbers, on_hook, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError


class Seen(Mlp):
    """Counts the batches of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {"train": 0, "val": 0, "test": 0, "predict": 0}
        self.rows: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["train"] += 1
        self.rows.append(float(batch[0].sum()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["val"] += 1

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["test"] += 1

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["predict"] += 1
        return batch[1]


def seen(**options: Any) -> dict[str, int]:
    module, trainer = Seen(), bare_trainer(**({"max_epochs": 1, "num_sanity_val_steps": 0} | options))
    trainer.fit(module, train_loader(320), val_loader(320))
    trainer.test(module, val_loader(320))
    trainer.predict(module, val_loader(320))
    return module.seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (10, 10, 10, 10)),
        ({"limit_train_batches": 0.5, "limit_val_batches": 0.3}, (5, 3, 10, 10)),
        ({"limit_test_batches": 4, "limit_predict_batches": 0.1}, (10, 10, 4, 1)),
        ({"limit_train_batches": 1.0, "limit_val_batches": 0.0, "limit_predict_batches": 99}, (10, 0, 10, 10)),
        ({"overfit_batches": 2}, (2, 2, 10, 10)),
        ({"overfit_batches": 0.2, "max_epochs": 2}, (4, 4, 10, 10)),
        ({"fast_dev_run": True, "max_epochs": 7}, (1, 1, 1, 1)),
        ({"fast_dev_run": 3}, (3, 3, 3, 3)),
    ],
)
def test_limits(options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert tuple(seen(**options).values()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit_train_batches", 1.5), ("limit_train_batches", -1), ("val_check_interval", 0),
        ("limit_val_batches", -0.1), ("overfit_batches", True), ("accumulate_grad_batches", 0),
        ("gradient_clip_val", -1.0), ("gradient_clip_val", float("nan")), ("gradient_clip_algorithm", "norn"),
        ("nonfinite_loss", "explode"), ("deterministic", "maybe"), ("fast_dev_run", -1), ("min_steps", 1.0),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"Trainer has {name}={value!r}; "):
        bare_trainer(**{name: value})


def test_a_share_that_cannot_be_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"A limit of 0\.01 leaves none of 10 batches"):
        seen(limit_train_batches=0.01)
    stream = iter(train_loader())
    with pytest.raises(ConfigError, match=r"A limit of 0\.5 is a share .* no length"):
        bare_trainer(limit_train_batches=0.5, max_epochs=1).fit(Mlp(), (batch for batch in stream))


def test_overfitting_takes_the_same_rows_every_time() -> None:
    module = Seen()
    bare_trainer(max_epochs=3, overfit_batches=2).fit(module, train_loader(320, shuffle=True))
    assert module.rows[:2] == module.rows[2:4] == module.rows[4:]


def test_a_fast_run_writes_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    stop = sl.EarlyStopping("nobody_logs_this")
    trainer = new_trainer(tmp_path, fast_dev_run=2, logger=recorder, callbacks=[stop, sl.ModelCheckpoint()])
    run = trainer.fit(Mlp(), train_loader(), val_loader())
    assert trainer.global_step == 2
    assert (run.url, run.last_url, recorder.rows) == (None, None, [])
    assert not any(tmp_path.iterdir())


def test_min_steps_go_before_a_stop() -> None:
    stop = on_hook("on_train_start", lambda trainer, _m: setattr(trainer, "should_stop", True))
    trainer = bare_trainer(max_epochs=9, min_steps=5, callbacks=[stop])
    trainer.fit(Mlp(), train_loader(64))
    assert (trainer.global_step, trainer.epochs_done) == (5, 3)  # at once, not at the end of the epoch


class Loaders(Mlp):
    """Logs the mean of the numbers that each loader has."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("mean", batch[0].mean())
        self.log("all", batch[0].mean(), add_dataloader_idx=False)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return dataloader_idx, batch[0].tolist()


def test_several_loaders_have_metrics_of_their_own() -> None:
    where: list[int] = []
    look = on_hook("on_validation_batch_end", lambda _t, _m, _o, _b, _i, index=-1: where.append(index))
    trainer = bare_trainer(callbacks=[look])
    results = trainer.validate(Loaders(), [numbers(3, 2), numbers(10, 4)])
    assert results == [
        {"mean/dataloader_idx_0": 1.0, "all": 48 / 13}, {"mean/dataloader_idx_1": 4.5, "all": 48 / 13}
    ]  # fmt: skip
    assert where == [0, 0, 1, 1, 1]
    assert trainer.predict(Loaders(), [numbers(2), numbers(1)]) == [[(0, [0.0]), (0, [1.0])], [(1, [0.0])]]
    assert trainer.validate(Loaders(), numbers(3, 2)) == [{"mean": 1.0, "all": 1.0}]
    fitted = bare_trainer(max_epochs=1)
    fitted.fit(Mlp(), train_loader(64), {"a": val_loader(32), "b": val_loader(64)})
    assert {"val_acc/dataloader_idx_0", "val_acc/dataloader_idx_1"} <= set(fitted.callback_metrics)


def test_a_module_may_bring_its_loaders_callbacks_and_late_layers() -> None:
    class Whole(Mlp):
        late: nn.Linear

        def configure_model(self) -> None:
            if not hasattr(self, "late"):
                self.late = nn.Linear(64, 64)

        def setup(self, stage: str) -> None:
            self.stage = stage

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(self.late(image))

        def train_dataloader(self) -> Any:
            return train_loader(64)

        def val_dataloader(self) -> Any:
            return val_loader(32)

        def configure_callbacks(self) -> Any:
            return sl.EarlyStopping("val_acc", mode="max", patience=1)

    module, trainer = Whole(), bare_trainer(max_epochs=2, callbacks=[sl.EarlyStopping("nobody_logs_this")])
    trainer.fit(module)
    assert module.stage == "fit"
    assert [c.monitor for c in trainer.callbacks if isinstance(c, sl.EarlyStopping)] == ["val_acc"]
    assert "val_acc" in trainer.validate(module)[0]
    assert module.stage == "validate"


def test_batches_pass_the_transfer_hooks_in_order() -> None:
    class Transfers(Mlp):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [*batch, "before"]

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            assert batch[2] == "before"
            return [*super().transfer_batch_to_device(batch[:2], device, dataloader_idx), "moved"]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert batch[2] == "moved"
            return batch[:2]

    bare_trainer(max_epochs=1).fit(Transfers(), train_loader(64), val_loader(32))

    class Data(sl.DataModule):
        moved = 0

        def train_dataloader(self) -> Any:
            return train_loader(64)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.moved += 1
            return batch

    data = Data()
    bare_trainer(max_epochs=1).fit(Mlp(), datamodule=data)
    assert data.moved == 2


def test_torch_is_left_as_it_was() -> None:
    during: list[Any] = []

    def look(*_arguments: Any) -> None:
        during.append((torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()))

    callback = on_hook("on_train_batch_end", look)
    bare_trainer(max_steps=1, deterministic=True, detect_anomaly=True, callbacks=[callback]).fit(Mlp(), train_loader())
    bare_trainer(max_steps=1, callbacks=[callback]).fit(Mlp(), train_loader())
    assert during == [(True, True), (False, False)]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_a_setting(inference_mode: bool) -> None:
    found: list[tuple[bool, bool]] = []
    look = on_hook(
        "on_validation_start", lambda *_a: found.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
    )
    bare_trainer(inference_mode=inference_mode, callbacks=[look]).validate(Mlp(), val_loader())
    assert found == [(inference_mode, False)]
