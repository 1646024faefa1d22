"""Ways from the float32 graph to what is served: those that a precision's name stands for, and those worth a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from shipline.artifact import ServingSettings
from shipline.backends.base import Backend
from shipline.export.passes.base import GraphPass, ModulePass, Pass
from shipline.export.target import Target
from shipline.plugins import load

FLOAT32, BFLOAT16 = "float32", "bfloat16"

# The largest allowed difference from the trained module, in parts of the largest value that an output takes.
TOLERANCE = {FLOAT32: 1e-4, BFLOAT16: 1e-1}

# A row alone and among others: sums are taken in another order, which shows in the last digits of what holds them.
INVARIANCE = {FLOAT32: 1e-4, BFLOAT16: 1e-2, "float16": 1e-2}

# So near is about 0.4 % of fidelity, as R2. Of MiniLM's 48 products 3 stay float with alpha 0.85, with 0.5 4.
_MIXED: dict[str, dict[str, Any]] = {"mixed-int8": {"near": 0.06}}
_SMOOTH: dict[str, dict[str, Any]] = {"smooth-quant": {"alpha": 0.85}, **_MIXED}

#: Precision -> the passes it stands for, by name, with their settings.
PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    FLOAT32: {},
    BFLOAT16: {},
    "float16": {"float16": {}},
    "int8": {"static-int8": {}},
    "int8-portable": {"static-int8": {"reduce_range": True}},
    "int8-tensor": {"static-int8": {"per_channel": False}},
    "int8-mixed": _MIXED,
    "int8-mixed-bfloat16": _MIXED,
    "int8-smooth": _SMOOTH,
    "int8-smooth-bfloat16": _SMOOTH,
    "int8-dynamic": {"dynamic-int8": {}},
    "int8-weights": {"weights-int8": {}},
    "int4-weights": {"weights-int4": {}},
}

# The passes whose results a processor adds up in 8 bits, and may cut: they take `reduce_range`.
SUMMING = ("static-int8", "mixed-int8", "dynamic-int8")

# What a search tries on each backend, where that is installed. Not torch-export: it runs operator by operator, as the
# trained module does, and is there for those who want that. Nor weights in 8 bits on OpenVINO: 2026.4 computes
# convolutions with them wrongly, now and then.
_MIXTURES = ("int8-mixed", "int8-mixed-bfloat16", "int8-smooth", "int8-smooth-bfloat16")
SEARCHED = {
    "onnxruntime": (
        FLOAT32,
        "int8",
        "int8-portable",
        "int8-tensor",
        "int8-mixed",
        "int8-smooth",
        "int8-dynamic",
        "int8-weights",
        "int4-weights",
        "float16",
    ),
    "openvino": (FLOAT32, BFLOAT16, "int8", "int8-portable", *_MIXTURES),
    "torchscript": (FLOAT32,),
    "aotinductor": (FLOAT32, BFLOAT16),
}


@dataclass(frozen=True)
class Plan:
    """One way.

    Args:
        precision: what the result is called.
        backend: what runs it.
        passes: what the float32 graph goes through, in order.
        module_passes: what the module goes through before it is converted.
    """

    precision: str
    backend: str
    passes: tuple[GraphPass, ...] = ()
    module_passes: tuple[ModulePass, ...] = ()

    def __str__(self) -> str:
        return f"{' '.join([*(each.label for each in self.module_passes), self.precision])} on {self.backend}"

    @property
    def backend_class(self) -> type[Backend]:
        """What runs it; importing that may take a second."""
        found: type[Backend] = load("backend", self.backend)
        return found

    @property
    def compute(self) -> Literal["float32", "bfloat16"]:
        """What the backend is told to compute in."""
        return "bfloat16" if in_bfloat16(self.precision) else "float32"

    @property
    def tolerance(self) -> float:
        """The allowed difference from the trained module, in parts of an output's largest value."""
        return max([TOLERANCE[self.compute], *(each.tolerance for each in (*self.module_passes, *self.passes))])

    @property
    def invariance(self) -> float:
        """The allowed difference between a row's answers alone and among others."""
        return INVARIANCE.get(self.precision, INVARIANCE[self.compute])

    def without_passes(self) -> Plan:
        """Return the way to the float32 graph that the passes begin with."""
        return replace(self, precision=FLOAT32, passes=())

    def serving(self, max_batch_size: int) -> ServingSettings:
        """Return the settings that the artifact carries."""
        return ServingSettings(max_batch_size=max_batch_size, compute=self.compute)


BASELINE = Plan(FLOAT32, "onnxruntime")


def in_bfloat16(precision: str) -> bool:
    """Whether what is not rounded further is computed in bfloat16."""
    return precision.endswith(BFLOAT16)


def plan(precision: str, backend: str, passes: Sequence[Pass] = (), target: Target | None = None) -> Plan:
    """Return the plan for a precision; graph passes that are given take the place of its own."""
    of_module = tuple(each for each in passes if isinstance(each, ModulePass))
    of_graph = tuple(each for each in passes if isinstance(each, GraphPass))
    if of_graph:
        return Plan(of_graph[-1].precision, backend, of_graph, of_module)
    narrow = {"reduce_range": True} if target is not None and target.instructions and target.cuts_sums else {}
    own = tuple(
        load("pass", name)(**{**settings, **(narrow if name in SUMMING else {})})
        for name, settings in PRECISIONS[precision].items()
    )
    inside = next((each.precision for each in of_module if each.precision), FLOAT32)
    return Plan(inside if precision == FLOAT32 else precision, backend, own, of_module)


def searched(
    backend: str | None,
    start: tuple[ModulePass, ...] = (),
    *,
    compiled: bool = False,
    target: Target | None = None,
) -> list[Plan]:
    """Return what a search tries, besides the baseline: on one backend, or on each that is installed.

    Args:
        backend: the one; default: all that are installed.
        start: what the module goes through first.
        compiled: those whose files are code are among them: servers load such files only from where they are told to.
        target: what it, or this machine, cannot compute is not among them.
    """
    target = target or Target()
    backends = [backend] if backend else [name for name in SEARCHED if _is_searched(name, compiled=compiled)]
    pairs = [(precision, name) for name in backends for precision in SEARCHED.get(name, (FLOAT32,))]
    if target.cuts_sums:  # then int8 is portable already
        pairs = [each for each in pairs if each[0] != "int8-portable"]
    if not target.bfloat16:  # OpenVINO computes in float32 then, and torch in bfloat16, many times slower
        pairs = [each for each in pairs if not in_bfloat16(each[0])]
    if target.instructions is not None:  # a library has those of the machine that made it
        pairs = [each for each in pairs if each[1] != "aotinductor"]
    plans = [plan(precision, name, start, target) for precision, name in pairs]
    return [each for each in plans if each != BASELINE]


def _is_searched(backend: str, *, compiled: bool) -> bool:
    try:
        found: type[Backend] = load("backend", backend)
    except ImportError:  # not installed
        return False
    return compiled or not found.runs_code
