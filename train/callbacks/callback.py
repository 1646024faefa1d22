"""What every callback is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shipline.train.options.configurable import Configurable

if TYPE_CHECKING:
    import torch

    from shipline.train.module import Module
    from shipline.train.trainer import Trainer


class Callback(Configurable):
    """Acts at the hooks of a run; see `ModuleHooks` for when each is called. State to keep goes in state_dict."""

    #: Callbacks that look at finished metrics come after all others at the end of an epoch.
    monitors = False
    #: Callbacks that save what everybody has done come after all others, and after the module, at every hook.
    saves = False
    #: Callbacks that change or copy weights need them whole, which some strategies have nowhere.
    needs_whole_weights = False
    #: The object of Lightning's that this one is used in place of.
    stands_for: Any = None

    @property
    def state_key(self) -> str:
        """The name of this callback's state in a checkpoint; distinct for two callbacks of one class."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of `state_dict`."""

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called first, with the stage: fit, validate, test or predict."""

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called last, also after an error."""

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Called when the run ends by an error or an interrupt."""

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the few validation batches that are tried before training."""

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the few validation batches that are tried before training."""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """See ModuleHooks."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """See ModuleHooks."""

    def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: torch.optim.Optimizer) -> None:
        """See ModuleHooks."""

    def on_before_backward(self, trainer: Trainer, module: Module, loss: torch.Tensor) -> None:
        """See ModuleHooks."""

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: torch.optim.Optimizer) -> None:
        """See ModuleHooks."""

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_test_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_test_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """See ModuleHooks; a callback's own state belongs in state_dict."""

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """See ModuleHooks."""

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """See ModuleHooks."""

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""

    def on_test_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""

    def on_predict_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """See ModuleHooks."""
