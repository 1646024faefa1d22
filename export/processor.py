"""What this machine's processor does to whole numbers of 8 bits."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_X86 = ("x86_64", "amd64", "i386", "i686")
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
