"""One of several workers that hold a part of the weights each: PyTorch's process group, the same loop.

    python sharded_worker.py RANK WORLD_SIZE DIRECTORY

Four workers train and save; two go on with what those have saved. Prints as JSON what this worker saw.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
)
from torch.utils.data import DataLoader
from training import StepsByHand, bare_trainer, new_trainer, on_hook
from transformer import Transformer, digits, transformer

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ShiplineError
from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.run import RunDirectory
from shipline.train.strategies import Ddp, Strategy
from shipline.train.strategies.fsdp import Fsdp, FsdpTensorParallel, TensorParallel
from shipline.train.strategies.pipeline import Pipeline, PipelineFsdp
from shipline.train.strategies.tensors import local
from shipline.train.strategies.zero import Zero1

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "zero1": Zero1,
    "fsdp": Fsdp,
    "fsdp, two copies": lambda: Fsdp(replicate=2),
    "fsdp, whole after forward": lambda: Fsdp(reshard_after_forward=False),
    "fsdp, activations twice": lambda: Fsdp(activation_checkpointing="Block", cpu_offload=True),
    "fsdp, other units": lambda: Fsdp(wrap=["Block", "Head"], param_dtype="float32"),
    "tp": TensorParallel,
    "tp, sequences": lambda: TensorParallel(plan=sequences()),
    "fsdp+tp, sequences": lambda: FsdpTensorParallel(plan=sequences()),
    "fsdp+tp": FsdpTensorParallel,
    "pp": Pipeline,
    "pp, interleaved": lambda: Pipeline(schedule="interleaved"),
    "pp+fsdp": lambda: PipelineFsdp(schedule="gpipe"),
}


def sequences() -> dict[str, Any]:
    """The plan of sequence parallelism (Korthikanti et al., arXiv 2205.05198): between the cut layers, each worker has
    some of the places of a sequence.
    """
    whole: dict[str, Any] = {"input_layouts": Shard(1), "desired_input_layouts": Replicate()}
    return {
        "embed": PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(1)),
        "blocks.*.norm": "sequence",
        "blocks.*.attention": PrepareModuleInput(**whole, use_local_output=True),
        **{f"blocks.*.attention.{name}": "colwise" for name in ("query", "key", "value")},
        "blocks.*.attention.out": RowwiseParallel(output_layouts=Shard(1)),
        "blocks.*.up": ColwiseParallel(input_layouts=Shard(1)),
        "blocks.*.down": RowwiseParallel(output_layouts=Shard(1)),
        "head": PrepareModuleInput(**whole, use_local_output=True),
    }


#: What saves, and who of others goes on with it.
SAVED = {"fsdp": "fsdp+tp", "fsdp+tp": "pp", "pp+fsdp": "ddp", "zero1": "fsdp"}


class ByHand(StepsByHand, Transformer):
    """With its backward pass inside the training step."""


def fit(trainer: sl.Trainer, module: Any, strategy: Strategy, resume: str | None = None) -> Any:
    """Train on the same rows, however many workers share them; return the weights, whole."""
    train = DataLoader(digits(0, 128), 32 // strategy.data_world_size)
    validation = DataLoader(digits(1400, 1437), 8)  # five batches
    checkpoint = None if resume is None else open_checkpoint(resume)
    loops.fit(trainer, module, Loaders(train, validation), checkpoint, strategy)
    return strategy.weights(module)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((one[name] - tensor).abs().max()) for name, tensor in other.items())


def trained() -> dict[str, Any]:
    """Of each strategy: how far weights and metrics are from those of one worker, and the share that a worker holds."""
    found = {}
    options: dict[str, Any] = {"max_epochs": 1, "gradient_clip_val": 0.3, "accumulate_grad_batches": 2}

    @cache
    def of_one(depth: int) -> tuple[Any, sl.Trainer]:
        alone = bare_trainer(**options)
        return fit(alone, transformer(depth=depth, optimizer="sgd"), Strategy()), alone

    for name, make in STRATEGIES.items():
        depth = 6 if name == "pp, interleaved" else 2  # eight stages need eight layers
        weights, alone = of_one(depth)
        trainer, module, strategy = bare_trainer(**options), transformer(depth=depth, optimizer="sgd"), make()
        distance = difference(fit(trainer, module, strategy), weights)
        metrics = {
            key: [float(value), float(alone.callback_metrics[key])] for key, value in trainer.callback_metrics.items()
        }
        held = sum(local(parameter).numel() for parameter in module.parameters() if not parameter.is_meta)
        found[name] = [distance, metrics, held / sum(parameter.numel() for parameter in module.parameters())]
    return found


def by_hand() -> float:
    """How far from one worker's the weights are of a module that steps its optimizer itself."""
    weights = []
    for strategy in (Strategy(), Fsdp()):
        torch.manual_seed(0)
        module = ByHand(depth=1, optimizer="sgd")
        weights.append(fit(bare_trainer(max_epochs=1, gradient_clip_val=None), module, strategy))
    return difference(*weights)


