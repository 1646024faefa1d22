"""The process: a socket, uvicorn, signals; and the same in a thread for scripts and tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shipline.commands.logs import logging_aside
from shipline.errors import ConfigError, ServingError, ShiplineError
from shipline.plugins import load_target
from shipline.serve.access import Access
from shipline.serve.doors import Doors, address_of
from shipline.serve.hosting import TRACING, Hosting, open_tracing
from shipline.serve.http.app import Application
from shipline.serve.http.connection import Config
from shipline.serve.http.gate import Gate, Hosts, hosts_of
from shipline.serve.http.listening import Server, health_config, tls_context
from shipline.serve.keys import Keys
from shipline.serve.memory import MIB, Memory
from shipline.serve.settings import ServerSettings
from shipline.serve.trust import Trust
from shipline.store import redact

if TYPE_CHECKING:
    from shipline.serve.grpc.server import GrpcServer
    from shipline.serve.worker import Colleague

logger = logging.getLogger("shipline.serve")

GRACE_S = 30
_GRPC = (
    "shipline.serve.grpc.service:Service",
    "shipline.serve.grpc.server:GrpcServer",
    "shipline.serve.grpc.guard:Guard",
)


class Serving:
    """A server for the models below a URL, on a socket that is bound already: the port is ours or the start fails.

    Raises:
        ServingError: a port is taken.
        ConfigError: there is no such port or host, a URL to trust is none, or keys or certificates are not good.
        MissingExtraError: gRPC or traces are asked for, and not installed.
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
        doors: Doors | None = None,
    ) -> None:
        self._url = url
        settings = settings or ServerSettings()
        access, hosts, tls = _guards(settings)
        trusted = Trust(trust)
        doors = doors or Doors.open(host, port, health_port=settings.health_port, grpc_port=grpc_port)
        self._doors = doors
        self._address = f"{'https' if tls else 'http'}://{address_of(doors.http)}"
        own = Hosts(hosts_of(doors.http.getsockname()[0]))
        try:
            self._app = Application(url, self._fail, _hosting(settings, trusted))
            self._grpc = None if doors.grpc is None else _grpc_server(doors.grpc, self._app, grace_s, access, settings)
        except BaseException:
            doors.close()
            raise
        health = None
        if doors.health is not None:
            health = health_config(Gate(self._app, own, Access()), settings.limits), doors.health
        gate = Gate(self._app, own if settings.allowed_hosts is None else hosts, access)
        config = Config(gate, settings.limits, tls, lifespan="on", timeout_graceful_shutdown=grace_s)
        self._server = Server(config, self._app, health, self._grpc)
        self._error: ShiplineError | None = None

    @property
    def address(self) -> str:
        """The server's own URL."""
        return self._address

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
            with self._obeying_signals(), logging_aside(self._app.metrics.dropped.inc):
                self._server.run(sockets=[self._doors.http])
        finally:
            self._doors.close()
        if self._error is not None:
            raise self._error

    def join(self, colleague: Callable[[Application], Colleague]) -> None:
        """Serve as one of several processes."""
        self._app.join(colleague(self._app))

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
        if self._app.colleague is not None:
            self._app.colleague.say_failed(error)
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
    workers: int = 1,
    settings: ServerSettings | None = None,
) -> None:
    """Serve every model below `url`, or one model, or one version, until a signal.

    Args:
        url: of a repository, a model or a version; local or anything that fsspec understands.
        host: address to listen on; 0.0.0.0 is every network of this machine.
        port: to listen on; 0 is any free one.
        grpc_port: to listen on for gRPC, too; 0 is any free one, None is no gRPC.
        trust: URLs below which models may hold code: TorchScript, torch.export, AOTInductor. Whoever may write there
            can run what they like as this user.
        workers: processes that serve together, each with the models in its own memory.
        settings: who is let in, and how long and how much a client may take.

    Raises:
        ServingError: a port is taken, a model answers its own golden rows wrongly on this machine, or it holds code
            and is not below a URL that is trusted.
        NotFoundError: there is no artifact.
        IntegrityError: a file is damaged.
        MissingExtraError: gRPC is asked for, and not installed.
        ConfigError: there is no such host, or a setting is wrong.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; choose 1 or more.")
    if workers == 1:
        Serving(url, host=host, port=port, grpc_port=grpc_port, trust=trust, settings=settings).run()
    else:
        _serve_together(workers, url, host, port, grpc_port, trust, settings or ServerSettings())


def check(settings: ServerSettings, trust: Sequence[str], grpc_port: int | None = None) -> None:
    """Check what a server would be started with, before there is one.

    Raises:
        ConfigError: a key, a host, a certificate or a URL to trust is none.
        MissingExtraError: traces or gRPC are asked for, and not installed.
    """
    Trust(trust)
    _guards(settings)
    if settings.otel is not None:
        load_target(TRACING)
    if grpc_port is not None:
        load_target(_GRPC[0])


def _hosting(settings: ServerSettings, trust: Trust) -> Hosting:
    limit = None if settings.memory_mib is None else int(settings.memory_mib * MIB)
    return Hosting(
        trust=trust,
        tracing=open_tracing(settings.otel),
        memory=Memory(limit),
        batch_delay_s=settings.batch_delay_ms / 1e3,
        device=settings.device,
    )


def _guards(settings: ServerSettings) -> tuple[Access, Hosts, ssl.SSLContext | None]:
    """Return what stands between strangers and the models; ConfigError where a key, a host or a certificate is none."""
    keys = Keys(settings.api_keys) if settings.api_keys is not None else None
    access = Access(keys, admin_without_key=settings.admin_without_key)
    hosts = Hosts(settings.allowed_hosts)
    tls = tls_context(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    return access, hosts, tls


def _serve_together(
    workers: int,
    url: str,
    host: str,
    port: int,
    grpc_port: int | None,
    trust: Sequence[str],
    settings: ServerSettings,
) -> None:
    from shipline.serve.supervisor import Supervisor

    check(settings, trust, grpc_port)  # by one process, before there are others
    doors = Doors.open(host, port, health_port=settings.health_port, grpc_port=grpc_port, shared=True)

    async def supervise() -> None:
        await Supervisor(url, workers, doors, trust, GRACE_S, settings).run()

    with contextlib.closing(doors):
        asyncio.run(supervise())


def _grpc_server(
    door: socket.socket, app: Application, grace_s: int, access: Access, settings: ServerSettings
) -> GrpcServer:
    service, server, guard = map(load_target, _GRPC)
    tls = None
    if settings.tls_cert and settings.tls_key:
        tls = Path(settings.tls_cert).read_bytes(), Path(settings.tls_key).read_bytes()
    built: GrpcServer = server(address_of(door), service(app), door, grace_s, guard(access), tls)
    return built
