"""The clients as twins: either of them, called as one."""

from __future__ import annotations

import asyncio
from typing import Any

from shipline.client import AsyncClient, Client


class Twin:
    """Either client, called as the one without asyncio."""

    def __init__(self, client: type[Client | AsyncClient]) -> None:
        self.client = client

    def __call__(
        self, url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **named: Any
    ) -> Any:
        """Make a client with these settings, and call its method."""
        if self.client is Client:
            with Client(url, **(client or {})) as one:
                return getattr(one, method)(*arguments, **named)

        async def ask() -> Any:
            async with AsyncClient(url, **(client or {})) as other:
                return await getattr(other, method)(*arguments, **named)

        return asyncio.run(ask())
