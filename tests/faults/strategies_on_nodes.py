"""Every strategy that divides a model, by four workers on a Ray cluster of three nodes, all on this machine.

    python strategies_on_nodes.py DIRECTORY

Writes into DIRECTORY/found.json how far the weights are from those of one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import ray
import torch
from clusters import ray_cluster
from torch.utils.data import DataLoader
from training import new_trainer
from transformer import Transformer, digits, transformer

import shipline as sl
from shipline.train import RayCluster

WORKERS, BATCH = 4, 16
#: And how many workers have rows of their own.
STRATEGIES = {"zero1": 4, "fsdp": 4, "tp": 1, "pp": 1, "fsdp+tp": 2}


class Nodes(sl.Callback):
    """Writes down on which node each worker is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        torch.set_num_threads(1)
        self.path.mkdir(exist_ok=True)
        (self.path / str(trainer.global_rank)).write_text(ray.get_runtime_context().get_node_id())


def fit(root: Path, module: Any, shares: int, **options: Any) -> Any:
    """Two steps on the same rows, however many workers share them."""
    loader = DataLoader(digits(0, 2 * BATCH), BATCH // shares)
    trainer = new_trainer(root, max_epochs=1, **options)
    return trainer.fit(module, loader, DataLoader(digits(1400, 1437), 8))


def difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def main(root: Path) -> None:
    alone = transformer(optimizer="sgd")
    metrics = fit(root, alone, 1, name="alone").metrics
    found: dict[str, Any] = {}
    with ray_cluster(3, cpus=2) as cluster:
        ray.init(cluster.address, log_to_driver=False)
        spread: dict[str, Any] = {"workers": WORKERS, "cluster": RayCluster(placement="SPREAD")}
        for name, shares in STRATEGIES.items():
            print(name, file=sys.stderr, flush=True)
            module, nodes = transformer(optimizer="sgd"), Nodes(root / f"nodes-{name}")
            run = fit(root, module, shares, name=name.replace("+", "-"), strategy=name, callbacks=[nodes], **spread)
            loss = abs(run.metrics["val_loss"] - metrics["val_loss"])
            places = [path.read_text() for path in sorted(nodes.path.iterdir())]
            found[name] = [difference(module, alone), loss, len(places), len(set(places))]
        print("meta", file=sys.stderr, flush=True)
        with torch.device("meta"):
            empty = Transformer(optimizer="sgd")
        run = fit(root, empty, 4, name="meta", strategy="fsdp", **spread)
        found["meta"] = difference(empty, Transformer.load_from_checkpoint(str(run.last_url)))
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
