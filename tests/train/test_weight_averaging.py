"""Averaged weights: over the last epochs (SWA), over steps, exponentially."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import Backbone, by_both, check_exact_resume, fit, largest_difference
from lightning_digits import LightningDigits
from torch.optim.swa_utils import get_ema_avg_fn
from training import Mlp, bare_trainer, new_trainer, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.train import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")


# ---- stochastic weight averaging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"swa_epoch_start": 2, "annealing_epochs": 2},
        {"swa_epoch_start": 0.5, "annealing_strategy": "linear"},
        {"swa_epoch_start": 1, "device": None, "avg_fn": lambda average, weight, _count: 0.7 * average + 0.3 * weight},
    ],
    ids=["cos", "linear", "own function"],
)
def test_swa_ends_with_lightnings_weights(norm: bool, options: dict[str, Any]) -> None:
    """Batch norm's statistics included, which come of a pass over the training data."""
    ours, others = by_both(
        lambda: LightningDigits(norm=norm, schedule=True),
        StochasticWeightAveraging(0.05, **options),
        theirs.StochasticWeightAveraging(0.05, **options),
    )
    assert largest_difference(ours, others) < 1e-6


@pytest.mark.parametrize("cut_at", [5, 20, 37])
@pytest.mark.parametrize("schedule", [False, True])
def test_swa_resumes_exactly(tmp_path: Path, cut_at: int, schedule: bool) -> None:
    """Killed before, while and after the learning rate is changed."""
    check_exact_resume(
        tmp_path,
        lambda: Backbone(schedule=schedule),
        lambda: StochasticWeightAveraging(0.03, swa_epoch_start=2, annealing_epochs=2),
        cut_at,
    )


def test_the_average_is_validated_and_kept(tmp_path: Path) -> None:
    module, keep = Backbone(dropout=0.0), ModelCheckpoint()
    swa = StochasticWeightAveraging(0.05, swa_epoch_start=2)
    trainer = new_trainer(tmp_path, max_epochs=3, callbacks=[swa, keep])
    run = trainer.fit(module, train_loader(128), val_loader(64))
    again = Backbone.load_from_checkpoint(str(run.last_url))
    assert same_weights(again, module)
    assert run.checkpoint.url == run.last_url
    [found] = bare_trainer().validate(again, val_loader(64))
    assert found["val_loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-5)
    assert swa.n_averaged == 2


def test_a_run_that_ended_with_the_average_can_go_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    """And one that has nothing left to train keeps the average."""

    def run(name: str, epochs: int, ckpt_path: str | None = None) -> Backbone:
        torch.manual_seed(0)
        module, swa = Backbone(), StochasticWeightAveraging(0.05, swa_epoch_start=2)
        trainer = new_trainer(tmp_path, name=name, max_epochs=epochs, callbacks=[swa])
        trainer.fit(module, train_loader(64, 16), val_loader(16), ckpt_path=ckpt_path)
        return module

    whole = run("whole", 5)
    short = run("parts", 3)
    assert same_weights(run("parts", 3, "last"), short)
    assert same_weights(run("parts", 5, "last"), whole)
    assert not same_weights(short, whole)


class Dies(StochasticWeightAveraging):
    """Ends the run before the average is made."""

    state_key = StochasticWeightAveraging.__name__

    def on_train_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.url)
        raise RuntimeError("power cut")

    url = ""


def test_a_run_killed_between_its_last_epoch_and_the_average_gets_the_average(tmp_path: Path) -> None:
    def run(kind: type[StochasticWeightAveraging], ckpt_path: str | None = None) -> Backbone:
        torch.manual_seed(0)
        module, swa = Backbone(), kind(0.05, swa_epoch_start=2)
        trainer = bare_trainer(max_epochs=3, callbacks=[swa])
        trainer.fit(module, train_loader(64, 16), val_loader(16), ckpt_path=ckpt_path)
        return module

    whole = run(StochasticWeightAveraging)
    Dies.url = str(tmp_path / "end")
    with pytest.raises(RuntimeError, match="power cut"):
        run(Dies)
    assert same_weights(run(StochasticWeightAveraging, Dies.url), whole)


