"""What an operator may set about who is let in, and how long and how much a client may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self
from urllib.parse import urlsplit

from shipline.backends import DEVICES
from shipline.errors import ConfigError, unknown_name
from shipline.store import redact


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one connection, and of how many there are.

    Args:
        url_bytes: of a request's URL; 414 beyond.
        head_bytes: of a request's URL and headers together; 431 beyond.
        headers: of a request; 431 beyond.
        head_s: for a request's headers to arrive, and for the first byte of a new connection.
        body_s: for the whole request to arrive, from its first byte; 408 beyond.
        write_s: for a client to take what waits for it; then the connection is cut.
        keep_alive_s: between an answer and the next request.
        pipelined: requests read ahead of the answer to the one before them.
        connections: at a time; when they are all busy, new ones get 503 except for health.
    """

    url_bytes: int = 8 << 10
    head_bytes: int = 64 << 10
    headers: int = 256
    head_s: float = 10
    body_s: float = 30
    write_s: float = 30
    keep_alive_s: float = 5
    pipelined: int = 32
    connections: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"limits.{field.name} is {value}; choose one above 0.")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Who is let in, and how.

    Args:
        api_keys: file of keys (`shipline.serve.keys` says how it is written); with it, all but health needs a key.
        admin_without_key: without keys, let anybody who reaches the server load and unload models.
        allowed_hosts: names that requests may ask for in their Host header; '*' is any. By default the loopback's names
            when the server listens there, else any.
        tls_cert: file of the certificate, and those that vouch for it; makes the address https,
            and encrypts gRPC, too.
        tls_key: file of its private key.
        health_port: a second port, without TLS and keys, for health and metrics alone.
        otel: URL of the OpenTelemetry collector that traces are sent to, by OTLP over HTTP; without it, the one in
            OpenTelemetry's environment variables, if there is one.
        batch_delay_ms: milliseconds that a batch which is not full waits for more requests. By default none: a free
            backend takes at once what is there.
        device: what computes: "cpu", or "cuda" or "tensorrt" for the models that onnxruntime serves.
        memory_mib: MiB that the models of a process may take together; a load beyond is refused.
        limits: how long and how much a client may take.
    """

    api_keys: str | None = None
    admin_without_key: bool = False
    allowed_hosts: Sequence[str] | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    health_port: int | None = None
    otel: str | None = None
    batch_delay_ms: float = 0.0
    device: str = "cpu"
    memory_mib: float | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ConfigError(f"{missing} is not set; a certificate and its private key go together.")
        if self.otel is not None and not _is_web_address(self.otel):
            raise ConfigError(f"otel is {redact(self.otel)}; give the collector's URL, such as http://localhost:4318")
        if not 0 <= self.batch_delay_ms <= 1000:
            raise ConfigError(f"batch_delay_ms is {self.batch_delay_ms}; choose one from 0 to 1000.")
        if self.memory_mib is not None and not self.memory_mib > 0:
            raise ConfigError(f"memory_mib is {self.memory_mib}; choose one above 0.")
        if self.device not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if isinstance(self.allowed_hosts, str):
            raise ConfigError(
                f"allowed_hosts is {self.allowed_hosts!r}; give a list, such as [{self.allowed_hosts!r}]."
            )
        if self.admin_without_key and self.api_keys is not None:
            raise ConfigError("admin_without_key is set beside api_keys; with keys, an admin key is what it takes.")

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON can hold them, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """Return what `to_json` was called on."""
        return cls(**{**said, "limits": Limits(**said["limits"])})


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without their other half, a port that is no number
        return False
