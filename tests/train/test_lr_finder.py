"""The learning rate that a trial finds, and what is kept of its search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import STEPS, Backbone, quiet_lightning, same_tree
from lightning_digits import LightningDigits
from training import Mlp, bare_trainer, new_trainer, on_hook, same_weights, train_loader, val_loader
from trials import QUIET, Noisy, same_outcome, trained

import shipline as sl
from shipline.errors import ConfigError, MissingExtraError
from shipline.store import open_store
from shipline.train import LearningRateFinder, ModelCheckpoint
from shipline.train.callbacks import lr_finder

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_collection")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "linear", "num_training_steps": 30, "max_lr": 0.5},
        {"min_lr": 1e-4, "max_lr": 1e4, "num_training_steps": 50},
        {"max_lr": 1e6, "early_stop_threshold": None, "num_training_steps": 40},
    ],
    ids=["default", "linear", "stopped early", "not finite"],
)
def test_the_search_is_lightnings(tmp_path: Path, options: dict[str, Any]) -> None:
    """The same rates and losses, the same suggestion, and the same training afterwards."""
    found: list[Any] = []
    for make_trainer, make_finder in (
        (sl.Trainer, LearningRateFinder), (pytorch_lightning.Trainer, theirs.LearningRateFinder),
    ):  # fmt: skip
        torch.manual_seed(0)
        module, finder = LightningDigits(), make_finder(**options)  # type: ignore[operator]
        make: Any = make_trainer
        trainer = make(callbacks=[finder], max_epochs=-1, max_steps=2 * STEPS, default_root_dir=str(tmp_path), **QUIET)
        with quiet_lightning():
            trainer.fit(module, train_loader(16 * STEPS, 16, shuffle=False), val_loader(32))
        found.append((module, finder.optimal_lr))
    (ours, one), (others, other) = found
    assert one.results["lr"] == pytest.approx(other.results["lr"])
    assert one.results["loss"] == pytest.approx(other.results["loss"], rel=1e-5, nan_ok=True)
    assert one.suggestion() == pytest.approx(other.suggestion())
    assert one.suggestion(3, 5) == pytest.approx(other.suggestion(3, 5))
    assert ours.lr == pytest.approx(others.lr)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, others.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", [True, False])
def test_a_fit_after_the_search_is_one_without_it_but_for_the_rate(update: bool) -> None:
    """Schedulers, too, begin with what was found."""
    finder = LearningRateFinder(num_training_steps=30, update_attr=update)
    module, trainer = trained(finder)
    assert finder.optimal_lr is not None
    lr = finder.optimal_lr.suggestion() if update else 0.1
    assert module.lr == module.hparams.lr == lr
    same_outcome((module, trainer), trained(make=lambda: Noisy(lr=lr or 0.0)))


def test_what_was_tried_is_in_the_runs_directory(tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=30)
    run = new_trainer(tmp_path, max_epochs=1, callbacks=finder).fit(Mlp(), train_loader(64))
    store, found = open_store(str(run.url)), finder.optimal_lr
    assert found is not None
    assert store.read(lr_finder.PLOT_FILE).startswith(b"\x89PNG")
    content = json.loads(store.read(lr_finder.RESULTS_FILE))
    assert content == {"mode": "exponential", "suggestion": found.suggestion(), **found.results}
    assert run.module.load_from_checkpoint(str(run.last_url)).lr == found.suggestion()


def test_the_plot_marks_the_suggestion() -> None:
    found = lr_finder.LRFinder("exponential", 1e-4, 1.0, 20)
    rates = [10 ** (-4 + step / 5) for step in range(20)]
    found.results = {"lr": rates, "loss": [3.0] * 12 + [1.0] * 8}
    [axes] = found.plot(suggest=True).axes
    line, mark = axes.lines
    assert line.get_xdata().tolist() == rates
    assert mark.get_xdata()[0] == found.suggestion()
    assert found.suggestion() in rates[10:14]
    assert axes.get_xscale() == "log"
    assert found.plot(ax=axes) is axes.figure
    assert len(axes.lines) == 3


def test_without_matplotlib_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    finder = LearningRateFinder(num_training_steps=20)
    run = new_trainer(tmp_path, max_epochs=1, callbacks=finder).fit(Mlp(), train_loader(64))
    assert open_store(str(run.url)).list("plots") == ["lr_finder.json"]
    assert finder.optimal_lr is not None
    with pytest.raises(MissingExtraError, match=r"needs 'matplotlib', which is not installed\. Run: pip install"):
        finder.optimal_lr.plot()


def test_a_resumed_run_keeps_what_was_found(tmp_path: Path) -> None:
    """Searched for again, from trained weights, it would be another one."""
    calls: list[int] = []

    class Counts(LearningRateFinder):
        def lr_find(self, trainer: Any, module: Any) -> None:
            calls.append(trainer.global_step)
            super().lr_find(trainer, module)

    def run(name: str, seed: int, cut: bool, ckpt_path: str | None = None) -> Any:
        def stop(trainer: sl.Trainer, *_: Any) -> None:
            if cut and trainer.global_step == 11:
                raise RuntimeError("power cut")

        sl.seed_everything(seed)
        keep = ModelCheckpoint(every_n_train_steps=5)
        callbacks = [Counts(num_training_steps=30), keep, on_hook("on_train_batch_start", stop)]
        trainer = new_trainer(tmp_path, name=name, max_epochs=2, callbacks=callbacks)
        module = Backbone(schedule=True)
        trainer.fit(module, train_loader(16 * STEPS, 16), val_loader(32), ckpt_path=ckpt_path)
        return module, trainer.optimizer.state_dict()

    whole, optimizer = run("whole", 0, cut=False)
    with pytest.raises(RuntimeError, match="power cut"):
        run("parts", 0, cut=True)
    resumed, again = run("parts", 99, cut=False, ckpt_path="last")
    assert calls == [0, 0]
    assert same_weights(resumed, whole)
    assert same_tree(again, optimizer)
    assert resumed.lr == whole.lr != 0.1


def test_a_subclass_may_search_in_a_later_epoch() -> None:
    class Later(LearningRateFinder):
        def on_fit_start(self, trainer: Any, module: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, module)

    finder = Later(num_training_steps=30)
    module, trainer = trained(finder, make=lambda: Noisy(schedule=False))
    assert finder.optimal_lr is not None
    assert trainer.optimizer.param_groups[0]["lr"] == module.lr == finder.optimal_lr.suggestion() != 0.1
    assert module.steps == 2 * STEPS


class Unnamed(Mlp):
    def __init__(self) -> None:
        super().__init__()
        del self.lr
        self.rate = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Two(Mlp):
    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.2)]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            Unnamed,
            {},
            r"'lr' or 'learning_rate' is to be tuned, and is no attribute of Unnamed.*name yours with attr_name",
        ),
        (Unnamed, {"attr_name": "ratte"}, r"'ratte' is to be tuned.*Did you mean 'rate'\?"),
        (Two, {}, "works with one optimizer, and Two has 2"),
        (Mlp, {"mode": "steep"}, "has mode='steep'; choose 'exponential' or 'linear'"),
        (Mlp, {"min_lr": 1.0, "max_lr": 0.1}, r"has min_lr=1\.0 and max_lr=0\.1"),
        (Mlp, {"num_training_steps": 0}, "has num_training_steps=0; set 1 or more"),
        (Mlp, {"num_training": 5}, r"has no option 'num_training'\. Did you mean 'num_training_steps'\?"),
    ],
)
def test_what_no_rate_can_be_found_for(module: type[Mlp], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=LearningRateFinder(**options)).fit(module(), train_loader(32))


def test_a_name_of_ones_own_and_too_few_rates(caplog: pytest.LogCaptureFixture) -> None:
    module = Unnamed()
    finder = LearningRateFinder(attr_name="rate", num_training_steps=30)
    bare_trainer(max_epochs=1, callbacks=finder).fit(module, train_loader(32))
    assert finder.optimal_lr is not None
    assert module.rate == finder.optimal_lr.suggestion() != 0.1

    module = Unnamed()
    bare_trainer(max_epochs=1, callbacks=LearningRateFinder(attr_name="rate", num_training_steps=5)).fit(
        module, train_loader(32)
    )
    assert module.rate == 0.1
    assert "5 learning rates were tried, too few to suggest one: raise num_training_steps" in caplog.text
