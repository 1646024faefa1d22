"""Steps that `torch.compile` has compiled: the compiled code runs, computes the same, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
import torch._dynamo
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import Mlp, StepsByHand, bare_trainer, new_trainer, rows, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError

# PyTorch's compiler hides this warning of its own from people, though not from "error".
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


class Counting:
    """A backend that runs graphs as they are, and knows what it compiled and how often that ran."""

    def __init__(self) -> None:
        self.compiled: list[set[str]] = []
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _example: Any) -> Any:
        self.compiled.append({str(node.target) for node in graph.graph.nodes})

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run

    def holds(self, *operations: str) -> bool:
        """Whether one graph has all of them in it."""
        return any(
            all(any(operation in target for target in targets) for operation in operations) for targets in self.compiled
        )


def fitted(cls: type[Any] = Mlp, count: int = 250, **options: Any) -> tuple[Any, sl.Trainer]:
    torch.manual_seed(0)
    module, trainer = cls(), bare_trainer(max_epochs=3, **options)
    trainer.fit(module, train_loader(count, shuffle=False), val_loader(64))
    return module, trainer


def test_compiled_steps_run_and_compute_the_same() -> None:
    backend = Counting()
    (module, trainer), (plain, other) = fitted(compile={"backend": backend}), fitted()
    assert same_weights(module, plain)
    assert trainer.callback_metrics == other.callback_metrics
    assert backend.holds("linear", "relu", "cross_entropy")  # the loss is in the graph, not the forward pass alone
    # Three epochs of eight batches; two of validation, before training and after each, in two pieces around self.log.
    assert backend.runs == 3 * 8 + (2 + 3 * 2) * 2


def test_a_short_last_batch_is_compiled_once() -> None:
    """For its size PyTorch makes a graph for any size; full batches keep theirs."""
    backend = Counting()
    torch.manual_seed(0)
    trainer = bare_trainer(max_epochs=3, compile={"backend": backend})
    trainer.fit(Mlp(), train_loader(250))
    assert len(backend.compiled) == 2
    trainer.fit(Mlp(), DataLoader(rows(0, 90), 20))
    assert len(backend.compiled) == 2


class Talks(Mlp):
    """Logs much, and uses what changes with each step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        noise = torch.zeros(64, device=self.device) * self.global_step
        loss = F.cross_entropy(self(batch[0] + noise), batch[1])
        for name in ("one", "two", "three"):
            self.log(name, loss * self.current_epoch, prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({"step": float(self.trainer.global_step), "lr": self.trainer.optimizer.param_groups[0]["lr"]})
        return loss


def test_what_changes_with_each_step_does_not_compile_anew() -> None:
    backend = Counting()
    module, trainer = fitted(Talks, 1024, compile={"backend": backend})
    assert trainer.global_step == 96
    assert len(backend.compiled) <= 8
    plain, other = fitted(Talks, 1024)
    assert same_weights(module, plain)
    assert trainer.callback_metrics == other.callback_metrics


def test_the_module_stays_as_it_is(tmp_path: Path) -> None:
    """Its names, its copies, its checkpoints, and what is exported."""
    torch.manual_seed(0)
    module = Mlp()
    before = set(vars(module))
    trainer = new_trainer(tmp_path, max_epochs=1, compile={"backend": "eager"})
    run = trainer.fit(module, train_loader(96), val_loader(32))
    assert set(vars(module)) == before
    assert set(module.state_dict()) == set(Mlp().state_dict())
    assert same_weights(Mlp.load_from_checkpoint(str(run.last_url)), module)
    copied = copy.deepcopy(module).eval()
    nn.init.zeros_(copied.layers[3].weight)
    nn.init.zeros_(copied.layers[3].bias)
    image = rows(0, 4).tensors[0]
    assert not copied(image).any()
    assert module(image).any()
    exported = torch.export.export(module.eval(), (image,)).module()
    torch.testing.assert_close(exported(image), module(image))


def test_a_compiled_run_goes_on_exactly(tmp_path: Path) -> None:
    def fit(name: str, epochs: int, ckpt_path: str | None = None, **options: Any) -> Any:
        torch.manual_seed(0)
        module = Mlp(dropout=0.3)
        trainer = new_trainer(tmp_path, name=name, max_epochs=epochs, **options)
        trainer.fit(module, train_loader(90), val_loader(32), ckpt_path=ckpt_path)
        return module

    compiled: dict[str, Any] = {"compile": {"backend": "aot_eager"}}
    whole = fit("whole", 2, **compiled)
    fit("parts", 1, **compiled)
    assert same_weights(fit("parts", 2, "last", **compiled), whole)
    fit("plain", 1)
    assert same_weights(fit("plain", 2, "last", **compiled), whole)


@pytest.mark.parametrize(("stage", "inference_mode"), [("validate", True), ("test", False), ("predict", True)])
def test_other_stages_are_compiled(stage: str, inference_mode: bool) -> None:
    backend = Counting()
    data = DataLoader(rows(0, 70).tensors[0], 32) if stage == "predict" else val_loader(70)
    module = Mlp()
    found = getattr(bare_trainer(compile={"backend": backend}, inference_mode=inference_mode), stage)(module, data)
    assert backend.runs >= 3
    plain = getattr(bare_trainer(), stage)(module, data)
    torch.testing.assert_close(found, plain)


class ByHand(StepsByHand, Mlp):
    """With its backward pass inside the training step."""


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (ByHand, {}),
        (Mlp, {"precision": "16-mixed", "gradient_clip_val": 0.1}),
        (Mlp, {"precision": "bf16-true"}),
        (Mlp, {"accumulate_grad_batches": 3}),
        (Mlp, {"profiler": "simple"}),
    ],
)
def test_it_goes_with_the_other_settings(cls: type[Mlp], options: dict[str, Any]) -> None:
    backend = Counting()
    (module, trainer), (plain, other) = fitted(cls, compile={"backend": backend}, **options), fitted(cls, **options)
    assert backend.runs >= 24
    assert same_weights(module, plain)
    assert trainer.callback_metrics == other.callback_metrics


