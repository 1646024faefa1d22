"""`shipline serve`."""

from __future__ import annotations

from collections.abc import Sequence

from shipline.commands.console import split_positional
from shipline.commands.logs import log_to_terminal
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Serve until a signal."""
    arguments = log_to_terminal(arguments)
    url, rest = split_positional(arguments)
    parser = new_parser("serve", "Serve every model below a URL, given first; or one model; or one version.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every network.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 is any free one.")
    parser.add_argument(
        "--trust",
        type=str,
        action="append",
        default=[],
        help="URL below which models may hold code (TorchScript, torch.export, AOTInductor): whoever may write there "
        "can run what they like here. May be given several times.",
    )
    settings = parse(parser, rest)
    if url is None:
        raise ConfigError("What to serve? Give a URL first, such as: shipline serve s3://bucket/models --port 8000")
    from shipline.plugins import load_target

    load_target("shipline.serve.server:serve")(url, host=settings.host, port=settings.port, trust=settings.trust)
