"""Another machine, on which an artifact is to be served: what it holds, how long it may take, what it computes with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shipline.errors import ConfigError, nearest
from shipline.export import processor


@dataclass(frozen=True)
class Instructions:
    """What a processor's instructions mean for numbers of 8 and 16 bits; see `processor` for this machine's."""

    cuts_sums: bool
    bfloat16: bool


#: Those that runtimes choose their kernels by.
INSTRUCTIONS = {
    "avx2": Instructions(cuts_sums=True, bfloat16=False),
    "avx512": Instructions(cuts_sums=True, bfloat16=False),
    "vnni": Instructions(cuts_sums=False, bfloat16=False),
    "amx": Instructions(cuts_sums=False, bfloat16=True),
    "neon": Instructions(cuts_sums=False, bfloat16=False),
}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+) ?([a-zA-Z]+)")
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Target:
    """Limits of the machine that will serve.

    Args:
        max_bytes: how large the file may be.
        max_ms: how many milliseconds one row may take; measured here.
        instructions: one of `INSTRUCTIONS`; default: it is a machine like this one.
    """

    max_bytes: float | None = None
    max_ms: float | None = None
    instructions: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target of a text such as "20MB,5ms,avx2", in any order; ConfigError where it is none."""
        found: dict[str, float | str] = {}
        for word in (part.strip().lower() for part in text.split(",")):
            name, value = _read(word, text)
            if name in found:
                raise ConfigError(f"target is {text!r}, which says {name} twice.")
            found[name] = value
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        holds = [] if self.max_bytes is None else [f"{self.max_bytes:,.0f} bytes"]
        return " and ".join(holds + ([] if self.max_ms is None else [f"{self.max_ms:g} ms a row"]))

    @property
    def limits(self) -> bool:
        """Whether it limits size or time."""
        return self.max_bytes is not None or self.max_ms is not None

    @property
    def cuts_sums(self) -> bool:
        """Whether it cuts sums of 8-bit products, or this machine does, which has to prove the answers."""
        known = INSTRUCTIONS.get(self.instructions or "")
        return processor.cuts_sums() or (known is not None and known.cuts_sums)

    @property
    def bfloat16(self) -> bool:
        """Whether it computes with bfloat16, and this machine does, so that it can be measured."""
        known = INSTRUCTIONS.get(self.instructions or "")
        return processor.computes_bfloat16() and (known is None or known.bfloat16)

    def over(self, size: int, milliseconds: float = 0.0) -> float:
        """How much of the tightest limit is used; above 1 it does not fit."""
        shares = [0.0]
        if self.max_bytes is not None:
            shares.append(size / self.max_bytes)
        if self.max_ms is not None:
            shares.append(milliseconds / self.max_ms)
        return max(shares)


def _read(word: str, text: str) -> tuple[str, float | str]:
    """Return what a word sets, and to what."""
    if word in INSTRUCTIONS:
        return "instructions", word
    amount = _AMOUNT.fullmatch(word)
    for name, units in (("max_bytes", _BYTES), ("max_ms", _MILLISECONDS)):
        if amount is not None and amount[2] in units and float(amount[1]) > 0:
            return name, float(amount[1]) * units[amount[2]]
    raise ConfigError(
        f"target is {text!r}, and {word!r} is no limit.{nearest(word, INSTRUCTIONS)} Set a size such as 20MB, the time "
        f"of one row such as 5ms, the instructions of the processor ({', '.join(INSTRUCTIONS)}), or several of them "
        "with commas between."
    )
