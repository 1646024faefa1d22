"""Two workers on a Ray cluster: one that the run starts itself, and one that it finds.

Each cluster takes 15 to 20 seconds to start and to train on, so tests share what a fixture has trained.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from clusters import Fault, alive_workers, ray_cluster
from helpers import S3_SECRET, children, wait_until
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import (
    Counting,
    CountsSteps,
    FailsOnOneWorker,
    bare_trainer,
    metric_rows,
    new_trainer,
    rows,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl
from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import TrainingError
from shipline.store import open_store
from shipline.train import RayCluster

# Ray uses what it has deprecated itself.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")]

VAL_ROWS = 97  # does not divide by two


@pytest.fixture(scope="module")
def ray_imported() -> None:
    """Ray sets a variable when it is imported, and keeps it."""
    import ray  # noqa: F401


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Iterator[str]:
    """A bucket for the tests of this module; the environment holds what is needed to reach it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").clear_instance_cache()
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    fsspec.filesystem("s3").clear_instance_cache()


@dataclass
class Trained:
    """What a fit on two workers left in this process."""

    trainer: sl.Trainer
    run: sl.train.Run
    module: Counting
    counter: CountsSteps
    stopping: sl.EarlyStopping
    environment_before: dict[str, str]
    environment_after: dict[str, str]

    @property
    def checkpoint(self) -> Checkpoint:
        return self.run.checkpoint


@pytest.fixture(scope="module")
def trained(ray_imported: None, bucket: str) -> Trained:
    """Six epochs on a cluster of its own, with everything on S3."""
    before = dict(os.environ)
    sl.seed_everything(0)
    module, counter, stopping = Counting(), CountsSteps(), sl.EarlyStopping("val_loss", patience=9)
    trainer = new_trainer(
        f"{bucket}/runs", max_epochs=6, workers=2, name="digits", log_every_n_steps=10,
        callbacks=[counter, stopping, sl.ModelCheckpoint(monitor="val_acc", mode="max")],
    )  # fmt: skip
    run = trainer.fit(module, train_loader(1399), val_loader(VAL_ROWS))
    return Trained(trainer, run, module, counter, stopping, before, dict(os.environ))


def test_two_workers_learn(trained: Trained) -> None:
    assert trained.run.metrics["val_acc"] > 0.85
    assert (trained.trainer.epochs_done, trained.trainer.current_epoch) == (6, 6)
    assert trained.trainer.global_step == 6 * 22  # 1,399 rows: 700 for each worker, in batches of 32


def test_the_weights_come_back_to_the_drivers_module(trained: Trained) -> None:
    last = Counting.load_from_checkpoint(str(trained.run.last_url))
    assert same_weights(trained.module, last)
    assert trained.run.module is trained.module
    assert trained.module.trainer is trained.trainer


