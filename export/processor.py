"""What this machine's processor can compute with: whole numbers of 8 bits, floats of 16."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_X86 = ("x86_64", "amd64", "i386", "i686")
_BFLOAT16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
_WIDE = re.compile(r"\b(avx512_vnni|avx_vnni|amx_int8)\b")


@functools.cache
def cuts_sums() -> bool:
    """Return whether sums of 8-bit products are cut to 16 bits, so that large ones come out wrong.

    So it is on x86 without VNNI and AMX (`vpmaddubsw` saturates); onnxruntime and OpenVINO both compute with it. Where
    nobody can tell, it is taken to be so.
    """
    if platform.machine().lower() not in _X86:
        return False
    try:
        return _WIDE.search(CPUINFO.read_text()) is None
    except OSError:
        return True


@functools.cache
def computes_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16; without them it is many times slower than float32.

    Where nobody can tell, it is taken to have none.
    """
    try:
        return _BFLOAT16.search(CPUINFO.read_text()) is not None
    except OSError:
        return False
