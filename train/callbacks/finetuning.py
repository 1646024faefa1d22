"""Parts of a module that are trained later than the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

#: A module, or several in any nesting.
Modules = nn.Module | Iterable[Any]


class BaseFinetuning(Callback):
    """Freezes parts of a module before training and thaws them later; derive from it to say which and when.

    `freeze_before_training` comes before `configure_optimizers`, which should take the parameters that require
    gradients only; `finetune_function` comes at the start of every epoch, and calls `unfreeze_and_add_param_group`. A
    resumed run has the parameter groups, and what is frozen, as they were.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        #: The names of the parameters in each group of each optimizer.
        self._groups: list[list[list[str]]] = []
        self._frozen: list[str] = []
        self._untracked: list[str] = []  # batch norm layers that keep no statistics
        self._late: list[nn.Parameter] = []  # thawed since the workers' gradients were joined

    def freeze_before_training(self, pl_module: Module) -> None:
        """Override to freeze: `self.freeze(pl_module.backbone)`."""
        raise ConfigError(f"{type(self).__name__} has no freeze_before_training(self, pl_module): define it.")

    def finetune_function(self, pl_module: Module, epoch: int, optimizer: Optimizer) -> None:
        """Override to thaw: `self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)` in a certain epoch."""
        name = type(self).__name__
        raise ConfigError(f"{name} has no finetune_function(self, pl_module, epoch, optimizer): define it.")

    # ---- for those who derive ----------------------------------------------------------------------------------------

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Return the layers: modules without children, or with parameters of their own."""
        return [part for part in _parts(modules) if not list(part.children()) or _own_parameters(part)]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters that require gradients, or those that do not.

        Args:
            modules: whose.
            train_bn: those of batch norm layers, too.
            requires_grad: which.
        """
        for layer in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(layer, _BatchNorm):
                yield from (p for p in _own_parameters(layer) if p.requires_grad == requires_grad)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Let the parameters be trained, and batch norm layers take statistics."""
        for layer in BaseFinetuning.flatten_modules(modules):
            _set_trainable(layer, trainable=True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Keep a layer's own parameters from being trained; a batch norm layer takes no statistics any more."""
        _set_trainable(module, trainable=False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Keep the parameters from being trained; those of batch norm layers only where `train_bn` is False."""
        for layer in BaseFinetuning.flatten_modules(modules):
            _set_trainable(layer, trainable=train_bn and isinstance(layer, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return the parameters that the optimizer does not have yet."""
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        params = list(params)
        new = [parameter for parameter in params if id(parameter) not in there]
        if len(new) < len(params):
            logger.warning(
                "%d of %d parameters that are thawed are in the optimizer already, and stay where they are. Let "
                "configure_optimizers take those that require gradients: [p for p in self.parameters() if "
                "p.requires_grad].",
                len(params) - len(new), len(params),
            )  # fmt: skip
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Let the modules be trained, their parameters in a group of their own.

        Args:
            modules: to thaw.
            optimizer: to train them.
            lr: learning rate of the group; default: that of the first group, divided by ...
            initial_denom_lr: ... this.
            train_bn: take the parameters of batch norm layers, too.
        """
        BaseFinetuning.make_trainable(modules)
        rate = float(optimizer.param_groups[0]["lr"]) / initial_denom_lr if lr is None else float(lr)
        params = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        if new := BaseFinetuning.filter_on_optimizer(optimizer, params):
            optimizer.add_param_group({"params": new, "lr": rate})

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the parameter groups, by the names of their parameters, and what is frozen."""
        return {"groups": self._groups, "frozen": self._frozen, "untracked": self._untracked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the groups and what is frozen; `on_load_checkpoint` has brought the module there."""
        self._groups, self._frozen, self._untracked = state["groups"], state["frozen"], state["untracked"]

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Make the parameter groups before the optimizers' state is put back, and thaw what was thawed."""
        state = checkpoint["callbacks"].get(self.state_key)
        if not state or not state["groups"]:
            return
        parameters = dict(module.named_parameters())
        for optimizer, groups in zip(trainer.optimizers, state["groups"], strict=True):
            for names in groups[len(optimizer.param_groups) :]:
                optimizer.add_param_group({"params": [parameters[name] for name in names]})
        frozen, untracked = set(state["frozen"]), set(state["untracked"])
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in frozen)
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm):
                part.track_running_stats = name not in untracked

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Freeze; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()
            self.freeze_before_training(module)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Hold on to nothing of the module."""
        self._late = []

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Note which parameters the strategy will not know of."""
        self._late = [parameter for parameter in module.parameters() if not parameter.requires_grad]

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Thaw what is to be thawed in this epoch."""
        for optimizer in trainer.optimizers:
            self.finetune_function(module, trainer.current_epoch, optimizer)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._groups = [
            [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        self._untracked = [
            name
            for name, part in module.named_modules()
            if isinstance(part, _BatchNorm) and not part.track_running_stats
        ]

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> None:
        """Average over all workers the gradients of what was thawed after the workers were joined."""
        if trainer.world_size == 1:
            return
        for parameter in self._late:
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad = trainer.strategy.reduce(parameter.grad)


def multiplicative(epoch: int) -> float:
    """Return 2: the learning rate doubles with each epoch."""
    return 2.0


class BackboneFinetuning(BaseFinetuning):
    """Trains `module.backbone` from a certain epoch on, at a learning rate that grows to that of the rest.

    Args:
        unfreeze_backbone_at_epoch: that epoch, counted from 0.
        lambda_func: of an epoch's number makes the factor by which the backbone's learning rate grows.
        backbone_initial_ratio_lr: its first learning rate, in parts of the rest's.
        backbone_initial_lr: its first learning rate; default: by that ratio.
        should_align: do not let it grow beyond that of the rest.
        initial_denom_lr: taken for Lightning's sake: there is always a learning rate.
        train_bn: train its batch norm layers, too.
        verbose: log both learning rates at the start of each epoch.
        rounding: digits to log.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        super().__init__()

    def _begin(self) -> None:
        super()._begin()
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the backbone's learning rate, too."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the backbone's learning rate, too."""
        super().load_state_dict(state)
        self.previous_backbone_lr = state["previous_backbone_lr"]

    def freeze_before_training(self, pl_module: Module) -> None:
        """Freeze the backbone.

        Raises:
            ConfigError: the module has none.
        """
        if not isinstance(getattr(pl_module, "backbone", None), nn.Module):
            raise ConfigError(
                f"BackboneFinetuning freezes the module's backbone, and {type(pl_module).__name__} has none: call that "
                "part self.backbone, or derive from BaseFinetuning."
            )
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Module, epoch: int, optimizer: Optimizer) -> None:
        """Thaw the backbone, or let its learning rate grow."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        current = float(optimizer.param_groups[0]["lr"])
        if epoch == self.unfreeze_backbone_at_epoch:
            given = self.backbone_initial_lr
            lr = current * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr, self.initial_denom_lr, self.train_bn)
        else:
            assert self.previous_backbone_lr is not None
            lr = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            lr = current if self.should_align and lr > current else lr
            optimizer.param_groups[-1]["lr"] = lr
        self.previous_backbone_lr = lr
        if self.verbose:
            logger.info(
                "Epoch %d: learning rate %s, the backbone's %s.",
                epoch, round(current, self.rounding), round(lr, self.rounding),
            )  # fmt: skip


def _parts(modules: Modules) -> Iterator[nn.Module]:
    if isinstance(modules, nn.Module):
        yield from modules.modules()
        return
    for item in modules:
        yield from _parts(item)


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _set_trainable(layer: nn.Module, *, trainable: bool) -> None:
    if isinstance(layer, _BatchNorm):
        layer.track_running_stats = trainable
    for parameter in _own_parameters(layer):
        parameter.requires_grad = trainable
