"""Weights that are set to zero while the rest goes on being trained, by `torch.nn.utils.prune`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import prune

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback
from shipline.train.callbacks.masks import (
    MASK,
    ORIGINAL,
    Place,
    mask_at,
    masked_names,
    parameter_at,
    pruning_function,
    put_mask,
    redrawn,
    remove_masks,
)

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

Amount = int | float


class ModelPruning(Callback):
    """Prunes at the end of epochs, so that what is left is trained further.

    Each time, `amount` is of the weights that are left. Checkpoints hold the pruned weights under the module's own
    names; masks, and the weights behind them, are in the state of the run.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", or a class derived
            from `torch.nn.utils.prune.BasePruningMethod`.
        parameters_to_prune: pairs of a layer and its parameter's name; default: all that are called ...
        parameter_names: ... one of these; default: weight and bias.
        use_global_unstructured: rank the weights of all layers together, not each layer's.
        amount: the share to prune as a float, the number as an int, or a function of the epoch that returns one.
        apply_pruning: whether to prune, or a function of the epoch that says so.
        make_pruning_permanent: leave plain, pruned parameters in checkpoints and after training; False: leave masks.
        use_lottery_ticket_hypothesis: put what is left back to where it was before training, each time, or where a
            function of the epoch says so. Source: https://arxiv.org/abs/1803.03635
        resample_parameters: draw new values instead.
        pruning_dim: the dimension whose slices "structured" functions remove.
        pruning_norm: the norm by which "ln_structured" ranks them.
        verbose: 1 logs how much is pruned, 2 for each layer, too.
        prune_on_train_epoch_end: prune at the end of training epochs; False: of validations.
    """

    needs_whole_weights = True

    PARAMETER_NAMES = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: str | type[prune.BasePruningMethod],
        parameters_to_prune: Sequence[Place] = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: Amount | Callable[[int], Amount] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self._given = parameters_to_prune
        self._parameter_names = tuple(parameter_names or self.PARAMETER_NAMES)
        self._use_global_unstructured = use_global_unstructured
        self.amount = amount
        self._apply_pruning = apply_pruning
        self._make_pruning_permanent = make_pruning_permanent
        self._use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self._resample_parameters = resample_parameters
        self._verbose = verbose
        self._prune_on_train_epoch_end = prune_on_train_epoch_end
        for name in self._parameter_names:
            if name not in self.PARAMETER_NAMES:
                raise ConfigError(f"ModelPruning has parameter_names with {name!r}; choose of 'weight' and 'bias'.")
        if not callable(amount):
            _check_amount(amount)
        if verbose not in (0, 1, 2):
            raise ConfigError(f"ModelPruning has verbose={verbose!r}; choose 0, 1 or 2.")
        self.pruning_fn = pruning_function(pruning_fn, use_global_unstructured, pruning_dim, pruning_norm)
        self._begin()

    def _begin(self) -> None:
        self._places: dict[str, Place] = {}  # by the parameter's name in the module
        self._untrained: dict[str, torch.Tensor] = {}

    # ---- for those who derive, and who call --------------------------------------------------------------------------

    def filter_parameters_to_prune(self, parameters_to_prune: Sequence[Place] = ()) -> Sequence[Place]:
        """Override to leave out some of the pairs of layer and parameter's name."""
        return parameters_to_prune

    def apply_pruning(self, amount: Amount) -> None:
        """Prune so much of what is left."""
        _check_amount(amount)
        before = self._pruned()
        if self._use_global_unstructured:
            prune.global_unstructured(list(self._places.values()), pruning_method=self.pruning_fn, amount=amount)
        else:
            for layer, name in self._places.values():
                self.pruning_fn(layer, name=name, amount=amount)
        if self._verbose:
            self._log(before, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Put the weights back to where they were before training, or draw new ones."""
        values = self._drawn() if self._resample_parameters else self._untrained
        with torch.no_grad():
            for key, place in self._places.items():
                parameter_at(*place).copy_(values[key])

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Make plain parameters, with zeros, of those that have masks."""
        remove_masks(module)

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: nn.Module, parameters_to_prune: Sequence[Place] = (), parameter_names: Sequence[str] = ()
    ) -> Sequence[Place]:
        """Return the pairs of layer and parameter's name; where none are given, all that the module has.

        Raises:
            ConfigError: a layer is not the module's, or has no such parameter.
        """
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        layers = [part for part in pl_module.modules() if part is not pl_module and not isinstance(part, containers)]
        if not parameters_to_prune:
            names = parameter_names or ModelPruning.PARAMETER_NAMES
            found = [(layer, name) for name in names for layer in layers]
            return [place for place in found if isinstance(parameter_at(*place), nn.Parameter)]
        for place in parameters_to_prune:
            layer, name = place if isinstance(place, tuple | list) and len(place) == 2 else (None, None)
            if not isinstance(layer, nn.Module) or not isinstance(name, str):
                raise ConfigError(f"parameters_to_prune has {place!r}; give pairs: (module.layer, 'weight').")
            if not any(layer is part for part in layers) or parameter_at(layer, name) is None:
                raise ConfigError(
                    f"parameters_to_prune has {name!r} of a {type(layer).__name__}, which {type(pl_module).__name__} "
                    "does not have: give the layers of the module that is trained."
                )
        return parameters_to_prune

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return masks, the weights behind them, and those before training, by the names of the parameters."""
        masks = {key: mask for key, place in self._places.items() if (mask := mask_at(*place)) is not None}
        return {
            "masks": masks,
            "originals": {key: parameter_at(*self._places[key]).detach() for key in masks},
            "untrained": self._untrained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the weights before training; `on_load_checkpoint` has brought the masks back."""
        self._untrained = state["untrained"]

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have plain, pruned weights."""
        if not self._make_pruning_permanent:
            return
        weights = dict(checkpoint["state_dict"])
        for key in _masked_keys(module):
            original, mask = weights.pop(key + ORIGINAL), weights.pop(key + MASK)
            weights[key] = mask.to(original.dtype) * original
        checkpoint["state_dict"] = weights

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Put masks on again, with the weights behind them."""
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            return
        for key, mask in state["masks"].items():
            put_mask(*self._places[key], mask, state["originals"][key])
        weights, own = dict(checkpoint["state_dict"]), module.state_dict()
        for key in _masked_keys(module):
            weights.pop(key, None)
            for end in (ORIGINAL, MASK):
                weights[key + end] = own[key + end]
        checkpoint["state_dict"] = weights

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Find what to prune; a resumed run takes up its state afterwards."""
        if stage != "fit":
            return
        self._begin()
        found = self.sanitize_parameters_to_prune(module, self._given, self._parameter_names)
        prefixes = {id(part): f"{name}." for name, part in module.named_modules()}
        found = self.filter_parameters_to_prune(found)
        self._places = {prefixes[id(layer)] + name: (layer, name) for layer, name in found}

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Leave plain parameters, also after an error; hold on to nothing of the module."""
        if stage == "fit" and self._make_pruning_permanent:
            self.make_pruning_permanent(module)
        self._begin()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Keep the weights before training, where they may be wanted again."""
        if self._use_lottery_ticket_hypothesis and not self._untrained:
            self._untrained = {key: parameter_at(*place).detach().clone() for key, place in self._places.items()}

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Prune, where it is time."""
        if self._prune_on_train_epoch_end:
            self._prune(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Prune, where it is time."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self._prune_on_train_epoch_end:
            self._prune(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Leave plain parameters."""
        if self._make_pruning_permanent:
            self.make_pruning_permanent(module)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _prune(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not _wanted(self._apply_pruning, epoch) or not amount:
            return
        self.apply_pruning(amount)
        if _wanted(self._use_lottery_ticket_hypothesis, epoch):
            self.apply_lottery_ticket_hypothesis()
        if trainer.world_size > 1:
            self._share(trainer.strategy)

    @torch.no_grad()
    def _share(self, strategy: Strategy) -> None:
        """Let all workers have the first one's masks and weights: what is drawn at random differs between them."""
        for place in self._places.values():
            for tensor in (parameter_at(*place), mask_at(*place)):
                assert tensor is not None
                own = tensor if strategy.is_global_zero else torch.zeros_like(tensor)
                tensor.copy_(strategy.reduce(own, reduce_op="sum"))

    def _drawn(self) -> dict[str, torch.Tensor]:
        """New values of layers that know how to draw them; of others, those before training."""
        layers = {id(layer): layer for layer, _ in self._places.values()}
        fresh = {key: redrawn(layer) for key, layer in layers.items()}
        return {
            key: self._untrained[key] if fresh[id(layer)] is None else getattr(fresh[id(layer)], name)
            for key, (layer, name) in self._places.items()
        }

    def _pruned(self) -> dict[str, tuple[int, int]]:
        """How many of how many weights are pruned, by parameter."""
        found = {}
        for key, place in self._places.items():
            mask = mask_at(*place)
            found[key] = (0 if mask is None else int((mask == 0).sum()), parameter_at(*place).numel())
        return found

    def _log(self, before: dict[str, tuple[int, int]], amount: Amount) -> None:
        after = self._pruned()
        total = sum(size for _, size in after.values())
        old, new = (sum(zeros for zeros, _ in found.values()) for found in (before, after))
        logger.info("Pruned %d of %d weights, %.2f %%; before: %d.", new, total, 100 * new / total, old)
        if self._verbose == 2:
            for key, (zeros, size) in after.items():
                logger.info("  %s by %s: %d of %d, %.2f %%.", key, amount, zeros, size, 100 * zeros / size)


def _check_amount(amount: Any) -> None:
    share = isinstance(amount, float) and 0.0 <= amount <= 1.0
    if not share and (isinstance(amount, bool) or not isinstance(amount, int) or amount < 0):
        raise ConfigError(
            f"ModelPruning has amount={amount!r}; set a share as a float up to 1.0, a number of weights as an int, or "
            "a function of the epoch that returns one."
        )


def _wanted(setting: bool | Callable[[int], bool], epoch: int) -> bool:
    return setting(epoch) if callable(setting) else setting


def _masked_keys(module: nn.Module) -> list[str]:
    """The names in the module's state dict of all that has masks; a layer that is shared has several."""
    parts = module.named_modules(remove_duplicate=False)
    return [f"{prefix}.{name}".lstrip(".") for prefix, part in parts for name in masked_names(part)]
