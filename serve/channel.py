"""What the processes of one server tell each other: JSON, a line for each message, over a pair of sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

MAX_LINE = 1 << 20

Said = dict[str, Any]


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """Return the channel over one of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_LINE))

    def say(self, **message: Any) -> None:
        """Send a message; nobody may be there any more to hear it."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> Said | None:
        """Return the next message, or None when the other end is gone."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        heard: Said | None = json.loads(line) if line.endswith(b"\n") else None
        return heard

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
