"""Clients for servers of Shipline, and for any that speak the Open Inference Protocol v2.

`requests` knows what is sent and how answers are read, `retry` when to repeat, `base` the settings; the two clients
send.
"""

from shipline.client.asynchronous import AsyncClient
from shipline.client.synchronous import Client

__all__ = ["AsyncClient", "Client"]
