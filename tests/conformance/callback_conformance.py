"""What every callback must do."""

from __future__ import annotations

import inspect
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training import Mlp, Recorder, new_trainer, same_weights, train_loader, val_loader

import shipline as sl
from shipline import plugins
from shipline.errors import ConfigError
from shipline.train import Callback
from shipline.train.checkpoints.tree import decode_tree, encode_tree

HOOKS = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]


class Trained(Mlp):
    """A module in which a callback leaves a trace: it draws at random, and has buffers that forward changes."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.normed = nn.BatchNorm1d(10)
        self.example_input_array = torch.zeros(4, 64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.normed(super().forward(image))  # type: ignore[no-any-return]

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class CallbackConformance:
    """Inherit, and give `make`."""

    #: The callback's name among the plug-ins; None for one that is derived in a test.
    name: str | None
    #: Whether what is trained becomes another with it.
    changes_weights = False

    def make(self, root: Path) -> Callback:
        """Return a new callback, with options other than the defaults where it has some; files go below `root`."""
        raise NotImplementedError

    # ---- how it is run -----------------------------------------------------------------------------------------------

    def trainer(self, root: Path, callback: Callback | None, **options: Any) -> sl.Trainer:
        """A Trainer with this callback, which logs every step, and keeps checkpoints."""
        usual: dict[str, Any] = {"logger": Recorder(), "log_every_n_steps": 1, "max_epochs": 2}
        return new_trainer(root, callbacks=[] if callback is None else [callback], **(usual | options))

    def fit(self, root: Path, callback: Callback | None, resume: str | None = None, **options: Any) -> sl.Trainer:
        """Train for two epochs of three batches and return the Trainer, whose `module` was trained."""
        sl.seed_everything(7)
        trainer = self.trainer(root, callback, **options)
        trainer.fit(Trained(), train_loader(96), val_loader(40), ckpt_path=resume)
        return trainer

    def state(self, callback: Callback) -> dict[str, Any]:
        """Its state, as far as two equal runs must have an equal one."""
        return callback.state_dict()

    # ---- what it is --------------------------------------------------------------------------------------------------

    def test_is_found_by_its_name(self, tmp_path: Path) -> None:
        if self.name is not None:
            assert plugins.load("callback", self.name) is type(self.make(tmp_path))

    def test_has_no_hooks_but_those_that_are_called(self, tmp_path: Path) -> None:
        """A hook with a misspelled name, or with other arguments, would do nothing, or fail in the middle of a run."""
        callback = self.make(tmp_path)
        names = {name for name in dir(callback) if name.startswith("on_")}
        assert names <= set(HOOKS), names - set(HOOKS)
        for name in HOOKS:
            expected = [p for p in inspect.signature(getattr(Callback, name)).parameters if p != "self"]
            inspect.signature(getattr(callback, name)).bind(*expected)

    def test_refuses_options_that_it_does_not_have(self, tmp_path: Path) -> None:
        kind: Any = type(self.make(tmp_path))
        known = [name for name, p in inspect.signature(kind.__init__).parameters.items() if p.kind is not p.VAR_KEYWORD]
        option = known[1] if len(known) > 1 else None
        match = "has no option" if option is None else f"has no option '{option}x'. Did you mean '{option}'?"
        with pytest.raises(ConfigError, match=match.replace("?", r"\?")):
            kind(**{f"{option}x": 1})

    # ---- its state ---------------------------------------------------------------------------------------------------

    def test_its_state_is_plain_and_survives_a_checkpoint(self, tmp_path: Path) -> None:
        callback, other = self.make(tmp_path), self.make(tmp_path)
        empty = not callback.state_dict()
        self.fit(tmp_path, callback)
        state = callback.state_dict()
        assert (not state) == empty, "a state that is empty at first is not restored"
        again = decode_tree(*encode_tree(state))
        assert_equal(again, state)
        callback.load_state_dict(callback.state_dict())
        assert_equal(callback.state_dict(), state)
        other.load_state_dict(again)
        assert_equal(other.state_dict(), state)

    def test_goes_on_as_if_nothing_had_happened(self, tmp_path: Path) -> None:
        whole, begun, resumed = (self.make(tmp_path / name) for name in ("whole", "parts", "parts"))
        expected = self.fit(tmp_path / "whole", whole)
        self.fit(tmp_path / "parts", begun, max_epochs=1)
        found = self.fit(tmp_path / "parts", resumed, "last")
        assert same_weights(found.module, expected.module)
        assert_equal(self.state(resumed), self.state(whole))

    def test_begins_anew_with_each_fit(self, tmp_path: Path) -> None:
        once, twice = self.make(tmp_path / "once"), self.make(tmp_path / "twice")
        first = self.fit(tmp_path / "once", once)
        sl.seed_everything(7)
        trainer = self.trainer(tmp_path / "twice", twice)
        for _ in range(2):
            sl.seed_everything(7)
            trainer.fit(Trained(), train_loader(96), val_loader(40))
            assert same_weights(trainer.module, first.module)
            assert_equal(self.state(twice), self.state(once))

    # ---- what it does to a run ---------------------------------------------------------------------------------------

    def test_leaves_the_weights_alone(self, tmp_path: Path) -> None:
        without = self.fit(tmp_path / "without", None)
        trained = self.fit(tmp_path / "with", self.make(tmp_path))
        assert same_weights(trained.module, without.module) != self.changes_weights

    def test_travels_to_other_processes(self, tmp_path: Path) -> None:
        """Before it has run, and after."""
        callback = pickle.loads(pickle.dumps(self.make(tmp_path / "a")))  # noqa: S301
        first = self.fit(tmp_path / "a", callback)
        again = pickle.loads(pickle.dumps(callback))  # noqa: S301
        assert_equal(again.state_dict(), callback.state_dict())
        assert same_weights(self.fit(tmp_path / "b", again).module, first.module)

    @pytest.mark.parametrize(
        "options",
        [
            {"fast_dev_run": True},
            {"limit_train_batches": 1},
            {"limit_val_batches": 0},
            {"limit_train_batches": 0},
            {"accumulate_grad_batches": 2},
            {"max_epochs": -1, "max_steps": 2, "val_check_interval": 1},
        ],
    )
    def test_runs_with_little(self, tmp_path: Path, options: dict[str, Any]) -> None:
        trainer = self.fit(tmp_path, self.make(tmp_path), **options)
        assert trainer.state.finished

    def test_works_without_a_fit(self, tmp_path: Path) -> None:
        module, trainer = Trained(), self.trainer(tmp_path, self.make(tmp_path))
        (plain,) = self.trainer(tmp_path, None).validate(module, val_loader(40), verbose=False)
        assert trainer.validate(module, [val_loader(40)], verbose=False) == [plain]
        assert trainer.test(module, val_loader(40), verbose=False) == [plain]
        assert len(trainer.predict(module, [val_loader(40), val_loader(10)])) == 2


def assert_equal(one: Any, other: Any) -> None:
    """Fail unless both states are the same to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert one == other
