"""How good a representation is while it is learned without labels: a small classifier on top of it, with labels.

Source: the SSLOnlineEvaluator of lightning-bolts (https://github.com/Lightning-Universe/lightning-bolts), whose names
are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback
from shipline.train.seed import current_seed, isolate_rng

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

#: Of a batch makes the inputs and their labels.
Split = Callable[[Any], tuple[Any, torch.Tensor]]


class OnlineEvaluator(Callback):
    """Trains a probe on the module's representations beside the module, which learns nothing of it.

    After every training batch the probe makes a step of its own; no gradient reaches the module, nor is its mode or any
    generator changed: the run ends with the weights that it would have ended with alone. Logs online_train_acc,
    online_train_loss, online_val_acc and online_val_loss.

    Args:
        z_dim: size of a representation.
        num_classes: how many labels there are.
        hidden_dim: size of the probe's hidden layer; None: it is linear.
        drop_p: dropout of the probe.
        lr: learning rate of the probe's own Adam.
        get_batch: of a batch makes inputs and labels; default: its first and its last part.
        representation: the module's method that makes representations of inputs; default: the module itself.
    """

    def __init__(
        self,
        z_dim: int,
        num_classes: int,
        hidden_dim: int | None = None,
        drop_p: float = 0.2,
        lr: float = 1e-3,
        get_batch: Split | None = None,
        representation: str | None = None,
    ) -> None:
        for name, value in {"z_dim": z_dim, "num_classes": num_classes, "hidden_dim": hidden_dim}.items():
            if value is not None and value < 1:
                raise ConfigError(f"OnlineEvaluator has {name}={value}; set 1 or more.")
        self.z_dim = z_dim
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.drop_p = drop_p
        self.lr = lr
        self._get_batch = get_batch or _first_and_last
        self._representation = representation
        self.probe: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def get_representations(self, pl_module: Module, x: Any) -> torch.Tensor:
        """Return the representations of inputs, of shape [rows, z_dim]; override where they come by other means."""
        make = pl_module if self._representation is None else getattr(pl_module, self._representation)
        found: torch.Tensor = make(x)
        return found

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the probe's weights and its optimizer's state."""
        if self.probe is None or self.optimizer is None:
            return {}
        return {"probe": self.probe.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the probe."""
        assert self.probe is not None
        assert self.optimizer is not None
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Make a new probe, the same on every worker; a resumed run takes up its state afterwards."""
        if stage != "fit":
            return
        with isolate_rng():
            torch.manual_seed(current_seed() or 0)
            self.probe = _probe(self.z_dim, self.num_classes, self.hidden_dim, self.drop_p).to(trainer.device)
        self.optimizer = torch.optim.Adam(self.probe.parameters(), lr=self.lr)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let the probe make a step."""
        assert self.probe is not None
        assert self.optimizer is not None
        with isolate_rng():
            z, y = self._represented(trainer, module, batch)
            self.probe.train(len(y) > 1)  # batch norm has no variance of a single row
            logits = self.probe(z)
            loss = F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._average(trainer, [p.grad for p in self.probe.parameters() if p.grad is not None])
            self.optimizer.step()
            self._average(trainer, [b for b in self.probe.buffers() if b.is_floating_point()])
        found = {"online_train_acc": _accuracy(logits, y), "online_train_loss": loss}
        module.log_dict(found, on_step=True, on_epoch=False, batch_size=len(y))

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look how good the probe is on rows that it was not trained on."""
        if self.probe is None:
            return
        with isolate_rng():
            z, y = self._represented(trainer, module, batch)
            self.probe.eval()
            logits = self.probe(z)
        found = {"online_val_acc": _accuracy(logits, y), "online_val_loss": F.cross_entropy(logits, y)}
        module.log_dict(found, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _represented(self, trainer: Trainer, module: Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Representations as a validation would have them, and labels."""
        x, y = self._get_batch(batch)
        make = trainer.precision_plugin.wrap_step(self.get_representations)
        with _evaluation_mode(module), torch.no_grad():
            z = make(module, x).detach()
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ConfigError(
                f"OnlineEvaluator has z_dim={self.z_dim}, and the representations are of shape {list(z.shape)}: set "
                "z_dim to their size; where they have another form, let `representation` name a method that pools them "
                "to [rows, z_dim]."
            )
        return z.float(), y

    @staticmethod
    def _average(trainer: Trainer, tensors: list[torch.Tensor]) -> None:
        """Let every worker have the mean of these, so that all have the same probe."""
        if trainer.world_size == 1 or not tensors:
            return
        mean = trainer.strategy.reduce(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _first_and_last(batch: Any) -> tuple[Any, torch.Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise ConfigError(
            f"OnlineEvaluator takes the first part of a batch as inputs and the last as labels, and this one is a "
            f"{type(batch).__name__}: set get_batch to a function that returns both."
        )
    return batch[0], batch[-1]


def _probe(z_dim: int, num_classes: int, hidden_dim: int | None, drop_p: float) -> nn.Sequential:
    if hidden_dim is None:
        return nn.Sequential(nn.Flatten(), nn.Dropout(drop_p), nn.Linear(z_dim, num_classes))
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(drop_p),
        nn.Linear(z_dim, hidden_dim, bias=False),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Dropout(drop_p),
        nn.Linear(hidden_dim, num_classes),
    )


def _accuracy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == y).float().mean()


@contextlib.contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Within it, dropout and batch norm are those of evaluation; afterwards every submodule is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
