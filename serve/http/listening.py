"""uvicorn's server: it says that it is not ready before it stops, keeps deadlines, and has a second port for health."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState

from shipline.errors import ConfigError, ServingError
from shipline.serve.errors import RequestError
from shipline.serve.http.app import Application
from shipline.serve.http.connection import Config, Connection
from shipline.serve.http.gate import HEALTH, App, only
from shipline.serve.settings import Limits

if TYPE_CHECKING:
    from shipline.serve.grpc.server import GrpcServer

SWEEP_S = 1.0
# How long a client may take to say goodbye in TLS.
_GOODBYE_S = 2.0
# The port for health has its own connections, so that those of the other one cannot take its place.
_HEALTH_CONNECTIONS = 64


class Server(uvicorn.Server):
    """Serves one application on a socket, its health on another, and gRPC beside it, if they are asked for."""

    config: Config

    def __init__(
        self,
        config: Config,
        app: Application,
        health: tuple[Config, socket.socket] | None = None,
        grpc: GrpcServer | None = None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._grpc = grpc
        self._health = health
        self._health_state = ServerState()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no new traffic, finish what was accepted."""
        self._app.stopping = True
        super().handle_exit(sig, frame)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop; the port for health is open until the last answer is given."""
        sweeping = asyncio.create_task(self._sweep())
        listener = None
        try:
            if self._health is not None:
                listener = await _listen(*self._health, self._health_state)
            await super().serve(sockets)
        finally:
            sweeping.cancel()
            if listener is not None:
                listener.close()
            for connection in tuple(self._health_state.connections):
                connection.transport.abort()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn does, but with an end to how long a client may take to shake hands.

        gRPC listens before anything else begins, so that nothing has to be undone where it cannot.
        """
        if self._grpc is not None:
            try:
                await self._grpc.start()
            except ServingError as error:
                self._app.on_failure(error)
                return
        await self.lifespan.startup()
        await self._app.may_listen.wait()
        self.servers = [await _listen(self.config, bound, self.server_state) for bound in sockets or ()]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close both doors at once; uvicorn's last step, which gives the models back, waits for gRPC's calls, too."""
        if self._grpc is not None:
            self._app.others = asyncio.create_task(self._grpc.stop())
        await super().shutdown(sockets)

    async def _sweep(self) -> None:
        """Look once in a while for connections that take too long: a timer for each request costs more."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            for state in (self.server_state, self._health_state):
                for connection in tuple(state.connections):
                    if isinstance(connection, Connection):
                        connection.sweep(loop.time())


def health_config(app: App, limits: Limits) -> Config:
    """Return what serves health and metrics alone, with connections of its own."""
    paths = only(HEALTH | {"/metrics"}, app, RequestError(404, "This port has health and metrics alone."))
    return Config(paths, replace(limits, connections=_HEALTH_CONNECTIONS), lifespan="off")


async def _listen(config: Config, bound: socket.socket, state: ServerState) -> asyncio.Server:
    if not config.loaded:
        config.load()
    tls = config.ssl is not None
    return await asyncio.get_running_loop().create_server(
        partial(Connection, config, state, {}),
        sock=bound,
        ssl=config.ssl,
        ssl_handshake_timeout=config.limits.head_s if tls else None,
        ssl_shutdown_timeout=_GOODBYE_S if tls else None,
        backlog=config.backlog,
    )


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what TLS 1.2 and newer needs.

    Raises:
        ConfigError: a file cannot be read, is none of its kind, needs a password, or the two do not belong together.
    """
    for name, file in (("tls_cert", certificate), ("tls_key", key)):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name} is {file}, which cannot be read: {error.strerror}.") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls_cert {certificate} and tls_key {key} cannot be used together: {error.reason or error}. Give a "
            "certificate and its own private key, as PEM files without a password."
        ) from error
    return context
