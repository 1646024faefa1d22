"""Runs over datasets of Ray, in this process and on two workers of a cluster; then one that starts its own cluster.

    python ray_rows_runs.py DIRECTORY

Writes into DIRECTORY/found.json what came of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import numpy as np
import ray
import torch
from clusters import ray_cluster
from torch.nn import functional as F
from training import Mlp, bare_trainer, new_trainer, rows

import shipline as sl
from shipline.errors import ShiplineError
from shipline.train import RayCluster, RayRows
from shipline.train.strategies.fsdp import TensorParallel

COUNT, HELD_OUT = 101, 37


def dataset(start: int, stop: int, blocks: int = 5) -> Any:
    """The digits as a dataset of Ray: image, digit, and the row's number."""
    images, digits = rows(start, stop).tensors
    columns = {"image": images.numpy(), "digit": digits.numpy(), "row": np.arange(start, stop)}
    found = ray.data.from_items([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return found.repartition(blocks)


class Net(Mlp):
    """Takes Ray's batches, dicts of columns, and writes down which rows it was given."""

    def __init__(self, seen: str | None = None) -> None:
        super().__init__(dropout=0.5)
        self.seen = seen

    def on_fit_start(self) -> None:
        torch.set_num_threads(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.seen is not None:
            path = Path(f"{self.seen}-{self.trainer.global_rank}")
            with path.open("a") as file:
                file.write(json.dumps([self.current_epoch, batch_idx, batch["row"].tolist()]) + "\n")
        return super().training_step((batch["image"], batch["digit"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self(batch["image"])
        self.log("val_loss", F.cross_entropy(scores, batch["digit"]))
        self.log("rows", float(len(scores)), reduce_fx="sum")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch_idx, batch["row"].tolist()

    def parallelize_plan(self) -> dict[str, Any]:
        return {"layers.0": "colwise", "layers.3": "rowwise"}


class Data(sl.DataModule):
    """Makes its datasets where it is asked for them: on the workers."""

    def __init__(self, shuffle: int = 0) -> None:
        self.shuffle = shuffle

    def train_dataloader(self) -> Any:
        return RayRows(dataset(0, COUNT), 8, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return RayRows(dataset(1400, 1400 + HELD_OUT), 8)


class Runs:
    """Each returns what the test looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _read(self, name: str) -> list[Any]:
        """What each worker was given: of each batch the epoch, its number in it, the rows."""
        files = sorted(self.root.glob(f"{name}-?"))
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]

    def batches(self) -> Any:
        """Of one process: without settings, with columns, shuffled in two epochs and again in the first."""
        own = dataset(0, COUNT)
        [bare] = list(sl.train.data.feed.feed(own).each())
        chosen = next(iter(RayRows(own, 4, columns=["digit", "image"], dtypes=torch.float32)))
        shuffled = RayRows(own, 8, shuffle=50, seed=3)  # which leaves the dataset's own options as they are
        orders = []
        for epoch in (0, 1, 0):
            shuffled.set_epoch(epoch)
            orders.append([row for batch in shuffled for row in batch["row"].tolist()])
        kept = own.context.execution_options.preserve_order
        return {
            "bare": {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in bare.items()},
            "chosen": [[str(tensor.dtype), list(tensor.shape)] for tensor in chosen], "orders": orders, "kept": kept,
        }  # fmt: skip

    def _fit(self, name: str, steps: int, workers: int, resume: str | None = None, **options: Any) -> Any:
        sl.seed_everything(0)
        module = Net(str(self.root / name))
        keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        trainer = new_trainer(self.root, name=name, max_steps=steps, workers=workers, callbacks=[keep], **options)
        trainer.fit(module, datamodule=Data(shuffle=16), ckpt_path=resume)
        return module.state_dict()

    def resumed(self) -> Any:
        """In the midst of the second epoch, by one worker and by two: how far from the whole run, and who got what."""
        found: dict[str, Any] = {}
        for workers, steps, until in ((1, 20, 16), (2, 12, 9)):  # 13 or 7 steps an epoch
            whole = self._fit(f"whole{workers}", steps, workers)
            middle = f"{self.root}/whole{workers}/version_0/checkpoints/epoch=1-step={until}"
            again = self._fit(f"again{workers}", steps, workers, middle)
            far = max(float((whole[name] - tensor).abs().max()) for name, tensor in again.items())
            found[str(workers)] = [far, self._read(f"whole{workers}"), self._read(f"again{workers}")]
        return found

    def fitted(self) -> Any:
        """Datasets as they are in place of loaders: in a dict; and to validate on, one batch, which one worker has."""

        class Both(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                self.log("small", float(len(batch["small"]["row"])), reduce_fx="sum", on_step=False, on_epoch=True)
                return super().training_step(batch["large"], batch_idx)

        trainer = bare_trainer(max_epochs=2, workers=2, limit_val_batches=1)
        loaders = {"large": RayRows(dataset(0, 53), 8), "small": dataset(0, 20)}
        trainer.fit(Both(str(self.root / "fitted")), loaders, dataset(1400, 1400 + HELD_OUT))
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        return [self._read("fitted"), metrics]

    def evaluated(self) -> Any:
        """Metrics and predictions by one worker and by two."""
        torch.manual_seed(0)
        module, data = Net(), RayRows(dataset(1400, 1400 + HELD_OUT, 3), 8)
        found = []
        for workers in (1, 2):
            trainer = bare_trainer(workers=workers)
            found.append([trainer.validate(module, data, verbose=False), trainer.predict(module, data)])
        return found

    def cut(self) -> Any:
        """Workers of `tp` have the same rows."""
        trainer = bare_trainer(max_epochs=1, workers=2, strategy=TensorParallel())
        trainer.fit(Net(str(self.root / "cut")), RayRows(dataset(0, 20), 8))
        return self._read("cut")

    def refused(self) -> Any:
        """What is said where Ray Data has no CPU to read with."""
        cluster = RayCluster(resources_per_worker={"CPU": 2})
        return self._error(lambda: bare_trainer(workers=2, max_epochs=1, cluster=cluster).fit(Net(), dataset(0, 40)))

    def _error(self, act: Callable[[], Any]) -> str:
        try:
            act()
        except ShiplineError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"


def main(root: Path) -> None:
    found = {}
    with ray_cluster(1, cpus=4) as cluster:
        ray.init(cluster.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        runs = Runs(root)
        for name in ("batches", "evaluated", "fitted", "resumed", "cut", "refused"):
            print(name, file=sys.stderr, flush=True)
            found[name] = getattr(runs, name)()
    print("own", file=sys.stderr, flush=True)
    own = new_trainer(root, name="own", max_epochs=1, workers=2, cluster=RayCluster(data_cpus=1))
    own.fit(Net(str(root / "own")), datamodule=Data())
    found["own"] = runs._read("own")
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
