"""The sockets that a server listens on, bound before anything else begins: the ports are ours, or the start fails."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Self

from shipline.errors import ConfigError, ServingError


@dataclass(frozen=True)
class Doors:
    """Where requests come in; gRPC's is only held, since gRPC listens by itself."""

    http: socket.socket
    health: socket.socket | None = None
    grpc: socket.socket | None = None

    @classmethod
    def open(
        cls, host: str, port: int, *, health_port: int | None, grpc_port: int | None, shared: bool = False
    ) -> Self:
        """Bind; port 0 is any free one, None is no such door.

        Args:
            host: address to listen on.
            port: for HTTP.
            health_port: for health alone.
            grpc_port: for gRPC.
            shared: let other processes that hold gRPC's port as this one does listen on it, too.

        Raises:
            ServingError: a port is taken.
            ConfigError: there is no such port or host.
        """
        with contextlib.ExitStack() as undo:
            http = undo.enter_context(_bind(host, port))
            health = None if health_port is None else undo.enter_context(_bind(host, health_port))
            grpc = None if grpc_port is None else undo.enter_context(_bind(host, grpc_port, shared=shared))
            undo.pop_all()
        return cls(http, health, grpc)

    def close(self) -> None:
        """Give the ports back."""
        for door in (self.http, self.health, self.grpc):
            if door is not None:
                door.close()


def address_of(door: socket.socket) -> str:
    """Return host:port."""
    host, port = door.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port is {port}; choose one from 0 to 65535.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"host is {host!r}, which this machine does not know: {error.strerror}.") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
        if not shared:  # who listens and never accepts would swallow every connection of his share
            bound.listen(2048)
    except OSError as error:
        bound.close()
        raise ServingError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses the port, or choose another."
        ) from error
    return bound
