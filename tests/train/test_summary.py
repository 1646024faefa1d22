"""The summary of a module: its figures are those of Lightning's and of real memory; it changes nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.model_summary import ModelSummary as LightningSummary
from torch import nn
from training import Mlp, Scripted, bare_trainer, numbers, train_loader
from twins import Digits, calm

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import ModelSummary, RichModelSummary
from shipline.train.callbacks.layers import count, parts, run_example
from shipline.train.callbacks.memory import gradient_bytes, optimizer_bytes, parameter_bytes
from shipline.train.callbacks.model_summary import amount


class Convolutions(Digits):
    """A module with nested parts, a frozen one, parameters of its own, and a batch for its example."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.Flatten()))
        self.head = nn.Linear(8 * 36, 10).requires_grad_(requires_grad=False)
        self.scale = nn.Parameter(torch.ones(7))
        self.layer = nn.Dropout(0.5)  # type: ignore[assignment]
        self.example_input_array = torch.rand(2, 3, 8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(self.head(self.body(image))) * self.scale.sum()


@pytest.mark.parametrize("depth", [1, 2, -1])
def test_figures_are_those_of_lightning(depth: int) -> None:
    module = Convolutions()
    with calm():
        theirs = LightningSummary(module, max_depth=depth)
    found = parts(module, depth)
    seen = run_example(module, lambda: module(module.example_input_array), set(found))
    assert list(found) == theirs.layer_names
    assert [type(part).__name__ for part in found.values()] == theirs.layer_types
    assert [count(part) for part in found.values()] == theirs.param_nums
    assert [seen.sizes[name][0] for name in found] == theirs.in_sizes
    assert [seen.sizes[name][1] for name in found] == theirs.out_sizes
    assert [seen.flops[name] for name in found] == [sum(each.values()) for each in theirs.flop_counts.values()]
    assert seen.total_flops == theirs.total_flops > 0
    assert count(module) == theirs.total_parameters
    assert count(module, trainable=True) == theirs.trainable_parameters < theirs.total_parameters
    assert parameter_bytes(module) / 1e6 == pytest.approx(theirs.model_size)


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    bare_trainer(max_epochs=0, callbacks=ModelSummary(max_depth=2)).fit(Convolutions(), numbers(1))
    *table, memory = capsys.readouterr().out.splitlines()
    assert table == [
        "Name    Type            Params  Mode    FLOPs  In sizes      Out sizes",
        "layer   Dropout              0  train       0  [2, 10]       [2, 10]",
        "body    Sequential         240  train  31.1 K  [2, 3, 8, 8]  [2, 288]",
        "body.0  Conv2d             224  train  31.1 K  [2, 3, 8, 8]  [2, 8, 6, 6]",
        "body.1  BatchNorm2d         16  train       0  [2, 8, 6, 6]  [2, 8, 6, 6]",
        "body.2  Sequential           0  train       0  [2, 8, 6, 6]  [2, 288]",
        "head    Linear           2.9 K  train  11.5 K  [2, 288]      [2, 10]",
        "        own parameters       7",
        "Parameters: 3.1 K, 247 trainable, 2.9 K not; 0.013 MB",
        "FLOPs: 42.6 K forward",
        "Modules: 8 in train mode, 0 in eval mode",
    ]
    shares = "parameters 0.013 + gradients 0.001 + optimizers 0.000 + activations of 2 rows 0.006"
    assert memory == f"Memory, estimated: 0.020 MB = {shares}"


def test_without_an_example_there_are_parameters_and_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    bare_trainer(max_epochs=0, callbacks=ModelSummary()).fit(Mlp(), train_loader())
    assert capsys.readouterr().out.splitlines() == [
        "Name    Type        Params  Mode",
        "layers  Sequential   2.4 K  train",
        "Parameters: 2.4 K, 2.4 K trainable, 0 not; 0.010 MB",
        "Modules: 5 in train mode, 0 in eval mode",
        "Memory, estimated: 0.029 MB = parameters 0.010 + gradients 0.010 + optimizers 0.010",
    ]


def test_nothing_is_printed_of_no_depth_or_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    bare_trainer(max_epochs=0, callbacks=ModelSummary(max_depth=0)).fit(Mlp(), train_loader())
    bare_trainer(max_epochs=0, enable_model_summary=False).fit(Mlp(), train_loader())
    assert capsys.readouterr().out == ""
    assert isinstance(bare_trainer(enable_model_summary=True, callbacks=RichModelSummary(2)).callbacks[0], ModelSummary)
    with pytest.raises(ConfigError, match="ModelSummary has max_depth=-2; set a whole number from -1 on"):
        ModelSummary(max_depth=-2)


class Changes(sl.Module):
    """Whose forward draws at random, counts its calls in a buffer, and replaces another one."""

    def __init__(self, example: Any) -> None:
        super().__init__()
        self.example_input_array = example
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.body[2].eval()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        self.last = a.detach().sum().reshape(1)
        noise = torch.rand(4) * random.random() * float(np.random.rand())
        found: torch.Tensor = self.body(a) + noise
        return found if b is None else found + b

    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> None: ...


@pytest.mark.parametrize(
    "example",
    [torch.ones(1, 4), (torch.ones(2, 4), torch.ones(4)), {"a": torch.ones(3, 4), "b": torch.zeros(4)}],
)
def test_the_module_and_what_is_random_stay_as_they_were(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = Changes(example)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    last = module.last
    drawn = _draws()
    bare_trainer(max_epochs=0, callbacks=ModelSummary()).fit(module, numbers(1))
    assert _draws() == drawn
    assert "[1, 4]" in capsys.readouterr().out or not isinstance(example, torch.Tensor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.last is last
    assert [part.training for part in module.modules()] == modes
    assert not any(part._forward_hooks for part in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def _draws() -> tuple[float, ...]:
    """What each generator would give next; it still will."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = random.random(), float(np.random.rand()), float(torch.rand(()))
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return found


def test_an_example_that_fails_is_no_reason_not_to_train(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module = Changes(torch.ones(2, 5))
    modes = [part.training for part in module.modules()]
    bare_trainer(max_epochs=1, callbacks=ModelSummary()).fit(module, numbers(1))
    assert caplog.messages[0].startswith("No sizes: Changes fails on its example_input_array: RuntimeError: mat1")
    assert capsys.readouterr().out.startswith("Name  Type        Params  Mode\nbody  Sequential")
    assert [part.training for part in module.modules()] == modes
    assert float(module.calls) == 0


def test_lazy_layers_are_counted_once_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    class Lazy(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(3)

        def configure_optimizers(self) -> None: ...

    module = Lazy()
    bare_trainer(max_epochs=0, callbacks=ModelSummary()).fit(module, numbers(1))
    assert "Parameters: 1, 1 trainable" in capsys.readouterr().out
    module.layer(torch.ones(1, 5))
    bare_trainer(max_epochs=0, callbacks=ModelSummary()).fit(module, numbers(1))
    assert "Parameters: 19, 19 trainable" in capsys.readouterr().out


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9}),
        ("Adam", {}),
        ("AdamW", {"amsgrad": True}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("Adamax", {}),
        ("Adadelta", {}),
        ("Adagrad", {}),
        ("RMSprop", {"momentum": 0.1, "centered": True}),
        ("RMSprop", {}),
        ("Rprop", {}),
        ("ASGD", {}),
    ],
)
def test_the_memory_of_optimizers_is_what_they_will_take(kind: str, options: dict[str, Any]) -> None:
    module = Mlp(hidden=64)
    module.layers[0].requires_grad_(requires_grad=False)
    optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.1, **options)
    before = optimizer_bytes([optimizer])
    module(torch.rand(2, 64)).sum().backward()
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    real = sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor.ndim)  # but for numbers
    for found in (before, optimizer_bytes([optimizer])):
        assert found is not None
        assert real <= found <= real + 32
    gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    assert gradient_bytes(module) == gradients < parameter_bytes(module)


def test_an_optimizer_of_ones_own_is_known_once_it_has_stepped() -> None:
    class Own(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)

    module = Mlp()
    optimizer = Own(module.parameters(), {})
    assert optimizer_bytes([optimizer]) is None
    optimizer.step()
    assert optimizer_bytes([optimizer]) == parameter_bytes(module)
    derived = type("Derived", (torch.optim.Adam,), {})(module.parameters())
    assert optimizer_bytes([derived, optimizer]) == 3 * parameter_bytes(module)


def test_activations_are_what_a_backward_pass_keeps() -> None:
    """Of a linear layer its input, of a ReLU its output; not the weights, which are there anyway."""
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    seen = run_example(module, lambda: module(torch.rand(5, 64)), set())
    assert seen.activations == 4 * 5 * (64 + 32)
    assert run_example(module, lambda: module(torch.rand(10, 64)), set()).activations == 2 * seen.activations


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.0 K"), (1234, "1.2 K"), (132_096, "132 K"), (2_621_440, "2.6 M"),
     (7 * 10**9, "7.0 B"), (5 * 10**15, "5,000 T")],
)  # fmt: skip
def test_numbers_as_people_read_them(number: int, text: str) -> None:
    assert amount(number) == text
