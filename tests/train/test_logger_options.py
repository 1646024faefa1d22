"""What only one logger can do: servers, graphs, tables, images; and the page about runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import free_port
from logged import MLflowReader, TensorBoardReader, WandbReader
from training import Mlp, new_trainer, rows, train_loader, val_loader

import shipline as sl
from docs import blocks
from shipline.errors import ConfigError, StoreError
from shipline.store import open_store
from shipline.train import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from shipline.train.loggers.files import LibraryFiles


def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("runs", "python")
    assert len(examples) == 5
    for text in examples:
        exec(textwrap.dedent(text), {"sl": sl})  # noqa: S102 -- our own page
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every", [0, -1, True])
def test_csv_is_written_every_so_many_rows(every: int) -> None:
    with pytest.raises(ConfigError, match=f"flush_logs_every_n_steps={every}; set 1 or more"):
        CSVLogger(flush_logs_every_n_steps=every)


@pytest.mark.parametrize("make", [MLFlowLogger, WandbLogger])
def test_checkpoints_are_not_uploaded(make: Any) -> None:
    with pytest.raises(ConfigError, match=f"{make.__name__} has log_model=True: checkpoints stay in the run"):
        make(log_model=True)


# ---- MLflow ----------------------------------------------------------------------------------------------------------


def mlflow_history(uri: str, logger: MLFlowLogger, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(logger.run_id, name)]


def test_mlflow_at_a_tracking_uri_gets_no_value_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server forgets nothing: what it has from after the checkpoint is not sent again."""
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "server").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    store = open_store(str(tmp_path / "runs" / "digits" / "version_0"))
    first = MLFlowLogger(run_name="mine", tags={"team": "vision"})
    first.open(store, None)
    first.log_hyperparams({"lr": 0.1})
    first.log_metrics({"loss": 1.0}, 1)
    state = first.state_dict()
    for step in (2, 3):
        first.log_metrics({"loss": float(step), "val": 0.5}, step)
    first.finalize("failed")

    later = MLFlowLogger()
    later.load_state_dict(state)
    later.open(store, 2)
    for step in (2, 3, 4):
        later.log_metrics({"loss": float(step), "val": 0.5}, step)
    later.finalize("success")
    assert later.version == first.version
    assert mlflow_history(uri, later, "loss") == [(step, float(step)) for step in (1, 2, 3, 4)]
    assert mlflow_history(uri, later, "val") == [(step, 0.5) for step in (2, 3, 4)]
    run = MlflowClient(uri).get_run(later.run_id)
    assert (run.info.run_name, run.data.tags["team"], run.data.params["lr"]) == ("mine", "vision", "0.1")
    assert MlflowClient(uri).get_experiment(later.experiment_id).name == "digits"
    later.finalize("success")
    assert MlflowClient(uri).get_run(first.version).info.status == "FINISHED"
    assert not (tmp_path / "runs").exists()


