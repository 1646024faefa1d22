"""The probe beside a module that learns without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callback_checks import check_exact_resume, fit, same_tree
from torch import nn
from torch.nn import functional as F
from training import Recorder, bare_trainer, new_trainer, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import OnlineEvaluator

Z_DIM = 12


class Autoencoder(sl.Module):
    """Learns digits without labels, with dropout and batch norm: what a second forward pass could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, Z_DIM), nn.BatchNorm1d(Z_DIM), nn.Dropout(0.1))
        self.decoder = nn.Linear(Z_DIM, 64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(image)
        return found

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self(image)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.mse_loss(self.decoder(self(batch[0])), batch[0])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self.decoder(self(batch[0])), batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def probe(**options: Any) -> OnlineEvaluator:
    return OnlineEvaluator(**{"z_dim": Z_DIM, "num_classes": 10, "hidden_dim": 16} | options)


@pytest.mark.parametrize("options", [{}, {"hidden_dim": None}, {"representation": "encode"}], ids=str)
@pytest.mark.parametrize("trainer", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}], ids=str)
def test_a_module_with_the_probe_ends_as_the_one_without(
    tmp_path: Path, options: dict[str, Any], trainer: dict[str, Any]
) -> None:
    modules = []
    for name, callbacks in {"alone": [], "probed": [probe(**options)]}.items():
        torch.manual_seed(0)
        module = Autoencoder()
        fit(tmp_path / name, module, *callbacks, epochs=3, **trainer)
        modules.append(module)
    assert same_weights(*modules)


@pytest.mark.parametrize("cut_at", [5, 20])
def test_the_probe_resumes_exactly(tmp_path: Path, cut_at: int) -> None:
    check_exact_resume(tmp_path, Autoencoder, probe, cut_at)


def test_the_probe_learns_and_is_logged() -> None:
    def look(trainer: sl.Trainer, *_: Any) -> None:
        losses.append(float(trainer.callback_metrics["online_train_loss"]))
        assert 0 <= trainer.callback_metrics["online_train_acc"] <= 1

    losses: list[float] = []
    recorder, looking = Recorder(), on_hook("on_train_batch_end", look)
    trainer = bare_trainer(max_epochs=12, callbacks=[probe(lr=0.01), looking], logger=recorder, log_every_n_steps=1)
    sl.seed_everything(0)
    trainer.fit(Autoencoder(), train_loader(512), val_loader(100))
    assert {"online_train_loss", "online_train_acc"} <= set(recorder.rows[0][1])
    assert len(losses) == 12 * 16
    assert losses[-1] < 0.5 * losses[0]
    accuracies = [value for _, value in recorder.of("online_val_acc")]
    assert len(accuracies) == len(recorder.of("online_val_loss")) == 12
    assert accuracies[-1] > 0.8 > accuracies[0]


def test_the_probe_is_what_its_definition_says() -> None:
    """One step by hand: representations as in evaluation, without gradients, and Adam on the probe alone."""
    seen: dict[str, Any] = {}

    def look(_trainer: Any, module: Any, _outputs: Any, batch: Any, _index: int) -> None:
        copied = Autoencoder()
        copied.load_state_dict(module.state_dict())
        with torch.no_grad():
            z = copied.eval()(batch[0])
        loss = F.cross_entropy(linear(z), batch[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen["modes"] = {part.training for part in module.modules()}

    callback = probe(hidden_dim=None, drop_p=0.0, lr=0.1)
    linear = nn.Linear(Z_DIM, 10)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.1)

    def begin(*_: Any) -> None:
        assert callback.probe is not None
        linear.load_state_dict({k.split(".")[1]: v.clone() for k, v in callback.probe.state_dict().items()})

    hooks = [on_hook("on_train_start", begin), on_hook("on_train_batch_end", look)]
    bare_trainer(max_epochs=1, callbacks=[callback, *hooks]).fit(Autoencoder(), train_loader(96))
    assert callback.probe is not None
    for parameter, expected in zip(callback.probe.parameters(), linear.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    assert seen["modes"] == {True}


def test_a_batch_of_another_form_and_a_single_row(tmp_path: Path) -> None:
    class Views(Autoencoder):
        """Trains on a dict of views, as contrastive methods do."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["views"][0], batch["label"]), batch_idx)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(self.encoder[0](image))

    data = [{"views": (row, row + 0.1), "label": label} for row, label in train_loader(33).dataset]
    loader = torch.utils.data.DataLoader(data, batch_size=16)  # the last batch is a single row
    callback = probe(get_batch=lambda batch: (batch["views"][1], batch["label"]))
    trainer = bare_trainer(max_epochs=1, callbacks=callback)
    trainer.fit(Views(), loader)
    assert "online_train_acc" in trainer.callback_metrics


def test_each_fit_begins_with_a_new_probe(tmp_path: Path) -> None:
    callback, states = probe(), []
    for name in ("one", "two"):
        fit(tmp_path / name, Autoencoder(), callback, on_hook("on_fit_start", lambda *_: None), epochs=1)
        states.append(callback.state_dict())
    callback.setup(bare_trainer(), Autoencoder(), "fit")
    fresh = callback.state_dict()
    other = probe()
    other.setup(bare_trainer(), Autoencoder(), "fit")
    assert same_tree(fresh, other.state_dict())
    assert not same_tree(states[0]["probe"], fresh["probe"])


def test_the_trained_probe_also_looks_at_a_validation_of_its_own() -> None:
    callback = probe()
    trainer = bare_trainer(max_epochs=1, callbacks=callback)
    module = Autoencoder()
    assert "online_val_acc" not in bare_trainer(callbacks=probe()).validate(module, val_loader(32))[0]
    trainer.fit(module, train_loader(64), val_loader(32))
    [found] = trainer.validate(module, val_loader(32))
    assert found["online_val_acc"] == pytest.approx(float(trainer.callback_metrics["online_val_acc"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z_dim": 7}, r"has z_dim=7, and the representations are of shape \[32, 12\]: set z_dim to their size"),
        ({"z_dim": 0}, "has z_dim=0; set 1 or more"),
        ({"hidden": 3}, r"has no option 'hidden'\. Did you mean 'hidden_dim'\?"),
    ],
)
def test_what_cannot_be_probed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=probe(**options)).fit(Autoencoder(), train_loader(32))


def test_a_batch_without_labels_is_named() -> None:
    class Unlabelled(Autoencoder):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch,), batch_idx)

    loader = torch.utils.data.DataLoader([row for row, _ in train_loader(32).dataset], batch_size=16)
    with pytest.raises(ConfigError, match="this one is a Tensor: set get_batch to a function that returns both"):
        new_trainer("unused", max_epochs=1, callbacks=probe(), logger=False, enable_checkpointing=False).fit(
            Unlabelled(), loader
        )
