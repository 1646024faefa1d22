"""Tensors and state on their way into a committed directory: copied while training waits, written while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from shipline.checkpoint import STATE, STATE_TENSORS, WEIGHTS, CheckpointManifest
from shipline.errors import ExistsError, TrainingError
from shipline.store import Committed, Publication, Store
from shipline.store.store import Data
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.tree import Tensors, encode_tree
from shipline.train.checkpoints.writer import Writer

if TYPE_CHECKING:
    from shipline.train.checkpoints.sharded import ShardSaver


@dataclass
class Saver:
    """Memory for the copies, and the thread that writes them."""

    writer: Writer = field(default_factory=Writer)
    weights: Image = field(default_factory=Image)
    state: Image = field(default_factory=Image)
    #: The same for strategies whose workers hold parts; the first such checkpoint makes it.
    shards: ShardSaver | None = None

    def save(
        self,
        directory: Store,
        weights: Tensors,
        state: Any,
        manifest: CheckpointManifest,
        *,
        first: Sequence[Callable[[], None]] = (),
        replace: bool = False,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Copy the tensors, then commit them in the background.

        Args:
            directory: for this checkpoint alone.
            weights: of the module, by name.
            state: a tree of what only a resumed run needs; None leaves it out.
            manifest: what the checkpoint says of itself, but for its files.
            first: called in the background before.
            replace: a checkpoint that is there already.
            then: called in the background when it is committed.

        Raises:
            TrainingError: the checkpoint before could not be written; or something in the state cannot be kept.
        """
        self.writer.wait()  # the images are still being written
        files: dict[str, Data] = {WEIGHTS: self.weights.fill(weights)}
        if state is not None:
            files[STATE], tensors = encode_tree(state)
            files[STATE_TENSORS] = self.state.fill(tensors)
        todo: list[Callable[[], None]] = [*first, partial(_commit, directory, files, manifest, replace)]
        if then is not None:
            todo.append(then)

        def write() -> None:
            while todo:  # tried again, it goes on where it failed
                todo[0]()
                todo.pop(0)

        self.writer.submit(str(directory), write)


def _commit(directory: Store, files: dict[str, Data], manifest: CheckpointManifest, replace: bool) -> None:
    with Publication(directory) as publication:
        for name, data in files.items():
            publication.add(name, data)
        commit(publication, manifest, replace)


def commit(publication: Publication, manifest: CheckpointManifest, replace: bool) -> None:
    """Commit a checkpoint whose files are all added.

    Raises:
        TrainingError: another one was committed there before.
    """
    try:
        publication.commit(manifest, replace)
    except ExistsError:
        # Perhaps by ourselves: a store may take a file and then fail to say so.
        directory = publication.directory
        there = Committed[CheckpointManifest].open(directory, CheckpointManifest).manifest
        if {name: entry.sha256 for name, entry in there.files.items()} != publication.digests():
            raise TrainingError(f"{directory} holds another checkpoint already; give each a name of its own.") from None