class Manual(Backbone):
    automatic_optimization = False


class Two(Mlp):
    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swa_lrs": 0.0}, r"has swa_lrs=0\.0; set a float above 0, or a list of them"),
        ({"swa_lrs": [0.1, "x"]}, "has swa_lrs="),
        ({"swa_epoch_start": 0}, "has swa_epoch_start=0; set a whole number from 1 on, or a share"),
        ({"swa_epoch_start": 1.5}, r"has swa_epoch_start=1\.5"),
        ({"annealing_strategy": "sin"}, "has annealing_strategy='sin'; choose 'cos' or 'linear'"),
        ({"swa_lr": 0.1}, r"has no option 'swa_lr'\. Did you mean 'swa_lrs'\?"),
    ],
)
def test_swa_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StochasticWeightAveraging(**{"swa_lrs": 0.1} | options)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Two(), {}, "works with one optimizer and at most one scheduler, and Two has 2 and 0"),
        (Manual(), {}, "Manual steps its optimizer itself: use group or layer norm"),
        (
            Mlp(),
            {"swa_lrs": [0.1, 0.2], "swa_epoch_start": 1},
            "has 2 swa_lrs, and the optimizer has 1 parameter groups",
        ),
        (Mlp(), {"swa_epoch_start": 0.5, "epochs": -1}, "has no max_epochs: set one of them to a whole number"),
    ],
)
def test_what_swa_cannot_average(module: sl.Module, options: dict[str, Any], message: str) -> None:
    epochs = options.get("epochs", 2)
    swa = StochasticWeightAveraging(**{"swa_lrs": 0.1} | {k: v for k, v in options.items() if k != "epochs"})
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=epochs, max_steps=9, callbacks=swa).fit(module, train_loader(32))


# ---- averages over steps ---------------------------------------------------------------------------------------------


class TheirEveryEpoch(theirs.WeightAveraging):
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


class EveryEpoch(WeightAveraging):
    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        (WeightAveraging(), theirs.WeightAveraging()),
        (WeightAveraging(use_buffers=False), theirs.WeightAveraging(use_buffers=False)),
        (EveryEpoch(avg_fn=get_ema_avg_fn(0.5)), TheirEveryEpoch(avg_fn=get_ema_avg_fn(0.5))),
        (EMAWeightAveraging(decay=0.9), theirs.EMAWeightAveraging(decay=0.9)),
        (
            EMAWeightAveraging("cpu", decay=0.8, update_every_n_steps=3, update_starting_at_step=5),
            theirs.EMAWeightAveraging("cpu", decay=0.8, update_every_n_steps=3, update_starting_at_step=5),
        ),
        (
            EMAWeightAveraging(decay=0.8, update_every_n_steps=0, update_starting_at_epoch=1),
            theirs.EMAWeightAveraging(decay=0.8, update_every_n_steps=0, update_starting_at_epoch=1),
        ),
    ],
    ids=["mean", "no buffers", "epochs", "ema", "ema from a step", "ema from an epoch"],
)
def test_averages_are_lightnings(ours: Any, others: Any) -> None:
    one, other = by_both(lambda: LightningDigits(norm=True), ours, others, epochs=3, accumulate_grad_batches=2)
    assert largest_difference(one, other) < 1e-5


@pytest.mark.parametrize("cut_at", [4, 21])
@pytest.mark.parametrize(
    "make",
    [
        WeightAveraging,
        lambda: EMAWeightAveraging(decay=0.9, update_every_n_steps=2),
        lambda: EveryEpoch(use_buffers=False),
    ],
    ids=["mean", "ema", "epochs"],
)
def test_averages_resume_exactly(tmp_path: Path, make: Any, cut_at: int) -> None:
    check_exact_resume(tmp_path, lambda: Backbone(schedule=True), make, cut_at)


