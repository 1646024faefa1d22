"""`shipline serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from shipline.commands.console import split_positional
from shipline.commands.logs import log_to_terminal
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Serve until a signal."""
    arguments = log_to_terminal(arguments)
    url, rest = split_positional(arguments)
    parser = new_parser("serve", "Serve every model below a URL, given first; or one model; or one version.")
    add_server_options(parser)
    settings = parse(parser, rest)
    if url is None:
        raise ConfigError("What to serve? Give a URL first, such as: shipline serve s3://bucket/models --port 8000")
    serve_as_set(url, settings, settings.trust)


def check_server(settings: Namespace) -> None:
    """Raise ConfigError, or MissingExtraError, where a server could not be started so."""
    from shipline.plugins import load_target

    check = load_target("shipline.serve.server:check")
    check(_server_settings(settings), settings.trust, settings.grpc_port)


def _server_settings(settings: Namespace) -> Any:
    from shipline.plugins import load_target

    kind: Any = load_target("shipline.serve.settings:ServerSettings")
    limits = load_target("shipline.serve.settings:Limits")(**vars(settings.limits))
    given = {field.name: getattr(settings, field.name) for field in fields(kind) if field.name != "limits"}
    return kind(**given, limits=limits)


def serve_as_set(url: str, settings: Namespace, trust: Sequence[str]) -> None:
    """Serve until a signal, as the options of `add_server_options` say."""
    from shipline.plugins import load_target

    load_target("shipline.serve.server:serve")(
        url,
        host=settings.host,
        port=settings.port,
        grpc_port=settings.grpc_port,
        trust=trust,
        workers=settings.workers,
        settings=_server_settings(settings),
    )


def add_server_options(parser: ArgumentParser) -> None:
    """Where it listens, with how many processes, whom it trusts, and what an operator may set."""
    from shipline.plugins import load_target

    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every network.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 is any free one.")
    parser.add_argument(
        "--grpc-port",
        type=int,
        default=None,
        help="Port to listen on for gRPC, too; 0 is any free one. Without it there is no gRPC.",
    )
    parser.add_argument("--workers", type=int, default=1, help="Processes that serve together, each with the models.")
    parser.add_argument(
        "--trust",
        type=str,
        action="append",
        default=[],
        help="URL below which models may hold code (TorchScript, torch.export, AOTInductor): whoever may write there "
        "can run what they like here. May be given several times.",
    )
    _add_safety(parser, load_target("shipline.serve.settings:Limits"))


def _add_safety(parser: ArgumentParser, limits: Any) -> None:
    """Who is let in, and how."""
    parser.add_argument(
        "--api-keys",
        type=str,
        help="File of lines 'inference KEY' or 'admin KEY' (or sha256:DIGEST): all but health needs one of them.",
    )
    parser.add_argument(
        "--admin-without-key",
        action="store_true",
        help="Without keys, let anybody who reaches the server load and unload models.",
    )
    parser.add_argument(
        "--allowed-hosts",
        type=str,
        action="append",
        help="Name that requests may ask for in their Host header; '*' is any. May be given several times. By default "
        "the loopback's names when the server listens there, else any.",
    )
    parser.add_argument(
        "--tls-cert", type=str, help="Certificate (PEM, with those that vouch for it): https, and TLS for gRPC."
    )
    parser.add_argument("--tls-key", type=str, help="The certificate's private key (PEM, without a password).")
    parser.add_argument("--health-port", type=int, help="A second port, without TLS and keys, for health and metrics.")
    parser.add_argument(
        "--otel",
        type=str,
        help="URL of the OpenTelemetry collector (OTLP over HTTP) that traces are sent to, such as "
        "http://localhost:4318; by default the one in OTEL_EXPORTER_OTLP_ENDPOINT.",
    )
    parser.add_argument(
        "--batch-delay-ms",
        type=float,
        default=0.0,
        help="Milliseconds that a batch which is not full waits for more requests. By default none.",
    )
    parser.add_argument(
        "--device",
        type=str,
        default="cpu",
        help="What computes: cpu, or cuda or tensorrt for the models that onnxruntime serves (with onnxruntime-gpu).",
    )
    parser.add_argument(
        "--memory-mib", type=float, help="MiB that the models of a process may take together; more is not loaded."
    )
    parser.add_argument("--limits", type=limits, default=limits(), help="How long and how much a client may take.")
