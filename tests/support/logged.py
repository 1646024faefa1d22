"""What loggers have written, read back with the reader of each library."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shipline.store import Store
from shipline.train.loggers.files import stored_files

History = dict[str, list[tuple[int, float]]]


class CsvReader:
    """Reads what a CSVLogger writes."""

    def read(self, run: Store) -> History:
        """Return what was logged."""
        found: History = {}
        for row in csv.DictReader(io.StringIO(run.read("metrics.csv").decode())):
            step = int(row.pop("step"))
            for name, text in row.items():
                if text:
                    found.setdefault(name, []).append((step, float(text)))
        return found

    def read_params(self, run: Store) -> dict[str, Any]:
        """Return the hyper-parameters."""
        found: dict[str, Any] = yaml.safe_load(run.read("hparams.yaml"))
        return found


class LibraryReader:
    """Reads with a library that can read only what is on this machine."""

    copies: Path

    def local(self, store: Store) -> Path:
        """Return the directory of a store, or a copy of it on this machine."""
        if (root := getattr(store, "root", None)) is not None:
            return Path(root)
        target = self.copies / str(len(list(self.copies.glob("*"))))
        for key in stored_files(store):
            path = target / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.read(key))
        return target


class TensorBoardReader(LibraryReader):
    """Reads what a TensorBoardLogger writes."""

    def events(self, run: Store) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(self.local(run)), size_guidance={"scalars": 0}).Reload()

    def read(self, run: Store) -> History:
        events = self.events(run)
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }  # fmt: skip

    def read_params(self, run: Store) -> dict[str, Any]:
        from tensorboard.plugins.hparams import metadata

        found: dict[str, Any] = {}
        for data in self.all_hparams(run):
            start = metadata.parse_session_start_info_plugin_data(data)
            for name, value in start.hparams.items():
                found[name] = getattr(value, str(value.WhichOneof("kind")))
        return found

    def all_hparams(self, run: Store) -> Iterator[bytes]:
        """An accumulator keeps the first of several; the page of hyper-parameters reads them all."""
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        for file in sorted(self.local(run).glob("events.*")):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag == "_hparams_/session_start_info":
                        yield value.metadata.plugin_data.content


class MLflowReader(LibraryReader):
    """Reads the files that an MLFlowLogger writes."""

    def stored(self, name: str) -> str:
        return re.sub("[^A-Za-z0-9_.-]", "_", name.replace("/", "."))

    def client(self, run: Store) -> tuple[Any, Any]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient((self.local(run) / "mlruns").as_uri())
        [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
        [found] = client.search_runs([experiment.experiment_id])
        return client, found

    def read(self, run: Store) -> History:
        client, found = self.client(run)
        return {
            name: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
            for name in found.data.metrics
        }

    def read_params(self, run: Store) -> dict[str, Any]:
        params: dict[str, Any] = self.client(run)[1].data.params
        return params


class WandbReader:
    """Reads what a WandbLogger writes offline."""

    def records(self, run: Store) -> Iterator[Any]:
        from wandb.proto import wandb_internal_pb2

        files = sorted(key for key in stored_files(run) if key.endswith(".wandb") and "latest-run" not in key)
        files.sort(key=lambda key: (len(key), key))  # those of one second have -1, -2 ... at the end
        for key in files:
            for record in log_records(run.read(key)):
                parsed: Any = wandb_internal_pb2.Record.FromString(record)  # type: ignore[attr-defined]
                yield parsed

    def read(self, run: Store) -> History:
        found: History = {}
        steps = []
        for record in self.records(run):
            if record.WhichOneof("record_type") == "history":
                row = {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                step = row["trainer/global_step"]
                steps.append(row["_step"])
                for name, value in row.items():
                    if name != "trainer/global_step" and not name.startswith("_"):
                        number = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(value, value)
                        found.setdefault(name, []).append((step, number))
        assert steps == list(range(len(steps)))  # what the server counts by, over all files of the run
        return found

    def read_params(self, run: Store) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for record in self.records(run):
            for update in (record.config.update, record.run.config.update):
                for item in update:
                    found[item.key or item.nested_key[0]] = json.loads(item.value_json)
        return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records in a file of LevelDB's log format, which W&B's has: blocks of 32 KiB, of records with a header."""
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at < len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, at)
        assert kind in (1, 2, 3, 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
    assert parts == b""
