"""The same file trains in one process, on workers of Ray, sent to a cluster, under torchrun and under SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import free_port
from ray_head import ray_head

from shipline.checkpoint import open_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SCRIPT = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import shipline as sl

ROWS = 16  # of a step, however many workers there are


class Net(sl.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        loss = (self.layers(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Data(sl.DataModule):
    def train_dataloader(self):
        torch.set_num_threads(1)
        rows = torch.randn(160, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(rows, rows.sum(1, keepdim=True)), ROWS // self.trainer.world_size)


if __name__ == "__main__":
    root, *workers = sys.argv[1:]
    sl.seed_everything(0)
    settings = {"workers": int(workers[0])} if workers else {}
    trainer = sl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=root, enable_progress_bar=False, **settings)
    trainer.fit(Net(), Data())
"""
SEND = ["--module=mine.Net", "--data=mine.Data", "--seed_everything=0", "--trainer.max_epochs=2", "--trainer.workers=2"]
WAYS = ("one process", "workers=2", "submitted", "torchrun", "SLURM")


class Started:
    """The file, and where its runs go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.script = folder, folder / "mine.py"
        self.script.write_text(SCRIPT)

    def command(self, name: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start one, in the folder of the file."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        return subprocess.Popen(
            words, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def ended(self, *processes: subprocess.Popen[str]) -> None:
        """Wait for them, who must succeed; none is left."""
        try:
            for process in processes:
                said, _ = process.communicate(timeout=240)
                assert process.returncode == 0, said
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def runs(self, way: str) -> str:
        """Where the runs of a way go."""
        return str(self.folder.parent / way.replace(" ", "-"))

    def python(self, way: str, *more: str, **variables: str) -> subprocess.Popen[str]:
        """`python mine.py ROOT ...`."""
        return self.command(way, sys.executable, str(self.script), self.runs(way), *more, **variables)

    def weights(self, way: str) -> tuple[int, dict[str, torch.Tensor]]:
        """How many workers there were, and the weights that they have left."""
        import safetensors.torch

        checkpoint = open_checkpoint(f"{self.runs(way)}/net/last")
        return checkpoint.manifest.lineage.world_size, checkpoint.weights(safetensors.torch.load)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """All ways, one after another: each has the machine for itself."""
    folder = tmp_path_factory.mktemp("anywhere") / "code"
    folder.mkdir()
    found = Started(folder)
    found.ended(found.python("one process"))
    found.ended(found.python("workers=2", "2"))
    with ray_head() as head:
        words = [str(Path(sys.executable).with_name("shipline")), "train", "--submit", head.address, *SEND]
        words += [f"--trainer.default_root_dir={found.runs('submitted')}", "--trainer.accelerator=cpu"]
        found.ended(found.command("submitted", *words, **head.environment))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    torchrun += ["--master-port", str(free_port()), str(found.script), found.runs("torchrun")]
    found.ended(found.command("torchrun", *torchrun))
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_JOB_NAME": "mine", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [{**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"} for rank in "01"]
    found.ended(*(found.python("SLURM", **task) for task in tasks))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_one_process(started: Started, way: str) -> None:
    """As near as sums of halves are to sums of wholes; two workers have the same, whoever started them."""
    count, found = started.weights(way)
    assert count == (1 if way == "one process" else 2)
    _, alone = started.weights("one process")
    _, together = started.weights("workers=2")
    assert found.keys() == alone.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-6)
        assert count == 1 or torch.equal(tensor, together[name])


def test_it_has_trained(started: Started) -> None:
    """The weights are not those that it began with."""
    _, found = started.weights("one process")
    torch.manual_seed(0)
    assert not torch.equal(found["layers.0.weight"], torch.nn.Linear(8, 16).weight)
