"""What every precision must do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from training import Mlp, bare_trainer, new_trainer, on_hook, rows, same_weights, train_loader, val_loader

from shipline import plugins
from shipline.train.checkpoints.tree import encode_tree
from shipline.train.precision import Precision


class Named(NamedTuple):
    """A batch with names."""

    x: torch.Tensor
    y: Any


class PrecisionConformance:
    """Inherit, and give a fixture `precision` on the CPU, and what is expected of it."""

    #: The dtype of weights while they are trained, and of what a linear layer gives.
    weights = torch.float32
    computes = torch.float32
    #: How far the losses of a short training may be from those of 32-true.
    tolerance = 1e-6

    def test_is_found_by_its_name(self, precision: Precision) -> None:
        assert plugins.load("precision", precision.name) is type(precision)

    def test_weights_are_converted_in_place(self, precision: Precision) -> None:
        module = Mlp()
        names = list(module.state_dict())
        assert precision.convert_module(module) is module
        assert {p.dtype for p in module.parameters()} == {self.weights}
        assert list(module.state_dict()) == names

    def test_layers_are_as_they_were_when_it_is_over(self, precision: Precision) -> None:
        module = Mlp()
        before = str(module)
        precision.convert_module(module)
        precision.release(module)
        assert str(module) == before
        assert {p.dtype for p in module.parameters()} == {self.weights}

    def test_inputs_are_converted_however_deep(self, precision: Precision) -> None:
        x, count = torch.ones(2), torch.ones(2, dtype=torch.int64)
        batch = {"a": [x, (count, "text")], "b": Named(x, None)}
        converted = precision.convert_input(batch)
        assert converted["a"][0].dtype == converted["b"].x.dtype == self._input_dtype(precision)
        assert converted["a"][1][0].dtype == torch.int64
        assert (converted["a"][1][1], type(converted["b"]), converted["b"].y) == ("text", Named, None)
        assert batch["a"][0] is x

    def _input_dtype(self, precision: Precision) -> torch.dtype:
        own = type(precision).convert_input is not Precision.convert_input
        return self.weights if own else torch.float32

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_steps_compute_in_it_and_nothing_else_does(self, precision: Precision, mode: Any) -> None:
        module = precision.convert_module(Mlp())
        step = precision.wrap_step(lambda batch, _index: module(batch))
        image = precision.convert_input(torch.rand(16, 64))
        with mode():
            assert step(image, 0).dtype == self.computes
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_autocast_enabled("cpu")

    def test_a_step_that_fails_leaves_nothing_behind(self, precision: Precision) -> None:
        def fail(*_arguments: Any) -> None:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            precision.wrap_step(fail)(None, 0)
        assert torch.get_default_dtype() == torch.float32
        assert not torch.is_autocast_enabled("cpu")

    def test_what_configure_model_makes_has_it(self, precision: Precision) -> None:
        class Late(Mlp):
            def configure_model(self) -> None:
                self.late = nn.Linear(64, 64)

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                return super().forward(self.late(image))

        module = Late()
        bare_trainer(max_steps=1, plugins=precision).fit(module, train_loader(32))
        assert module.late.weight.dtype == self.weights

    def test_it_trains_as_32_bit_does(self, precision: Precision) -> None:
        def losses(**options: Any) -> list[float]:
            torch.manual_seed(0)
            found: list[float] = []
            look = on_hook("on_train_batch_end", lambda _t, _m, outputs, *_a: found.append(float(outputs["loss"])))
            module = Mlp()
            trainer = bare_trainer(max_epochs=6, callbacks=look, gradient_clip_val=0.5, **options)
            trainer.fit(module, train_loader(256, shuffle=False), val_loader())
            predictions = trainer.predict(module, DataLoader(rows(0, 32).tensors[0], 32))
            assert predictions[0].dtype == (self.computes if options else torch.float32)
            return [*found, float(trainer.callback_metrics["val_loss"])]

        found, want = losses(plugins=precision), losses()
        assert found == pytest.approx(want, rel=self.tolerance)
        assert found[-1] < 0.7 * found[0]

    def test_gradients_are_clipped_as_they_are(self, precision: Precision) -> None:
        """Also where they were scaled on the way."""
        norms: list[float] = []

        def look(_trainer: Any, module: Any, *_arguments: Any) -> None:
            gradients = torch.cat([p.grad.flatten().double() for p in module.parameters()])
            norms.append(float(gradients.norm()))

        trainer = bare_trainer(
            max_epochs=1, plugins=precision, gradient_clip_val=0.01, callbacks=on_hook("on_train_batch_end", look)
        )
        trainer.fit(Mlp(), train_loader(128))
        assert norms == pytest.approx([0.01] * 4, rel=0.02)

    def test_a_resumed_run_ends_where_the_undisturbed_one_does(self, precision: Precision, tmp_path: Path) -> None:
        def fit(name: str, epochs: int, ckpt_path: str | None = None) -> Any:
            torch.manual_seed(0)
            module = Mlp(dropout=0.2)
            trainer = new_trainer(
                tmp_path, name=name, max_epochs=epochs, plugins=copy.deepcopy(precision), gradient_clip_val=0.5
            )
            trainer.fit(module, train_loader(96), val_loader(32), ckpt_path=ckpt_path)
            return module, trainer.precision_plugin.state_dict(), trainer.callback_metrics

        module, state, metrics = fit("whole", 2)
        fit("parts", 1)
        resumed, resumed_state, resumed_metrics = fit("parts", 2, "last")
        assert same_weights(module, resumed)
        assert (state, metrics) == (resumed_state, resumed_metrics)

        loaded = Mlp.load_from_checkpoint(f"{tmp_path}/whole/last")
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        for own, theirs in zip(module.parameters(), loaded.parameters(), strict=True):
            assert torch.equal(own.float(), theirs)

    def test_its_state_is_plain_data(self, precision: Precision) -> None:
        bare_trainer(max_steps=1, plugins=precision).fit(Mlp(), train_loader(32))
        state = precision.state_dict()
        assert encode_tree(state)[1] == {}
        again = copy.deepcopy(precision)
        again.load_state_dict(state)
        assert again.state_dict() == state
        again.load_state_dict({})  # of a run in another precision
