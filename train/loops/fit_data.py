"""The loaders of a fit: asked for when they are needed, and again where the Trainer is set to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError
from shipline.train.data import CombinedLoader, Feed, any_feed
from shipline.train.data.combined import own_combined
from shipline.train.data.fingerprint import fingerprint
from shipline.train.data.limits import count_batches, several
from shipline.train.data.sharding import shard, unshuffled, with_batch_size
from shipline.train.data.shares import Moved, Share, SharedSampler, shared
from shipline.train.hooks import overrides
from shipline.train.loops.evaluation import Source, sources

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)


class FitData:
    """Batches to train and to validate on."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._feed: Feed | None = None
        self._validation: list[Source] | None = None
        self._feed_of = 0  # the epoch in which it was asked for
        self.train_loader: Any = None
        self.validation_loaders: Any = None
        self._accumulate = trainer.accumulate_grad_batches  # as it was set
        self._times = 1.0  # so many batches as the loader's own would be

    @property
    def feed(self) -> Feed:
        """This worker's training batches."""
        if self._feed is None:
            trainer = self._trainer
            loader = own_combined(trainer.hooks.data("train_dataloader"))
            if trainer.overfit_batches:
                loader = unshuffled(loader)
            if trainer.use_distributed_sampler:
                strategy, alone = trainer.strategy, trainer.worker_range is not None
                loader = shard(loader, strategy.data_rank, strategy.data_world_size, alone, strategy)
                loader = self._even(loader)
            self.train_loader = loader
            if isinstance(loader, dict | list | tuple):
                loader = CombinedLoader(loader, "max_size_cycle")
            self._feed = any_feed(loader)
            self._feed_of = self._in_step(trainer.progress.epochs_done)
            self._count()
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
        elif (sampler := self._sampler()) is not None and sampler.moved is not None:
            sampler.moved = None
            self._count()

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

    def share_state(self) -> dict[str, Any] | None:
        """Return how far the workers together are in the epoch's order, for those who may be more, or fewer."""
        if self._feed is None:
            return None
        trainer, sampler = self._trainer, self._sampler()
        done, every = trainer.progress.batches, trainer.accumulate_grad_batches
        done = done if trainer.progress.last else done - done % every
        state = {"workers": trainer.strategy.data_world_size, "steps": -(-done // every), "rows": None, "moved": None}
        if sampler is None:
            return state
        moved = sampler.moved if sampler.moved and sampler.moved.epoch == trainer.progress.current_epoch else None
        before, given = (moved.rows, moved.given) if moved else (0, 0)
        state["rows"] = before + (done * self.train_loader.batch_size - given) * trainer.strategy.data_world_size
        return state | {"moved": None if moved is None else [moved.epoch, moved.rows, moved.given]}

    def load_states(
        self, train: dict[str, Any] | None, validation: list[dict[str, Any]], share: dict[str, Any] | None = None
    ) -> None:
        """Take up positions of all loaders; `share` is what `share_state` returned then."""
        if train is not None:
            if share is not None and share.get("moves") and train["position"] is not None:
                train = self._moved(train, share)
            elif share is not None and share["moved"] and (sampler := self._sampler()) is not None:
                self._move(sampler, Moved(*share["moved"]))
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
        else:
            interval = self._scaled(interval)
        return bool((progress.all_batches if every is None else progress.batches) % interval == 0)

    # ---- a number of workers that changes ----------------------------------------------------------------------------

    def _even(self, loader: Any) -> Any:
        """Let a step take as many rows as the most workers would take: the learning rate was chosen for those."""
        trainer = self._trainer
        if trainer.worker_range is None or trainer.strategy.world_size == trainer.worker_range[1]:
            return loader
        now = trainer.strategy.data_world_size
        most = trainer.worker_range[1] * now // trainer.strategy.world_size  # shares that the most workers would have
        if not trainer.module.automatic_optimization or not _is_evenable(loader):
            wanted, size = most * self._accumulate, 1
        else:
            wanted, size = most * self._accumulate * loader.batch_size, loader.batch_size
        share = shared(wanted, now, size) if trainer.module.automatic_optimization else Share(now, 1, 1)
        trainer.accumulate_grad_batches, self._times = share.accumulate, share.accumulate / self._accumulate
        if trainer.is_global_zero:
            exact = "the same" if share.rows == wanted else f"{share.rows / wanted:.3f} times as many rows"
            what = f"of {share.batch_size} rows " if size > 1 else ""
            logger.warning(
                "%d of %d workers: each takes %d batches %sa step, which is %s as with all of them.",
                now, most, share.accumulate, what, exact,
            )  # fmt: skip
        return with_batch_size(loader, share.batch_size) if size > 1 else loader

    def _moved(self, train: dict[str, Any], share: dict[str, Any]) -> dict[str, Any]:
        """Return the position of this worker where others have made some steps of the epoch."""
        trainer, sampler = self._trainer, self._sampler()
        assert self.feed is not None
        position, progress = share["steps"] * trainer.accumulate_grad_batches, trainer.progress
        progress.all_batches += position - progress.batches
        progress.batches = position
        if sampler is None or share["rows"] is None:
            if trainer.is_global_zero:
                logger.warning(
                    "There were %d workers when the checkpoint was made, and the loader's order is another for each "
                    "number: in the epoch that goes on, rows may come twice, or not at all.", share["workers"],
                )  # fmt: skip
        elif (given := position * self.train_loader.batch_size) * trainer.strategy.data_world_size != share["rows"]:
            self._move(sampler, Moved(progress.current_epoch, share["rows"], given))
        return {**train, "position": position, "ahead": None, "ended": False}

    def _move(self, sampler: SharedSampler, moved: Moved) -> None:
        sampler.moved = moved
        sampler.set_epoch(moved.epoch)
        self._count()

    def _sampler(self) -> SharedSampler | None:
        sampler = getattr(self.train_loader, "sampler", None)
        return sampler if isinstance(sampler, SharedSampler) else None

    def _count(self) -> None:
        limit = self._trainer.limit_train_batches
        self.batches = count_batches(self._feed, self._scaled(limit) if isinstance(limit, int) else limit)

    def _scaled(self, batches: int) -> int:
        """As many batches as those of the loader's own size would be."""
        return max(1, round(batches * self._times)) if batches else batches

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
        too_long = isinstance(interval, int) and self.batches is not None and self._scaled(interval) > self.batches
        if too_long and trainer.check_val_every_n_epoch is not None:
            raise ConfigError(
                f"Trainer has val_check_interval={interval}, and an epoch has {self.batches} batches: set "
                "check_val_every_n_epoch=None to count batches over epochs, or limit_val_batches=0 not to validate."
            )


def _is_evenable(loader: Any) -> bool:
    return isinstance(getattr(loader, "sampler", None), SharedSampler) and loader.batch_size is not None
