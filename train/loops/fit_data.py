"""The loaders of a fit: asked for when they are needed, and again where the Trainer is set to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError
from shipline.train.data import CombinedLoader, Feed, any_feed
from shipline.train.data.combined import own_combined
from shipline.train.data.fingerprint import fingerprint
from shipline.train.data.limits import count_batches, several
from shipline.train.data.sharding import shard, unshuffled
from shipline.train.hooks import overrides
from shipline.train.loops.evaluation import Source, sources

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


class FitData:
    """Batches to train and to validate on."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._feed: Feed | None = None
        self._validation: list[Source] | None = None
        self._feed_of = 0  # the epoch in which it was asked for
        self.train_loader: Any = None
        self.validation_loaders: Any = None

    @property
    def feed(self) -> Feed:
        """This worker's training batches."""
        if self._feed is None:
            trainer = self._trainer
            loader = own_combined(trainer.hooks.data("train_dataloader"))
            if trainer.overfit_batches:
                loader = unshuffled(loader)
            if trainer.use_distributed_sampler:
                loader = shard(loader, trainer.strategy.rank, trainer.strategy.world_size)
            self.train_loader = loader
            if isinstance(loader, dict | list | tuple):
                loader = CombinedLoader(loader, "max_size_cycle")
            self._feed = any_feed(loader)
            self._feed_of = self._in_step(trainer.progress.epochs_done)
            self.batches = count_batches(self._feed, trainer.limit_train_batches)
            self._check_interval()
        return self._feed

    #: How many batches an epoch has, and a validation of each loader; None where nobody knows.
    batches: int | None = None
    validation_batches: Sequence[int | None] = ()

    @property
    def validation(self) -> list[Source]:
        """This worker's share of each validation loader; none where there is nothing to validate."""
        if self._validation is None:
            trainer = self._trainer
            self._validation = []
            if self.has_validation:
                loaders = trainer.hooks.data("val_dataloader")
                if trainer.overfit_batches:
                    loaders = unshuffled(loaders)
                self.validation_loaders = loaders
                self._validation = sources(trainer, loaders, trainer.limit_val_batches)
            self.validation_batches = [source.own_batches() for source in self._validation]
            if trainer.resumed is None:
                trainer.progress.validation_loaders_of = trainer.progress.epochs_done
            if self._feed is not None:
                self._note_data()
        return self._validation

    @property
    def has_validation(self) -> bool:
        """Whether there is something to validate; no loader is asked for."""
        trainer = self._trainer
        wanted = trainer.limit_val_batches != 0 and overrides(trainer.module, "validation_step")
        return wanted and trainer.data.has_loader("val")

    def load(self) -> None:
        """Ask for the loaders of the coming epoch: for validation, if it will be due."""
        between = self._trainer.check_val_every_n_epoch
        assert self.feed is not None
        if self._validation is None and (between is None or (self._trainer.progress.epochs_done + 1) % between == 0):
            assert self.validation is not None  # which notes the data of both
        else:
            self._note_data()

    def _note_data(self) -> None:
        """Note in the lineage which data the loaders hold."""
        trainer = self._trainer
        if trainer.run_directory is not None and trainer.is_global_zero:
            own = overrides(trainer.data, "fingerprint")
            loaders = (self.train_loader, *several(self.validation_loaders))
            digest = trainer.data.fingerprint() if own else fingerprint(*loaders)
            trainer.lineage = trainer.lineage_so_far.model_copy(update={"data_fingerprint": digest})

    def close(self) -> None:
        """Let the loaders' worker processes end; the numbers of batches stay."""
        self._feed = self._validation = None

    def reload(self) -> None:
        """Ask for the loaders again when they are needed next: they have become others."""
        self._feed = self._validation = self.batches = None

    def renew(self) -> None:
        """At the beginning of an epoch, ask for the training loader again if it is time."""
        every, epoch = self._trainer.reload_dataloaders_every_n_epochs, self._trainer.progress.epochs_done
        if every and epoch - self._feed_of >= every:
            self._feed = None
            assert self.feed is not None

    def renew_validation(self) -> None:
        """Before a validation, forget its loaders if it is time to ask for them again."""
        every, progress = self._trainer.reload_dataloaders_every_n_epochs, self._trainer.progress
        if every and progress.epochs_done - progress.validation_loaders_of >= every:
            self._validation = None

    def train_state(self, batches_done: int) -> dict[str, Any] | None:
        """Return the position of the training loader, where so many batches of the epoch have been trained on."""
        return None if self._feed is None else self._feed.state_dict(batches_done)

    def validation_states(self) -> list[dict[str, Any]]:
        """Return the positions of the validation loaders."""
        return [source.feed.state_dict() for source in self._validation or []]

    def load_states(self, train: dict[str, Any] | None, validation: list[dict[str, Any]]) -> None:
        """Take up positions of all loaders."""
        if train is not None:
            self.feed.load_state_dict(train)
        for source, state in zip(self.validation if validation else [], validation, strict=False):
            source.feed.load_state_dict(state)

    def validation_due(self, validated_at: float, now: float) -> bool:
        """Whether to validate after the batch done last."""
        trainer, progress = self._trainer, self._trainer.progress
        every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
        if every is not None and (progress.current_epoch + 1) % every:
            return False
        if trainer.should_stop and trainer.may_stop():
            return True
        if trainer.val_check_seconds is not None:
            return now - validated_at >= trainer.val_check_seconds
        if isinstance(interval, float):
            if self.batches is None:
                return progress.last
            interval = max(1, int(self.batches * interval))
        return bool((progress.all_batches if every is None else progress.batches) % interval == 0)

    def _in_step(self, epoch: int) -> int:
        """The epoch in which an undisturbed run would have asked for the loaders."""
        every = self._trainer.reload_dataloaders_every_n_epochs
        return epoch - epoch % every if every else epoch

    def _check_interval(self) -> None:
        trainer = self._trainer
        interval = trainer.val_check_interval
        if trainer.val_check_seconds is not None or trainer.limit_val_batches == 0:
            return
        if isinstance(interval, float) and interval != 1.0 and self.batches is None:
            raise ConfigError(
                f"Trainer has val_check_interval={interval}, a share of the batches, and the training loader has no "
                "length: set a number of batches, or a time."
            )
        too_long = isinstance(interval, int) and self.batches is not None and interval > self.batches
        if too_long and trainer.check_val_every_n_epoch is not None:
            raise ConfigError(
                f"Trainer has val_check_interval={interval}, and an epoch has {self.batches} batches: set "
                "check_val_every_n_epoch=None to count batches over epochs, or limit_val_batches=0 not to validate."
            )
