"""A checkpoint of a run that fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shipline.errors import ConfigError, ShiplineError
from shipline.store import absolute, check_name, join, open_store
from shipline.store.commit import MANIFEST, discard
from shipline.train import checkpoints
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)


class OnExceptionCheckpoint(Callback):
    """Saves where a fit stands when it ends by an error or an interrupt; a fit that succeeds deletes what is there.

    Resumed from it, the run goes on with the batch that failed. Several workers cannot save together once one of them
    has failed: they go on from their last checkpoint.

    Args:
        dirpath: URL of a directory.
        filename: the checkpoint's name in it.
    """

    def __init__(self, dirpath: str, filename: str = "on_exception") -> None:
        if not filename:
            raise ConfigError("OnExceptionCheckpoint has an empty filename: name the checkpoint, or leave it out.")
        self.dirpath = absolute(str(dirpath))
        self.filename = check_name("checkpoint", filename)
        self._failed = False

    @property
    def ckpt_path(self) -> str:
        """URL of the checkpoint."""
        return join(self.dirpath, self.filename)

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew."""
        self._failed = False

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Save; what goes wrong here is logged, so that the error that ended the run is the one that is seen."""
        self._failed = True
        # Before a resumed run trains, where its loaders stand is not known to them yet; its own checkpoint is there.
        if trainer.state.fn != "fit" or not trainer.progress.all_batches or trainer.resumed is not None:
            return
        store = open_store(self.ckpt_path)
        if trainer.world_size > 1:
            logger.warning("%d workers cannot save together after an error: no %s.", trainer.world_size, store)
            return
        try:
            checkpoints.save(trainer, store, replace=True)
            trainer.saver.writer.close()  # waits for it; a store that is away is not tried again for minutes
        except ShiplineError as error:
            logger.error("OnExceptionCheckpoint could not save %s: %s", store, error)
        else:
            logger.info("Saved %s, where the run stands: resume with that as ckpt_path.", store)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Delete the checkpoint of an earlier run, once this one has come to its end."""
        if stage != "fit" or self._failed or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        store = open_store(self.dirpath)
        try:
            if store.at(self.filename).exists(MANIFEST) and not discard(store, self.filename):
                logger.warning("%s is being read, and stays: delete it later.", store.at(self.filename))
        except ShiplineError as error:
            logger.warning("OnExceptionCheckpoint could not delete %s: %s", store.at(self.filename), error)