def test_mlflow_that_refuses_metrics_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "server").as_uri()
    logger = MLFlowLogger(tracking_uri=uri)
    logger.open(None, None)
    tries = []

    def refuse(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise MlflowException("the server is away")

    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", refuse)
        for step in range(150):
            logger.log_metrics({"loss": float(step)}, step)
        assert len(tries) == 2  # each may take minutes
        with pytest.raises(StoreError, match="does not take metrics: the server is away"):
            logger.save()
    logger.save()
    assert mlflow_history(uri, logger, "loss") == [(step, float(step)) for step in range(150)]
    logger.finalize("success")
    assert caplog.text.count("Metrics are kept in memory until the server takes them.") == 1


def test_mlflow_that_cannot_be_reached_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"127.0.0.1:{free_port()}"
    trainer = new_trainer(tmp_path, max_epochs=1, logger=MLFlowLogger(tracking_uri=f"http://me:hunter2@{address}"))
    with pytest.raises(StoreError, match=re.escape(f"MLflow at http://***@{address} cannot be used")) as failed:
        trainer.fit(Mlp(), train_loader(64))
    assert trainer.global_step == 0
    assert "hunter2" not in str(failed.value)


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def test_wandb_takes_options_of_its_own_only() -> None:
    with pytest.raises(ConfigError, match=r"WandbLogger has no option 'projekt'\. Did you mean 'project'"):
        WandbLogger(projekt="x")
    with pytest.raises(ConfigError, match="log_image needs a list; got int"):
        WandbLogger().log_image("x", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="log_image has 2 items, and caption has 1"):
        WandbLogger().log_image("x", [1, 2], caption=["one"])


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_takes_tables_images_and_gradients(tmp_path: Path) -> None:
    logger = WandbLogger(project="pictures", tags=["first"], group="g")

    class Shows(Mlp):
        def on_train_start(self) -> None:
            image = rows(0, 1)[0][0].reshape(1, 8, 8)
            logger.log_image("scan", [image], step=0, caption=["a digit"])
            logger.log_table("table", columns=["a", "b"], data=[[1, 2.5]])
            logger.log_text("text", columns=["said"], data=[["yes"]])

    module = Shows()
    logger.watch(module, log_freq=1)
    run = new_trainer(tmp_path, max_epochs=1, log_every_n_steps=1, logger=logger).fit(module, train_loader(96))
    records = list(WandbReader().records(open_store(str(run.url))))
    logged: dict[str, Any] = {}
    for record in records:
        for item in record.history.item:
            logged[".".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert logged["scan.captions"] == ["a digit"]
    assert (logged["table._type"], logged["table.ncols"], logged["text.nrows"]) == ("table-file", 2, 1)
    assert any(name.startswith("gradients/layers.0.weight") for name in logged)
    assert logged["train_loss"] > 0
    begun = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun[0].project, begun[0].run_group, list(begun[0].tags)) == ("pictures", "g", ["first"])
    assert (logger.name, logger.version) == ("pictures", begun[0].run_id)


@pytest.mark.usefixtures("wandb_offline")
def test_a_run_of_wandb_that_was_given_is_left_open(tmp_path: Path) -> None:
    import wandb

    own = wandb.init(mode="offline", dir=tmp_path, project="given")
    logger = WandbLogger(experiment=own)
    new_trainer(tmp_path / "runs", max_epochs=1, log_every_n_steps=1, logger=logger).fit(Mlp(), train_loader(96))
    assert logger.version == own.id
    own.log({"more": 1})
    assert own.summary["train_loss"] > 0
    own.finish()
    assert "wandb" not in os.listdir(tmp_path / "runs" / "mlp" / "version_0")


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


class Drawn(Mlp):
    example_input_array = torch.zeros(2, 64)


def test_tensorboard_draws_the_module_and_leaves_it_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    module = Drawn(dropout=0.5)
    module.layers[2].eval()
    fits = []
    for name in ("drawn", "plain"):
        torch.manual_seed(5)
        logger = TensorBoardLogger(log_graph=name == "drawn", sub_dir="board")
        trainer = new_trainer(tmp_path, name=name, max_epochs=1, logger=logger, log_every_n_steps=1)
        sl.seed_everything(5)
        fits.append(trainer.fit(Drawn(dropout=0.5), train_loader(96), val_loader(32)))
    drawn, plain = (TensorBoardReader().events(open_store(f"{fit.url}/board")) for fit in fits)
    assert "layers" in str(drawn.Graph())
    assert not plain.Tags()["graph"]
    assert fits[0].metrics == fits[1].metrics  # nothing was drawn from the generators
    logger = TensorBoardLogger(str(tmp_path / "x"), log_graph=True)
    logger.log_graph(Mlp())
    assert "no example_input_array: set one" in caplog.text
    logger.log_graph(module, torch.zeros(2, 3))
    assert "The module's graph is not logged" in caplog.text
    assert [part.training for part in module.modules()] == [True, True, True, True, False, True]
    logger.finalize("success")


def test_tensorboard_takes_metrics_for_the_page_of_hyper_parameters(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", default_hp_metric=False)
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 8}}, {"acc": 0.5}, step=3)
    logger.log_metrics({"loss": 1.0, "both": {"a": 1.0, "b": 2.0}}, 4)
    logger.finalize("success")
    reader, store = TensorBoardReader(), open_store(str(logger.log_dir or tmp_path / "version_0"))
    assert reader.read(store) == {"acc": [(3, 0.5)], "loss": [(4, 1.0)]}
    assert reader.read_params(store) == {"lr": 0.1, "net/width": 8}
    assert (tmp_path / "version_0" / "both_a").is_dir()


def test_an_mlflow_run_can_be_read_where_files_were_uploaded(tmp_path: Path, s3: str) -> None:
    run = new_trainer(f"{s3}/runs", max_epochs=1, logger="mlflow", name="digits").fit(Mlp(), train_loader(64))
    reader = MLflowReader()
    reader.copies = tmp_path / "copies"
    assert reader.read_params(open_store(str(run.url)))["hidden"] == "32"


def test_files_that_the_store_does_not_take_in_the_end_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("memory://kept-files")
    files = LibraryFiles(store)
    (files.path / "events").write_text("all that was logged")

    def refuse(_key: str, _data: bytes) -> None:
        raise StoreError("Cannot write there: it is full.")

    monkeypatch.setattr(store, "write", refuse)
    with pytest.raises(StoreError, match=r"it is full\. What the logger wrote is kept in \S+: copy it") as caught:
        files.close()
    kept = Path(str(caught.value).partition("kept in ")[2].partition(": copy")[0])
    assert (kept / "events").read_text() == "all that was logged"
    assert not files.path.exists()
    shutil.rmtree(kept)
