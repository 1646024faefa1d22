"""One of several workers: its share of a stage, whoever started it."""

from __future__ import annotations

import traceback
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from shipline.errors import ShiplineError, TrainingError
from shipline.train import loops
from shipline.train.distributed import seed_worker
from shipline.train.distributed.group import first_failure

if TYPE_CHECKING:
    from shipline.train.stage import Work
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer

#: What collectives say whose other end is gone.
_ECHOES = (
    "connection closed by peer", "connection reset", "connection refused", "broken pipe", "timed out waiting", "gloo",
    "nccl", "recvvalue failed", "socket", "processgroup", "process group was aborted",
)  # fmt: skip


def run_worker(
    trainer: Trainer, stage: Work, module: Any, data: Any, strategy: Strategy, seed: int | None, **options: Any
) -> Any:
    """Run a stage as one of the workers of a group; predictions are those of all, in order."""
    seed_worker(seed, strategy.data_rank)
    found = loops.run(trainer, stage, module, data, strategy, **options)
    return _in_order(strategy.gather_data(found)) if stage == "predict" else found


def named(error: Exception, rank: int, workers: int) -> ShiplineError:
    """Return what a worker raised, if it is one of our errors, or one that names worker and cause."""
    if isinstance(error, ShiplineError):
        return error
    return TrainingError(f"Worker {rank} of {workers} failed: {type(error).__name__}: {error}")


def let_go(error: BaseException) -> None:
    """Let the frames that an error came through forget what they hold: the process group among it.

    What holds that when the interpreter ends would wait for its threads, and they for the interpreter.
    """
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__ or error


def explained_by_all(error: Exception, rank: int, workers: int) -> ShiplineError:
    """Return what ended this worker, or, where that is only that another one has failed, what ended that."""
    own, echo = named(error, rank, workers), is_echo(error)
    first = first_failure(str(own), echo=echo)
    if not echo:
        return own
    if first is not None:
        return TrainingError(first)
    return TrainingError(
        f"Worker {rank} of {workers} has lost another one, whose own words, or those of what started it, say why: "
        f"{error}"
    )


def is_echo(error: BaseException) -> bool:
    """Whether it only says that another worker is gone: that one's own error is the cause.

    torch.distributed raises errors of its own kinds, and plain RuntimeErrors that can be told by their text alone.
    """
    if isinstance(error, ShiplineError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _ECHOES)
    )


def _in_order(everybody: list[list[list[Any]]]) -> list[list[Any]]:
    """Predictions of all workers as one would have made them: batch by batch, of which each had every n-th."""
    loaders = zip(*everybody, strict=True)
    return [
        [batch for row in zip_longest(*shares, fillvalue=_NONE) for batch in row if batch is not _NONE]
        for shares in loaders
    ]


_NONE = object()
