"""What the models of one server have in common."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shipline.errors import MissingExtraError
from shipline.plugins import load_target
from shipline.serve.memory import Memory
from shipline.serve.metrics import Metrics
from shipline.serve.trust import Trust

if TYPE_CHECKING:
    from shipline.serve.tracing import Tracing

logger = logging.getLogger(__name__)

TRACING = "shipline.serve.tracing:Tracing"
_PROTOCOL = "http/protobuf"


@dataclass(frozen=True, kw_only=True)
class Hosting:
    """Where what they do is counted and traced, and what they may hold.

    Args:
        metrics: count what they do.
        trust: says which of them may hold code.
        tracing: tells what became of each request; None is nobody.
        memory: counts what they take, and limits it.
        batch_delay_s: seconds that a batch which is not full waits for more.
        device: what computes, where a model's backend can.
    """

    metrics: Metrics = field(default_factory=Metrics)
    trust: Trust = field(default_factory=Trust)
    tracing: Tracing | None = None
    memory: Memory = field(default_factory=Memory)
    batch_delay_s: float = 0.0
    device: str = "cpu"


def open_tracing(url: str | None) -> Tracing | None:
    """Return what sends traces to the collector at this URL, or where OpenTelemetry's environment says; else None.

    Raises:
        MissingExtraError: a URL is given, and OpenTelemetry is not installed.
    """
    if url is None and not _in_environment():
        return None
    try:
        tracing: Tracing = load_target(TRACING).exporting(url)
    except MissingExtraError as error:
        if url is not None:
            raise
        logger.warning("There are no traces, though the environment asks for them. %s", error)
        return None
    return tracing


def _in_environment() -> bool:
    """Whether OpenTelemetry's variables ask for traces, of a kind that there is here."""
    said = {name: os.environ.get(f"OTEL_{name}", "").strip() for name in _VARIABLES}
    if not (said["EXPORTER_OTLP_TRACES_ENDPOINT"] or said["EXPORTER_OTLP_ENDPOINT"]):
        return False
    if said["SDK_DISABLED"].lower() == "true" or said["TRACES_EXPORTER"] not in ("", "otlp"):
        return False
    protocol = said["EXPORTER_OTLP_TRACES_PROTOCOL"] or said["EXPORTER_OTLP_PROTOCOL"] or _PROTOCOL
    if protocol != _PROTOCOL:
        logger.warning("There are no traces: the environment asks for OTLP by %r; here is %s.", protocol, _PROTOCOL)
    return protocol == _PROTOCOL


_VARIABLES = (
    "EXPORTER_OTLP_ENDPOINT",
    "EXPORTER_OTLP_TRACES_ENDPOINT",
    "EXPORTER_OTLP_PROTOCOL",
    "EXPORTER_OTLP_TRACES_PROTOCOL",
    "SDK_DISABLED",
    "TRACES_EXPORTER",
)
