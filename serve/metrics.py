"""What the server counts, for Prometheus. Labels are names of loaded models and statuses: a bounded set."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from shipline.serve.batcher import BatcherStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LABELS = ("model", "version")


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "shipline_requests", "Requests answered", (*_LABELS, "endpoint", "status"), registry=self.registry
        )
        self.seconds = self._histogram(
            "shipline_request_seconds", "From the whole body to the answer", (*_LABELS, "endpoint")
        )
        self.rows = self._histogram("shipline_batch_rows", "Rows of a batch", buckets=_ROWS)
        self.queue = self._histogram("shipline_queue_seconds", "Wait of a batch's oldest row")
        self.compute = self._histogram("shipline_compute_seconds", "The backend's time for a batch")
        self.last = Gauge(
            "shipline_last_inference_seconds", "When the last batch ended", _LABELS, registry=self.registry,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.ready = Gauge(
            "shipline_model_ready", "1 where the model takes traffic", _LABELS, registry=self.registry,
            multiprocess_mode="livemin",
        )  # fmt: skip

        self.memory = Gauge(
            "shipline_model_bytes", "Bytes of the model's file, and of memory that it takes", (*_LABELS, "of"),
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.dropped = Counter(
            "shipline_log_lines_dropped", "Lines of the log that nobody could be told", registry=self.registry
        )

    def _histogram(
        self, name: str, text: str, labels: Sequence[str] = _LABELS, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def for_model(self, model: str, version: str) -> ModelMetrics:
        """Return the metrics of one version of a model."""
        return ModelMetrics(self, model, version)

    def statistics(self, model: str, version: str) -> dict[str, Any]:
        """Return one version's sums as Triton's statistics: counts, and nanoseconds."""
        found = _Sums(self._whole(), {"model": model, "version": version})
        good = found.count("shipline_requests_total", lambda labels: labels["status"] == "200")
        bad = found.count("shipline_requests_total") - good
        batches = found.count("shipline_batch_rows_count")
        whole, queue, compute = (
            found.count(f"shipline_{part}_seconds_sum") for part in ("request", "queue", "compute")
        )
        memory = found.count("shipline_model_bytes", lambda labels: labels["of"] == "memory")
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": version,
            "last_inference": int(found.count("shipline_last_inference_seconds") * 1e3),
            "inference_count": int(found.count("shipline_batch_rows_sum")),
            "execution_count": int(batches),
            "inference_stats": {
                "success": _duration(good, whole),
                "fail": _duration(bad, 0.0),
                "queue": _duration(batches, queue),
                "compute_input": nothing,
                "compute_infer": _duration(batches, compute),
                "compute_output": nothing,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": int(memory)}],
        }

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._whole())

    def _whole(self) -> CollectorRegistry:
        """Return the metrics of every process that serves together with this one."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return self.registry
        whole = CollectorRegistry()
        MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
        return whole


class ModelMetrics(BatcherStats):
    """The metrics of one version, with their labels bound: looking them up costs more than counting."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._labels = (model, version)
        self._metrics = metrics
        self._rows = metrics.rows.labels(*self._labels)
        self._queue = metrics.queue.labels(*self._labels)
        self._last = metrics.last.labels(*self._labels)
        self._compute = metrics.compute.labels(*self._labels)
        self._bound: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def ready(self, *, value: bool) -> None:
        """Say whether the version takes traffic."""
        self._metrics.ready.labels(*self._labels).set(value)

    def memory(self, file: int, taken: int) -> None:
        """Say how large the model's file is, and how much memory it takes."""
        self._metrics.memory.labels(*self._labels, "file").set(file)
        self._metrics.memory.labels(*self._labels, "memory").set(taken)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""
        key = (endpoint, status)
        if key not in self._bound:
            counter = self._metrics.requests.labels(*self._labels, endpoint, str(status))
            self._bound[key] = (counter, self._metrics.seconds.labels(*self._labels, endpoint))
        counter, histogram = self._bound[key]
        counter.inc()
        histogram.observe(seconds)

    def batch(self, rows: int, waited_s: float, took_s: float) -> None:
        """Count a batch."""
        self._rows.observe(rows)
        self._queue.observe(waited_s)
        self._compute.observe(took_s)
        self._last.set(time.time())


class _Sums:
    """Samples of one version, read once."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self._samples = [
            sample
            for metric in registry.collect()
            for sample in metric.samples
            if labels.items() <= sample.labels.items()
        ]

    def count(self, name: str, where: Callable[[dict[str, str]], bool] = lambda labels: True) -> float:
        """Return the sum of the samples of this name."""
        return sum(sample.value for sample in self._samples if sample.name == name and where(sample.labels))


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * 1e9)}
