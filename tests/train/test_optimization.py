"""From batches to optimizer steps: automatic and manual, accumulated and clipped, and what is no loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training import (
    Mlp,
    StepsByHand,
    bare_trainer,
    new_trainer,
    on_hook,
    rows,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl
from shipline.errors import ConfigError, TrainingError


class Manual(StepsByHand, Mlp):
    """What Mlp does, by hand."""


def fitted(cls: type[Mlp], module: Mlp | None = None, batch_size: int = 32, **options: Any) -> tuple[Mlp, sl.Trainer]:
    torch.manual_seed(0)
    trained = cls()
    trainer = bare_trainer(max_epochs=2, **options)
    trainer.fit(trained, train_loader(128, batch_size, shuffle=False))
    return trained, trainer


def test_manual_optimization_does_what_the_automatic_one_does() -> None:
    (automatic, one), (manual, other) = fitted(Mlp), fitted(Manual)
    assert same_weights(automatic, manual)
    assert one.global_step == other.global_step == 8


def test_several_optimizers_are_stepped_by_hand_and_resumed(tmp_path: Path) -> None:
    class Two(Mlp):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            image, digit = batch
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                loss = F.cross_entropy(self(image), digit)
                frozen = [parameter.requires_grad for parameter in self.parameters()]
                assert sum(frozen) == 2
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizer, gradient_clip_val=1.0)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            if self.trainer.num_training_batches == batch_idx + 1:
                for scheduler in self.lr_schedulers():
                    scheduler.step()

        def configure_optimizers(self) -> Any:
            first = torch.optim.Adam(self.layers[0].parameters(), lr=0.01)
            last = torch.optim.SGD(self.layers[3].parameters(), lr=0.1, momentum=0.9)
            return [first, last], [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (first, last)]

    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> tuple[Two, sl.Trainer]:
        torch.manual_seed(0)
        module, trainer = Two(), new_trainer(tmp_path, name=name, max_epochs=epochs)
        trainer.fit(module, train_loader(128, shuffle=False), ckpt_path=ckpt_path)
        return module, trainer

    whole, trainer = fit("whole", 3)
    assert trainer.global_step == 3 * 4 * 2  # Lightning counts the steps of each
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == [0.01 / 8, 0.1 / 8]
    fit("parts", 1)
    resumed, trainer = fit("parts", 3, ckpt_path="last")
    assert same_weights(whole, resumed)
    assert trainer.global_step == 24
    before = trainer.global_step
    trainer.optimizers[0].step()
    assert trainer.global_step == before  # what counted them is gone


def test_a_training_step_knows_the_last_batch_of_an_epoch() -> None:
    """In manual optimization it is where schedulers of epochs are stepped."""

    class Scheduled(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = super().training_step(batch, batch_idx)
            if self.trainer.is_last_batch:
                self.lr_schedulers().step()
            return outputs

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    rates: list[float] = []
    look = on_hook("on_train_batch_end", lambda trainer, *_: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    fitted(Scheduled, callbacks=look)
    assert [rate / rates[0] for rate in rates] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_hooks_of_manual_optimization(tmp_path: Path) -> None:
    seen: list[str] = []
    names = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end")
    callbacks = [on_hook(name, lambda *_a, name=name: seen.append(name)) for name in names]
    bare_trainer(max_steps=1, callbacks=callbacks).fit(Manual(), train_loader(64))
    assert seen == list(names)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_are_one_large_batch(parts: int) -> None:
    large, _ = fitted(Mlp, batch_size=32)
    small, trainer = fitted(Mlp, batch_size=32 // parts, accumulate_grad_batches=parts)
    assert trainer.global_step == 8
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_rest_of_an_epoch_is_a_step_of_its_own() -> None:
    steps: list[int] = []
    look = on_hook("on_train_batch_end", lambda trainer, *_a: steps.append(trainer.global_step))
    bare_trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[look]).fit(Mlp(), train_loader(32 * 5))
    assert steps == [0, 0, 1, 1, 2]

    class Stream:
        def __iter__(self) -> Any:
            return iter(train_loader(32 * 5))

    steps.clear()
    bare_trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[look]).fit(Mlp(), Stream())
    assert steps == [0, 0, 1, 1, 2]
    steps.clear()
    bare_trainer(max_steps=1, accumulate_grad_batches=3, callbacks=[look]).fit(Mlp(), train_loader(32 * 5))
    assert steps == [0, 0, 1]


def gradients_of(**options: Any) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def keep(trainer: Any, module: Any, *_arguments: Any) -> None:
        kept.extend(parameter.grad.clone() for parameter in module.parameters())

    torch.manual_seed(0)
    callback = on_hook("on_train_batch_end", keep)
    bare_trainer(max_steps=1, callbacks=[callback], **options).fit(Mlp(), train_loader(32, shuffle=False))
    return kept


def test_gradients_are_clipped() -> None:
    free = gradients_of()
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in free]))
    clipped = gradients_of(gradient_clip_val=float(norm) / 2)
    for one, other in zip(free, clipped, strict=True):
        torch.testing.assert_close(one / 2, other)
    by_value = gradients_of(gradient_clip_val=0.01, gradient_clip_algorithm="value")
    for one, other in zip(free, by_value, strict=True):
        torch.testing.assert_close(one.clamp(-0.01, 0.01), other)
    assert max(float(g.abs().max()) for g in free) > 0.01


def test_what_the_module_overrides_is_what_happens() -> None:
    class Own(Mlp):
        seen: list[str] = []

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            self.seen.append(f"step {epoch} {batch_idx}")
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

        def configure_gradient_clipping(self, optimizer: Any, *settings: Any, **_named: Any) -> None:
            self.seen.append(f"clip {settings}")

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.seen.append(f"schedule {metric}")
            super().lr_scheduler_step(scheduler, metric)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    module = Own()
    bare_trainer(max_epochs=1, gradient_clip_val=2.0).fit(module, train_loader(64))
    assert module.seen == [
        "step 0 0", "clip (2.0, 'norm')", "step 0 1", "clip (2.0, 'norm')", "schedule None"
    ]  # fmt: skip


def test_an_optimizer_may_call_its_closure_often() -> None:
    class Lbfgs(Mlp):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=5, line_search_fn="strong_wolfe")

    module = Lbfgs()
    loader = train_loader(256, 256, shuffle=False)
    before = F.cross_entropy(module(rows(0, 256).tensors[0]), rows(0, 256).tensors[1])
    bare_trainer(max_steps=5).fit(module, loader)
    assert F.cross_entropy(module(rows(0, 256).tensors[0]), rows(0, 256).tensors[1]) < before / 3


class Returns(Mlp):
    """Returns something else in the second batch."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return self.other(loss) if batch_idx == 1 else loss


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda loss: loss.item(),
            r"training_step returned float \(epoch 0, batch 1, step 1\): return the loss as a tensor",
        ),
        (lambda loss: {"lose": loss}, r"returned a dict with lose \(epoch 0, batch 1, step 1\)"),
        (lambda loss: (loss, 1), r"returned tuple"),
        (lambda loss: loss.repeat(3), r"a loss of shape \[3\] \(epoch 0, batch 1, step 1\): reduce it to one number"),
        (lambda loss: loss.detach(), r"a loss without gradients \(epoch 0, batch 1"),
        (lambda loss: loss * float("nan"), r"The loss is nan \(epoch 0, batch 1, step 1\): lower the learning rate"),
        (lambda loss: loss * float("inf"), r"The loss is inf"),
    ],
)
def test_what_is_no_loss_is_named_with_its_batch(other: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        bare_trainer(max_epochs=1).fit(Returns(other), train_loader(128))


@pytest.mark.parametrize(("policy", "epochs"), [("skip", 2), ("stop", 1), ("ignore", 2)])
def test_a_loss_that_is_not_finite_is_dealt_with_as_set(policy: str, epochs: int) -> None:
    module = Returns(lambda loss: loss * float("nan"))
    trainer = bare_trainer(max_epochs=2, nonfinite_loss=policy)
    trainer.fit(module, train_loader(128))
    assert trainer.epochs_done == epochs
    finite = all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert finite == (policy != "ignore")


def test_a_skipped_batch_is_as_if_it_was_not_there() -> None:
    """Neither momentum nor weights move for it."""
    weights: list[Any] = []
    look = on_hook("on_train_batch_end", lambda _t, module, *_a: weights.append(copy.deepcopy(module.state_dict())))
    trainer = bare_trainer(max_epochs=1, callbacks=[look])
    trainer.fit(Returns(lambda _loss: None), train_loader(96))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[1][name], weights[2][name]) for name in weights[0])