# ---- what torch.compile returned -------------------------------------------------------------------------------------


def small(base: Any) -> Any:
    class Small(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.losses: list[float] = []

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image).relu()  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])  # Lightning cannot compile a step that logs

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.losses.append(outputs["loss"].item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Small()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", [sl.Module, lightning.LightningModule])
def test_a_compiled_module_is_accepted_as_in_lightning(base: Any) -> None:
    theirs, found = small(lightning.LightningModule), small(base)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **quiet).fit(
        torch.compile(theirs, backend="eager"), train_loader(128, shuffle=False)
    )
    torch._dynamo.reset()
    backend = Counting()
    trainer = bare_trainer(max_epochs=2)
    run = trainer.fit(torch.compile(found, backend=backend), train_loader(128, shuffle=False))
    assert run.module is trainer.lightning_module is found
    assert backend.holds("linear", "relu", "cross_entropy")
    assert backend.runs == 8
    assert found.losses == theirs.losses
    assert same_weights(found, theirs)

    trainer.predict(dataloaders=DataLoader(rows(0, 32).tensors[0], 32))  # the module that was fitted, as it was given
    assert backend.runs == 9
    trainer.fit(small(base), train_loader(128))
    assert backend.runs == 9


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("inductor", r"compile='inductor'; set True, or a dict of options: fullgraph, dynamic, backend"),
        ({"backnd": "eager"}, r"torch\.compile has no option 'backnd'\. Did you mean 'backend'\? Known: fullgraph, "),
    ],
)
def test_options_that_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(compile=value)


def test_what_cannot_be_sent_to_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workers=2, to which what torch\.compile returned cannot be sent"):
        bare_trainer(max_epochs=1, workers=2).fit(torch.compile(Mlp(), backend="eager"), train_loader())


@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated")
def test_true_is_pytorchs_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would need a C++ compiler and half a minute here."""
    backend = Counting()
    monkeypatch.setattr(torch._TorchCompileInductorWrapper, "__call__", lambda _self, *arguments: backend(*arguments))
    bare_trainer(max_epochs=1, compile=True).fit(Mlp(), train_loader(96))
    assert backend.runs == 3
