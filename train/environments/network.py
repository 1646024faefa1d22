"""On which of a machine's networks workers listen: PyTorch's own way is all of them, to whoever connects."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

import psutil


def listening(host: str, port: int) -> int | None:
    """Return a socket that listens on `host` alone, which is this machine.

    None where that would shut others out: they may reach it by an address that it does not know of, as a service of
    Kubernetes has one, or by a name that means the loopback here.

    Raises:
        OSError: the port is taken.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    named = host != "localhost" and not _is_address(host)
    if named and ipaddress.ip_address(address[0]).is_loopback:
        return None
    try:
        return socket.create_server(address[:2], family=family).detach()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise


def use_interface(host: str, *, alone: bool = False) -> None:
    """Let gloo listen on the network on which the first worker is found, not on that of this machine's name.

    Args:
        host: the first worker's.
        alone: whether all workers are on this machine; otherwise the loopback is not where they meet.
    """
    family = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
    if ipaddress.ip_address(own.partition("%")[0]).is_loopback and not alone:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