def test_metrics_are_those_of_one_process(trained: Trained) -> None:
    """Each row counts once, though the two shares differ by one."""
    [alone] = bare_trainer().validate(trained.module, val_loader(VAL_ROWS))
    found = trained.run.metrics
    assert found["rows"] == alone["rows"] == VAL_ROWS
    assert found["right"] == alone["right"]
    assert found["val_acc"] == pytest.approx(found["right"] / VAL_ROWS, abs=1e-7)
    assert found["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)


def test_the_states_of_callbacks_come_back(trained: Trained) -> None:
    assert trained.counter.count == 6 * 22
    assert trained.stopping.best_score <= trained.run.metrics["val_loss"]
    keep = trained.trainer.checkpoint_callback
    assert keep is not None
    assert keep.best_model_path == trained.run.best_url


def test_the_run_and_its_checkpoints_are_on_s3(trained: Trained, bucket: str) -> None:
    assert trained.run.url == f"{bucket}/runs/digits/version_0"
    assert str(trained.run.best_url).startswith(f"{bucket}/runs/digits/version_0/checkpoints/")
    assert open_checkpoint(f"{bucket}/runs/digits/last").manifest.epoch == 5
    assert len(open_store(f"{trained.run.url}/checkpoints").list()) <= 2
    assert [row["epoch"] for row in metric_rows(str(trained.run.url)) if "rows" in row] == [*"012345"]


def test_lineage_names_workers_seed_and_data(trained: Trained, tmp_path: Path) -> None:
    lineage = trained.checkpoint.manifest.lineage
    assert (lineage.world_size, lineage.seed) == (2, 0)
    assert "ray" in lineage.packages
    one = new_trainer(tmp_path, max_steps=1, num_sanity_val_steps=0, enable_checkpointing=False)
    one.fit(Counting(), train_loader(1399), val_loader(VAL_ROWS))
    assert lineage.data_fingerprint == one.lineage.data_fingerprint


def test_the_cluster_is_gone_and_the_environment_as_it_was(trained: Trained) -> None:
    import ray

    assert not ray.is_initialized()
    assert trained.environment_after == trained.environment_before


def test_one_process_goes_on_from_two_workers(trained: Trained, tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, max_epochs=7, callbacks=sl.EarlyStopping("val_loss", patience=9))
    run = trainer.fit(Counting(), train_loader(1399), val_loader(VAL_ROWS), ckpt_path=trained.run.last_url)
    assert (trainer.epochs_done, trainer.global_step) == (7, 6 * 22 + 44)
    assert run.metrics["val_acc"] > 0.85


def test_a_kept_cluster_serves_several_runs(ray_imported: None, tmp_path: Path) -> None:
    """A run that fails says the first cause; the plain loop of another finds the cluster as it was."""
    from shipline.train.launch.cluster import close_warm

    before = children()
    try:
        the_first_cause_of_a_workers_error_is_what_is_raised(tmp_path / "fails")
        kept = children()
        a_driver_that_gives_up_leaves_no_workers(tmp_path / "given-up")
        a_plain_loop_on_several_workers(tmp_path / "loop")
        assert kept >= children() > before
    finally:
        close_warm()
    assert children() <= before


def the_first_cause_of_a_workers_error_is_what_is_raised(path: Path) -> None:
    """The other worker then fails in its collectives, which says nothing to the user."""
    module = FailsOnOneWorker()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = new_trainer(path, max_epochs=2, workers=2, cluster=RayCluster(keep_warm=True))
    with pytest.raises(TrainingError) as caught:
        trainer.fit(module, train_loader(128), val_loader(9))
    where, what = str(caught.value).split(" failed ")
    assert re.fullmatch(r"Worker 1 of 2 \(node 127\.0\.0\.1, process \d+\)", where)
    assert what == "at step 1: ValueError: the disk of this worker is full"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


def a_driver_that_gives_up_leaves_no_workers(path: Path) -> None:
    """It was told to end, and they do not answer: their places are free again."""
    import ray

    path.mkdir()
    trainer = new_trainer(
        path, max_epochs=2, workers=2, cluster=RayCluster(keep_warm=True, grace_s=1),
        callbacks=[Fault("term driver and hang", 1, 0, path)],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        trainer.fit(Counting(), train_loader(128), val_loader(9))
    assert ended.value.code == 143
    wait_until(lambda: alive_workers() == 0)
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_a_worker_that_dies_as_it_joins_is_replaced(ray_imported: None, tmp_path: Path) -> None:
    """The places of the first attempt are free for the second."""
    mark = tmp_path / "mark"
    variables = {"PYTHONPATH": str(Path(__file__).parents[1] / "support"), "SHIPLINE_TEST_MARK": str(mark)}
    start = {"worker_process_setup_hook": "clusters.die_once_as_workers_join", "env_vars": variables}
    trainer = new_trainer(
        tmp_path, max_epochs=1, workers=2, cluster=RayCluster(runtime_env=start, wait_s=20), name="joined"
    )
    trainer.fit(Counting(), train_loader(128), val_loader(9))
    assert mark.exists()
    assert trainer.global_step == 2
    faults = json.loads((tmp_path / "joined/version_0/faults.json").read_text())
    assert [fault["cause"] for fault in faults] == ["loss"]


def a_plain_loop_on_several_workers(path: Path) -> None:
    """Workers share the rows, exchange gradients, and the first one writes."""

    def train(loop: Any) -> Any:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = nn.Linear(64, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapped, optimizer, loader = loop.prepare(model, optimizer, DataLoader(rows(0, 64), 16))
        seen = 0
        for _ in loop.epochs(2):
            for image, digit in loader:
                optimizer.zero_grad()
                F.cross_entropy(wrapped(image), digit).backward()
                optimizer.step()
                seen += len(digit)
            loop.save()
        weights = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
        return loop.strategy.gather((loop.rank, loop.world_size, seen, weights))

    done = new_trainer(path, workers=2, cluster=RayCluster(keep_warm=True)).run(train)
    (rank, size, seen, weights), other = done.result
    assert (rank, size, seen) == (0, 2, 64)
    assert other == (1, 2, 64, weights)
    assert open_checkpoint(str(done.last_url)).manifest.global_step == 4


USER_MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import shipline as sl


class Net(sl.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(sl.DataModule):
    def train_dataloader(self):
        open("train.py").close()  # in the user's directory
        return DataLoader(TensorDataset(torch.randn(64, 2)), batch_size=8)
"""

CONFIG = """
seed_everything: 0
module: {class_path: train.Net}
data: {class_path: train.Data}
trainer: {max_epochs: 2, workers: 2, accelerator: cpu, name: mine}
"""


def run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a user's command in the user's directory."""
    return subprocess.run(command, cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_users_own_file_called_train_works(tmp_path: Path) -> None:
    """Neither `shipline.train` nor the workers take it for something else."""
    (tmp_path / "train.py").write_text(USER_MODULE)
    (tmp_path / "train.yaml").write_text(CONFIG)
    done = run([str(Path(sys.executable).with_name("shipline")), "train", "train.yaml"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = open_checkpoint(str(tmp_path / "runs" / "mine" / "best")).manifest
    assert manifest.module == "train.Net"
    assert (manifest.epoch, manifest.lineage.world_size) == (1, 2)
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert lines[0] == ["Name", "Type"]
    assert [line for line in lines if line[0] in ("Name", "epoch")][1:] == [["epoch", "1/2"], ["epoch", "2/2"]]


ON_A_CLUSTER = (
    USER_MODULE
    + """

class NoStep(Net):
    training_step = sl.Module.training_step


def fit(module, workers, **cluster):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    cluster = sl.train.RayCluster(**cluster)
    trainer = sl.Trainer(max_epochs=2, workers=workers, accelerator="cpu", cluster=cluster, **quiet)
    try:
        print("trained", trainer.fit(module, Data()).metrics["loss"] < 1.0)
    except sl.ShiplineError as error:
        print(type(error).__name__, error)


if __name__ == "__main__":
    fit(Net(), 3)
    fit(Net(), 2, resources_per_worker={"CPU": 4})
    fit(Net(), 2, placement="STRICT_SPREAD")
    fit(Net(), 2, accelerator_type="A100")
    fit(NoStep(), 2)
    fit(Net(), 2)
"""
)


@pytest.fixture
def cluster(ray_imported: None) -> Iterator[str]:
    """The address of a cluster with two CPUs that somebody else has started; the environment holds its token."""
    with ray_cluster(1, cpus=2) as found:
        yield found.address


def test_a_cluster_that_is_there_is_used_and_left_running(cluster: str, tmp_path: Path) -> None:
    """Classes of the script itself; too few CPUs and wrong settings are the user's error, in our words."""
    (tmp_path / "train.py").write_text(ON_A_CLUSTER)
    done = run([sys.executable, "train.py"], tmp_path, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[0] == (
        "ConfigError Trainer has workers=3, and each takes 1 CPU, but the cluster has 2: set workers to 2 or less."
    )
    assert "each takes 4 CPU, but the cluster has 2 of it: set a smaller RayCluster(resources_per_worker=" in said[1]
    assert "with placement='STRICT_SPREAD' there is room for 1 on 1 node with 2 CPU: set fewer workers" in said[2]
    assert "has accelerator_type='A100', but the cluster has no accelerator: set one that it has" in said[3]
    assert said[4:] == [
        "ConfigError NoStep has no training_step: define training_step(self, batch, batch_idx).",
        "trained True",
    ]
    assert open_checkpoint(str(tmp_path / "runs" / "net" / "best")).manifest.lineage.world_size == 2


EVALUATION = """
import sys
sys.path.insert(0, {support!r})
import torch
from torch.utils.data import DataLoader
from training import Counting, bare_trainer, rows


class Predicts(Counting):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


torch.manual_seed(0)
module = Predicts()
loaders = [DataLoader(rows(1400, 1497), 16), DataLoader(rows(0, 33), 32)]

if __name__ == "__main__":
    found = []
    for workers in (1, 2):
        trainer = bare_trainer(workers=workers)
        found.append((trainer.validate(module, loaders, verbose=False), trainer.predict(module, loaders)))
    (one, alone), (two, together) = found
    for part, other in zip(alone, together, strict=True):
        assert [len(batch) for batch in part] == [len(batch) for batch in other]
        assert torch.allclose(torch.cat(part), torch.cat(other), atol=1e-6)
    print(one == two, [sum(map(len, part)) for part in together])
"""


def test_evaluation_on_two_workers_is_that_of_one(cluster: str, tmp_path: Path) -> None:
    """Results bit for bit, and predictions in the order of the dataset; loaders whose batches do not divide by two."""
    (tmp_path / "evaluate.py").write_text(EVALUATION.format(support=str(Path(__file__).parents[1] / "support")))
    done = run([sys.executable, "evaluate.py"], tmp_path, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["True", "[97,", "33]"]
