"""gRPC's own server, on the event loop of the application."""

from __future__ import annotations

import socket

import grpc
import grpc.aio

from shipline.errors import ServingError
from shipline.serve.grpc.guard import Guard
from shipline.serve.grpc.service import Service
from shipline.serve.http.body import MAX_BODY_BYTES

_OPTIONS = {
    "grpc.max_receive_message_length": MAX_BODY_BYTES,
    "grpc.max_send_message_length": -1,  # what a model answers is the operator's choice, not the client's
    "grpc.max_concurrent_streams": 256,  # of one connection; what is more waits at the client
    "grpc.server_handshake_timeout_ms": 10_000,
    # Clients that vanish are noticed within minutes; those that ping every ten seconds are welcome.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
}


class GrpcServer:
    """Answers on one address between `start` and `stop`, which belong to one event loop.

    Args:
        address: host:port to listen on.
        service: what answers.
        held: the socket that keeps the address until `start`.
        grace_s: how long calls that were accepted may take after `stop`.
        guard: what every call passes first.
        tls: the certificate's and its key's bytes, for TLS 1.2 and newer; None is no encryption.
    """

    def __init__(
        self,
        address: str,
        service: Service,
        held: socket.socket,
        grace_s: float,
        guard: Guard,
        tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.address = address
        self._service = service
        self._held = held
        self._grace_s = grace_s
        self._guard = guard
        self._tls = tls
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ServingError: somebody else took the address just now.
        """
        # Shared by the processes of one server; else a port that is taken is an error.
        shared = self._held.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        self._held.close()
        options = (*_OPTIONS.items(), ("grpc.so_reuseport", shared))
        self._server = grpc.aio.server(options=options, interceptors=(self._guard,))
        self._server.add_generic_rpc_handlers((self._service.handlers(),))
        try:
            if self._tls is None:
                self._server.add_insecure_port(self.address)
            else:
                certificate, key = self._tls
                self._server.add_secure_port(self.address, grpc.ssl_server_credentials([(key, certificate)]))
        except RuntimeError as error:
            raise ServingError(f"Cannot listen on {self.address} for gRPC. Choose another port.") from error
        await self._server.start()

    async def stop(self) -> None:
        """Take no new calls, and return when those that were accepted are answered, or the grace is over."""
        if self._server is not None:
            self._service.stop()
            await self._server.stop(self._grace_s)