def held(root: str) -> dict[str, list[Any]]:
    """Of runs that are saved between the batches of one step: how far a resumed one is from the whole one, and from
    one worker's; and of how many parameters the checkpoint has gradients. Clipped by value, too.
    """
    found: dict[str, list[Any]] = {}
    options: dict[str, Any] = {"max_epochs": 1, "accumulate_grad_batches": 4, "gradient_clip_val": 0.01}
    options["gradient_clip_algorithm"] = "value"
    alone = fit(bare_trainer(**options), transformer(depth=1), Strategy())
    for name in ("fsdp", "tp, sequences"):
        url = f"{root}/held-{name}"
        save = on_hook(
            "on_train_batch_end", lambda trainer, *rest, url=url: rest[3] == 1 and trainer.save_checkpoint(url)
        )
        whole = fit(bare_trainer(**options, callbacks=[save]), transformer(depth=1), STRATEGIES[name]())
        again = fit(bare_trainer(**options), transformer(depth=1), STRATEGIES[name](), url)
        index = open_checkpoint(url).index("state/shards.index.json").root
        gradients = sum(key.startswith("gradients/") for key in index)
        found[name] = [difference(again, whole), difference(whole, alone), gradients - len(whole)]
    return found


def keys_left(root: str) -> int:
    """How many more keys the store of the group has after an evaluation in which workers lend their shards."""
    store = dist.distributed_c10d._get_default_store()
    strategy, trainer, module = Fsdp(), bare_trainer(max_epochs=1), transformer(depth=2)
    fit(trainer, module, strategy)
    before = store.num_keys()
    loops.evaluate(trainer, module, Loaders(val=DataLoader(digits(1400, 1437), 8)), "validate", strategy)
    return int(store.num_keys()) - before


def on_meta() -> list[Any]:
    """Weights of a module that was made without memory: the same from the same seed, whatever was drawn before, and by
    whatever strategy it was trained; how far they are from one worker's, and how far apart two layers.
    """
    strategies = {
        "one": Strategy, "zero1": Zero1, "fsdp": Fsdp, "tp": TensorParallel, "fsdp+tp": FsdpTensorParallel,
        "pp": Pipeline, "pp+fsdp": PipelineFsdp,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for draws, (name, make) in enumerate(strategies.items()):
        sl.seed_everything(3)
        torch.rand(draws)
        with torch.device("meta"):
            module = Transformer(depth=2, optimizer="sgd")
        found[name] = fit(bare_trainer(max_epochs=1), module, make())
    alone = found.pop("one")
    layers = [alone[f"blocks.{number}.up.weight"] for number in range(2)]
    far = {name: difference(weights, alone) for name, weights in found.items()}
    return [far, float(alone["embed.place"].std()), float((layers[0] - layers[1]).abs().max())]


def run(root: str, name: str, strategy: Strategy, epochs: int, resume: str | None = None) -> dict[str, torch.Tensor]:
    """Train with checkpoints; dropout is not in it, so that other numbers of workers come to the same."""
    sl.seed_everything(0)
    trainer = new_trainer(root, max_epochs=epochs, name=name, log_every_n_steps=1)
    trainer.run_directory = RunDirectory(f"{root}/{name}", "version_0")
    weights: dict[str, torch.Tensor] = fit(trainer, transformer(depth=2), strategy, resume)
    return weights


def saved(root: str, rank: int) -> dict[str, Any]:
    """Of each strategy: whether a resumed run is the whole one, bit for bit; how far those of others are from it."""
    found: dict[str, Any] = {}
    for name, other in SAVED.items():
        whole = run(root, f"{name}-whole", STRATEGIES[name](), 2)
        half = run(root, name, STRATEGIES[name](), 1)
        last = f"{root}/{name}/last"
        again = Transformer.load_from_checkpoint(last)
        # Every worker resumes as the one that it is, but for one that is alone.
        resumed = run(root, f"{name}-resumed", STRATEGIES[name](), 2, last)
        others = {other: Ddp() if other == "ddp" else STRATEGIES[other](), "one": Strategy()}
        far = {
            who: difference(run(root, f"{name}-{who}-{rank if who == 'one' else ''}", strategy, 2, last), whole)
            for who, strategy in others.items()
        }
        files = sorted(open_checkpoint(last).manifest.files)
        found[name] = [difference(again.state_dict(), half), difference(resumed, whole), far, files]
    return found


def refused() -> dict[str, str]:
    """What is said of settings that do not fit."""

    cases: dict[str, tuple[Strategy, nn.Module]] = {
        "sizes": (Fsdp(replicate=3), transformer()),
        "no plan": (TensorParallel(plan={}), transformer()),
        "no such part": (TensorParallel(plan={"blokcs.*.up": "colwise"}), transformer()),
        "no such style": (TensorParallel(plan={"blocks.*.up": "columns"}), transformer()),
        "no such class": (Fsdp(wrap="Blokc"), transformer()),
    }
    cases["callback"] = (Fsdp(), transformer())
    said = {}
    for name, (strategy, module) in cases.items():
        callbacks = [sl.train.EMAWeightAveraging()] if name == "callback" else []
        try:
            fit(bare_trainer(max_epochs=1, callbacks=callbacks), module, strategy)
        except ShiplineError as error:
            said[name] = str(error)
    return said


def main(rank: int, count: int, root: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    store = dist.FileStore(f"{root}/store-{count}", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=90))
    if count == 4:
        found = {"trained": trained(), "by_hand": by_hand(), "on_meta": on_meta(), "refused": refused()}
        found |= {"saved": saved(f"{root}/runs", rank), "held": held(root), "keys": keys_left(root)}
    else:
        runs = f"{root}/runs"
        two = run(runs, "two", Ddp(), 2, f"{runs}/fsdp/last")  # the first epoch was on four workers
        again = run(runs, f"one-{rank}", Strategy(), 3, f"{runs}/two/last")
        whole = run(runs, f"alone-{rank}", Strategy(), 3)
        other = Transformer.load_from_checkpoint(f"{runs}/fsdp-whole/last").state_dict()
        found = {"far": [difference(two, other), difference(again, whole)]}
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