def test_validation_sees_and_checkpoints_hold_the_average_and_training_does_not(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(hook: str) -> sl.Callback:
        def act(_trainer: Any, module: Any, *_: Any) -> None:
            seen[hook] = {name: tensor.clone() for name, tensor in module.state_dict().items()}

        return on_hook(hook, act)

    class Validated(Backbone):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen["validation_step"] = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            super().validation_step(batch, batch_idx)

    module, ema, hooks = Validated(), EMAWeightAveraging(decay=0.9), ("on_validation_start", "on_validation_end")
    trainer = fit(tmp_path, module, ema, *map(look, hooks), epochs=2)
    trained, averaged = seen["on_validation_start"], seen["validation_step"]
    assert all(torch.equal(trained[name], seen["on_validation_end"][name]) for name in trained)
    assert not torch.equal(trained["layers.0.weight"], averaged["layers.0.weight"])
    assert all(torch.equal(averaged[name], module.state_dict()[name]) for name in averaged)
    kept = trainer.checkpoint_callback
    assert kept is not None
    saved = Validated.load_from_checkpoint(kept.last_model_path)  # after step 15 of 16
    assert not torch.equal(saved.layers[0].weight, module.layers[0].weight)

    trainer = new_trainer(tmp_path, name="epochs", max_epochs=2, callbacks=EMAWeightAveraging(decay=0.9))
    run = trainer.fit(module, train_loader(64), val_loader(32))
    again = Validated.load_from_checkpoint(str(run.last_url))
    assert same_weights(again, module)
    [found] = bare_trainer().validate(again, val_loader(32))
    assert found["val_loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-6)


@pytest.mark.parametrize("averaging", [False, True])
def test_a_checkpoint_made_within_validation_is_exact(tmp_path: Path, averaging: bool) -> None:
    """The module has the average then; what is trained must come back, and the average as it was."""
    url = str(tmp_path / "within")

    def save(trainer: sl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and not Path(url).exists():
            trainer.save_checkpoint(url)
            if trainer.max_epochs == 2:
                raise KeyboardInterrupt

    def run(epochs: int, ckpt_path: str | None = None) -> tuple[Mlp, Any]:
        torch.manual_seed(0)
        module, callbacks = Mlp(dropout=0.3), [EMAWeightAveraging(decay=0.8)] if averaging else []
        saving = [on_hook("on_validation_batch_end", save)] if ckpt_path is None else []
        trainer = bare_trainer(max_epochs=epochs, callbacks=[*callbacks, *saving])
        trainer.fit(module, train_loader(64, 16), val_loader(32, 16), ckpt_path=ckpt_path)
        return module, trainer.callback_metrics

    whole, metrics = run(3)
    shutil.rmtree(url)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    resumed, again = run(3, url)
    assert same_weights(resumed, whole)
    assert again == metrics


def test_averaging_begins_with_a_checkpoint_that_knows_no_average(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(64))
    trainer = bare_trainer(max_epochs=1, callbacks=EMAWeightAveraging())
    again = Mlp()
    trainer.fit(again, train_loader(64), ckpt_path=run.last_url)
    assert "was made without EMAWeightAveraging: the average begins with its weights" in caplog.text
    assert same_weights(again, run.module)


def test_shared_weights_are_averaged_once_and_stay_shared(tmp_path: Path) -> None:
    class Tied(Mlp):
        def __init__(self) -> None:
            super().__init__(hidden=64)
            self.other = torch.nn.Linear(64, 64)
            self.other.weight = self.layers[0].weight

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(self.other(image))

    for callback in (EMAWeightAveraging(decay=0.5), StochasticWeightAveraging(0.05, swa_epoch_start=1)):
        module = Tied()
        trainer = new_trainer(tmp_path, name=type(callback).__name__, max_epochs=2, callbacks=callback)
        run = trainer.fit(module, train_loader(64))
        assert module.other.weight is module.layers[0].weight
        assert same_weights(Tied.load_from_checkpoint(str(run.last_url)), module)
        assert open_checkpoint(str(run.last_url)).manifest.tied_weights == {"other.weight": "layers.0.weight"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMAWeightAveraging(decay=1.1), r"has decay=1\.1; set a share from 0 to 1"),
        (lambda: WeightAveraging(decay=0.9), "WeightAveraging has no option 'decay'. Known: device, use_buffers"),
    ],
)
def test_options_that_mean_nothing(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