def test_several_optimizers_need_manual_optimization() -> None:
    class Two(Mlp):
        def configure_optimizers(self) -> Any:
            return [super().configure_optimizers(), super().configure_optimizers()]

    with pytest.raises(ConfigError, match=r"Two has 2 optimizers: set self\.automatic_optimization = False"):
        bare_trainer(max_epochs=1).fit(Two(), train_loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "Manual steps its optimizers itself, so accumulate_grad_batches"),
        ({"gradient_clip_val": 1.0}, "Manual steps its optimizers itself, so accumulate_grad_batches"),
    ],
)
def test_what_manual_optimization_cannot_keep_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, **options).fit(Manual(), train_loader())


def test_manual_backward_is_for_manual_optimization() -> None:
    class Mixed(Mlp):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.manual_backward(super().training_step(batch, batch_idx))

    with pytest.raises(TrainingError, match="manual_backward is for manual optimization"):
        bare_trainer(max_epochs=1).fit(Mixed(), train_loader())


def test_what_a_module_puts_into_a_checkpoint_comes_back(tmp_path: Path) -> None:
    class Vocabulary(Mlp):
        words: list[str] = []

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert checkpoint["global_step"] == self.global_step
            checkpoint["words"] = self.words
            checkpoint["state_dict"]["layers.3.bias"] += 1

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.words = checkpoint["words"]
            checkpoint["state_dict"]["layers.3.bias"] -= 1

    module = Vocabulary()
    module.words = ["one", "two"]
    run = new_trainer(tmp_path, max_epochs=1).fit(module, train_loader(), val_loader())
    again = Vocabulary.load_from_checkpoint(str(run.last_url))
    assert again.words == ["one", "two"]
    resumed = Vocabulary()
    new_trainer(tmp_path, max_epochs=1).fit(resumed, train_loader(), val_loader(), ckpt_path="last")
    assert resumed.words == ["one", "two"]
    assert not torch.equal(resumed.layers[3].bias, torch.zeros(10))
