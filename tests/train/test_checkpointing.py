"""What a checkpoint holds, and the module that comes back from one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import train
from torch import nn
from training import Mlp, Scripted, new_trainer, numbers, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.checkpoint import STATE, STATE_TENSORS, WEIGHTS, open_checkpoint
from shipline.errors import IntegrityError, TrainingError
from shipline.store import open_store
from shipline.train import Module
from shipline.train.checkpoints.weights import dump_weights

# ---- weights ---------------------------------------------------------------------------------------------------------


class Tied(Module):
    """An embedding whose weights are the head's, and a buffer."""

    def __init__(self, words: int = 5, width: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("also_empty", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x)) * self.scale  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0].long()).float().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    module = Tied()
    run = new_trainer(tmp_path, max_epochs=1).fit(module, numbers(5))
    checkpoint = run.checkpoint
    assert checkpoint.manifest.tied_weights == {"head.weight": "embedding.weight"}
    assert set(safetensors.torch.load(checkpoint.read(WEIGHTS))) == {"embedding.weight", "scale", "empty", "also_empty"}

    found = Tied.load_from_checkpoint(str(run.best_url))
    assert same_weights(found, module)
    assert found.head.weight is found.embedding.weight


def test_views_of_one_tensor_are_stored_each_as_it_is() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(6.0)
            for name, view in {"whole": whole, "part": whole[:2], "twisted": whole.reshape(2, 3).t()}.items():
                self.register_buffer(name, view)

    module = Views()
    data, tied = dump_weights(module.state_dict())
    assert tied == {}
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in safetensors.torch.load(data).items())


def test_extra_state_that_is_no_tensor_is_refused() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(TrainingError, match="extra state '_extra_state' is no tensor: keep it in a buffer"):
        dump_weights(Extra().state_dict())


def test_weights_that_could_not_be_read_back_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))

    with pytest.raises(TrainingError, match=r"phase is a tensor of torch\.complex128"):
        dump_weights(Odd().state_dict())


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_module_comes_back_from_a_checkpoint(url: str) -> None:
    run = train(url, Mlp(hidden=9, lr=0.05))
    found = Mlp.load_from_checkpoint(f"{url}/mlp/best")
    assert same_weights(found, run.module)
    assert found.hparams == {"hidden": 9, "dropout": 0.0, "lr": 0.05}
    assert Mlp.load_from_checkpoint(str(run.best_url), lr=0.5).lr == 0.5


def test_what_the_manifest_says(tmp_path: Path) -> None:
    sl.seed_everything(7)
    run = new_trainer(tmp_path, max_epochs=2).fit(Mlp(), train_loader(64), val_loader(32))
    manifest = run.checkpoint.manifest
    assert manifest.module == "training.Mlp"
    assert (manifest.epoch, manifest.global_step) == (1, 4)
    assert set(manifest.metrics) == {"train_loss", "val_loss", "val_acc"}
    assert manifest.metrics == pytest.approx(run.metrics)
    assert set(manifest.files) == {WEIGHTS, STATE, STATE_TENSORS}
    lineage = manifest.lineage
    assert (lineage.seed, lineage.world_size, lineage.packages["torch"]) == (7, 1, torch.__version__)
    assert str(lineage.data_fingerprint).startswith("sha256:")


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    """Its files are JSON and safetensors, whose header is JSON; the state has no objects."""
    run = train(tmp_path)
    assert run.best_url is not None
    files = [path for path in Path(run.best_url).rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".json", ".safetensors", ".safetensors"]
    for path in files:
        data = path.read_bytes()
        header = data if path.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")]
        assert isinstance(json.loads(header), dict)


def test_a_metric_that_is_no_number_is_null_in_the_manifest(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted([math.nan]), numbers(1), numbers(1))
    assert run.checkpoint.manifest.metrics == {"score": None}
    assert math.isnan(run.metrics["score"])


def test_a_checkpoint_can_be_saved_at_any_time_and_anywhere(url: str) -> None:
    module = Scripted()
    save = on_hook("on_train_batch_end", lambda trainer, *_: trainer.save_checkpoint(f"{url}/at/{trainer.global_step}"))
    trainer = new_trainer(url, max_epochs=1, callbacks=save, enable_checkpointing=False)
    trainer.fit(module, numbers(2))
    trainer.save_checkpoint(f"{url}/at/end")
    assert open_store(f"{url}/at").list() == ["1", "2", "end"]
    assert open_checkpoint(f"{url}/at/1").manifest.global_step == 1
    assert same_weights(Scripted.load_from_checkpoint(f"{url}/at/end"), module)


def test_saving_before_there_is_a_run() -> None:
    with pytest.raises(TrainingError, match="There is no run to save: call fit first"):
        new_trainer("unused").save_checkpoint("memory://nowhere/x")


class Other(Mlp):
    """The arguments of Mlp, and other weights."""

    def __init__(self, hidden: int = 32, dropout: float = 0.0, lr: float = 0.1) -> None:
        super().__init__(hidden, dropout, lr)
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.Linear(hidden, 10))


def test_weights_of_another_class_or_shape_are_refused(tmp_path: Path) -> None:
    url = str(train(tmp_path).best_url)
    with pytest.raises(IntegrityError, match=r"(?s)do not fit Other: .*layers\.1\.weight.* Give the class and"):
        Other.load_from_checkpoint(url)
    with pytest.raises(IntegrityError, match=r"(?s)do not fit Mlp: .*size mismatch.*\[8, 64\].*\[5, 64\]"):
        Mlp.load_from_checkpoint(url, hidden=5)
