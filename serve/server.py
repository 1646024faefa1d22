"""The process: a socket, uvicorn, signals; and the same in a thread for scripts and tests."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shipline.errors import ConfigError, ServingError, ShiplineError
from shipline.plugins import load_target
from shipline.serve.access import Access
from shipline.serve.http.app import Application
from shipline.serve.http.connection import Config
from shipline.serve.http.gate import Gate, Hosts, hosts_of
from shipline.serve.http.listening import Server, health_config, tls_context
from shipline.serve.keys import Keys
from shipline.serve.settings import ServerSettings
from shipline.serve.trust import Trust
from shipline.store import redact

if TYPE_CHECKING:
    from shipline.serve.grpc.server import GrpcServer

logger = logging.getLogger("shipline.serve")

GRACE_S = 30


class Serving:
    """A server for the models below a URL, on a socket that is bound already: the port is ours or the start fails.

    Raises:
        ServingError: a port is taken.
        ConfigError: there is no such port or host, a URL to trust is none, or keys or certificates are not good.
        MissingExtraError: gRPC is asked for, and not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        grpc_port: int | None = None,
        trust: Sequence[str] = (),
        grace_s: int = GRACE_S,
        settings: ServerSettings | None = None,
    ) -> None:
        self._url = url
        settings = settings or ServerSettings()
        if settings.tls_cert and grpc_port is not None:
            raise ConfigError("tls_cert is set beside grpc_port; gRPC is not encrypted here. Leave one of them out.")
        self._app = Application(url, self._fail, Trust(trust))
        keys = Keys(settings.api_keys) if settings.api_keys is not None else None
        access = Access(keys, admin_without_key=settings.admin_without_key)
        hosts = Hosts(settings.allowed_hosts)
        tls = tls_context(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
        self._scheme = "https" if tls else "http"
        with contextlib.ExitStack() as undo:
            self._socket = undo.enter_context(_bind(host, port))
            self._bound: tuple[str, int] = self._socket.getsockname()[:2]
            own = Hosts(hosts_of(self._bound[0]))
            health = None
            if settings.health_port is not None:
                bound = undo.enter_context(_bind(host, settings.health_port))
                health = health_config(Gate(self._app, own, Access()), settings.limits), bound
            self._grpc = None if grpc_port is None else _grpc_server(host, grpc_port, self._app, grace_s, access)
            undo.pop_all()
        gate = Gate(self._app, own if settings.allowed_hosts is None else hosts, access)
        config = Config(gate, settings.limits, tls, lifespan="on", timeout_graceful_shutdown=grace_s)
        self._server = Server(config, self._app, health, self._grpc)
        self._error: ShiplineError | None = None

    @property
    def address(self) -> str:
        """The server's own URL."""
        return f"{self._scheme}://{_joined(*self._bound)}"

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC's clients connect to, as host:port; None where it is off."""
        return None if self._grpc is None else self._grpc.address

    @property
    def ready(self) -> bool:
        """Whether every model takes traffic."""
        return self._app.ready

    @property
    def error(self) -> ShiplineError | None:
        """What loading failed with, or None."""
        return self._error

    def run(self) -> None:
        """Serve until a signal, or until `stop`.

        Raises:
            ShiplineError: a model could not be loaded.
        """
        logger.info("Serving %s on %s (docs: %s/docs)", redact(self._url), self.address, self.address)
        if self._grpc is not None:
            logger.info("Serving gRPC on %s", self._grpc.address)
        try:
            with self._obeying_signals():
                self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._server.close_health()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Take no new traffic, finish what was accepted, end `run`."""
        self._app.stopping = True
        self._server.should_exit = True

    @contextlib.contextmanager
    def _obeying_signals(self) -> Iterator[None]:
        """Stop on a signal before uvicorn listens to them, too; and take it for obeyed when uvicorn raises it again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.signal(name, lambda *_: self.stop()) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _fail(self, error: ShiplineError) -> None:
        self._error = error
        self.stop()


class BackgroundServer:
    """A server in a thread of this process, ready when the block begins and stopped when it ends."""

    def __init__(
        self,
        url: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        grpc_port: int | None = None,
        trust: Sequence[str] = (),
        settings: ServerSettings | None = None,
    ) -> None:
        self._serving = Serving(url, host=host, port=port, grpc_port=grpc_port, trust=trust, settings=settings)
        self._thread = threading.Thread(target=self._run, name="shipline-serve")

    @property
    def url(self) -> str:
        """The server's own URL."""
        return self._serving.address

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC's clients connect to, as host:port; None where it is off."""
        return self._serving.grpc_address

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._serving.ready:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise self._serving.error or ServingError("The server ended before it was ready.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serving.run()
        except ShiplineError as error:
            logger.debug("The server ended: %s", error)  # whoever entered the block raises it


def serve(
    url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grpc_port: int | None = None,
    trust: Sequence[str] = (),
    settings: ServerSettings | None = None,
) -> None:
    """Serve every model below `url`, or one model, or one version, until a signal.

    Args:
        url: of a repository, a model or a version; local or anything that fsspec understands.
        host: address to listen on; 0.0.0.0 is every network of this machine.
        port: to listen on; 0 is any free one.
        grpc_port: to listen on for gRPC, too; 0 is any free one, None is no gRPC.
        trust: URLs below which models may hold code: TorchScript, torch.export, AOTInductor. Whoever may write there
            can run what they like in this process.
        settings: who is let in, and how long and how much a client may take.

    Raises:
        ServingError: a port is taken, a model answers its own golden rows wrongly on this machine, or it holds code
            and is not below a URL that is trusted.
        NotFoundError: there is no artifact.
        IntegrityError: a file is damaged.
        MissingExtraError: gRPC is asked for, and not installed.
        ConfigError: there is no such host, or a setting is wrong.
    """
    Serving(url, host=host, port=port, grpc_port=grpc_port, trust=trust, settings=settings).run()


def _grpc_server(host: str, port: int, app: Application, grace_s: int, access: Access) -> GrpcServer:
    service, server, guard = map(
        load_target,
        (
            "shipline.serve.grpc.service:Service",
            "shipline.serve.grpc.server:GrpcServer",
            "shipline.serve.grpc.guard:Guard",
        ),
    )
    # gRPC takes no socket that is bound: this one keeps the port until it listens there itself.
    held = _bind(host, port)
    built: GrpcServer = server(_joined(*held.getsockname()[:2]), service(app), held, grace_s, guard(access))
    return built


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; choose one from 0 to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host is {host!r}, which this machine does not know: {error.strerror}.") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ServingError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses the port, or choose another."
        ) from error
    return bound
