"""One file of a committed directory, as its manifest describes it."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shipline.errors import IntegrityError
from shipline.store.store import Data


class FileEntry(BaseModel):
    """Where a committed file lies, below its directory, and what it must look like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    def check(self, data: bytes, where: str) -> bytes:
        """Return `data`, or raise IntegrityError unless they are the bytes that were committed."""
        if len(data) != self.size:
            raise IntegrityError(
                f"{where} has {len(data)} bytes; its manifest says {self.size}. It is cut or was overwritten: "
                "do not use it, publish again."
            )
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise IntegrityError(
                f"{where} is damaged: its sha256 is {found[:12]}…, its manifest says {self.sha256[:12]}…. "
                "Do not use it, publish again."
            )
        return data


def measure(data: Data) -> dict[str, Any]:
    """Return the size and the sha256 of the data."""
    if isinstance(data, bytes | memoryview):
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with data.open("rb") as file:
        return {"size": data.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
