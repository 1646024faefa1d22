"""What to make of a checkpoint, and how much it may cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from shipline.errors import ConfigError, unknown_name
from shipline.export.passes.base import GraphPass, ModulePass, Pass
from shipline.export.plan import BASELINE, BFLOAT16, FLOAT32, PRECISIONS, Plan, in_bfloat16, plan
from shipline.export.target import Target
from shipline.plugins import known, load

AUTO = "auto"

#: Those of `plan.PRECISIONS`, and "auto".
Precision = Literal[
    "float32", "bfloat16", "float16",
    "int8", "int8-portable", "int8-tensor", "int8-mixed", "int8-mixed-bfloat16", "int8-smooth", "int8-smooth-bfloat16",
    "int8-dynamic", "int8-weights", "int4-weights",
    "auto",
]  # fmt: skip
Objective = Literal["speed", "latency", "throughput", "size"]
#: What `prune="auto"` tries.
PRUNED_SHARES = (0.5, 0.75)
_OBJECTIVES = ("speed", "latency", "throughput", "size")
_SHARE = re.compile(r"([0-9]*\.?[0-9]+) ?%")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to export.

    Args:
        precision: "float32"; "bfloat16": computed in bfloat16 (OpenVINO, and what runs on torch); "float16"; "int8":
            weights and activations, scales measured on training rows; "int8-portable": the same for older processors
            than this one; "int8-tensor": as int8, with one scale for a whole weight, not one for each channel;
            "int8-mixed": products alone, without those that suffer most; "int8-smooth": the same, after
            `SmoothQuant`; "int8-mixed-bfloat16" and "int8-smooth-bfloat16": what is not rounded is computed in bfloat16
            (OpenVINO); "int8-dynamic"; "int8-weights"; "int4-weights"; or "auto": measure them all and publish the best
            that keeps the promise.
        backend: "onnxruntime", "openvino", "torchscript", "torch-export" or "aotinductor"; default: onnxruntime, and
            for "auto" each that is installed and whose files are no code.
        prune: share of the channels to take out of the module, of those that can go, before anything else; it is
            trained on then. "auto" measures what is pruned and what is not. Needs the extra `prune`.
        finetune_epochs: for how many passes over the training data; default: 10.
        passes: what the module goes through before it is converted; and then what the graph goes through, instead of
            what the precision stands for; in order.
        compiled: let "auto" try TorchScript and AOTInductor, too: their files are code, which servers load only from
            where `shipline serve --trust` says so.
        target: the machine that will serve, such as "20MB,5ms,avx2": the largest file, the longest time for one row
            (measured here), the instructions of its processor (avx2, avx512, vnni, amx, neon); default: a machine like
            this one.
        remember: let "auto" take what a search on this machine has measured of the same file in the last day; what is
            published is always measured anew.
        objective: what "auto" looks for: "speed" (batches of 1 and the largest alike), "latency" (of 1), "throughput"
            (of the largest), or "size".
        metric: the metric that the export may not cost; default: the one that the checkpoint was chosen by.
        mode: "min" or "max" of that metric is best; default: as the checkpoint says.
        max_metric_drop: how much worse than the trained module's that metric may be: in its own unit, or as "0.5%" of
            it.
        max_class_drop: what share of the rows of any one class may be answered worse than by the trained module, where
            the right classes are known; default: what the metric allows.
        tolerance: allowed difference of outputs, in parts of the largest; default: 1e-4 (float32), 5e-2 (int8).
        min_speedup: how many times as fast as float32 another graph must be, here, over batches of 1 and the largest.
        calibration_rows: training rows that int8 scales are measured on.
        proof_rows: validation rows that parity is proved on.
        golden_rows: validation rows kept in the artifact, for servers to check themselves with.
        max_batch_size: the largest batch that is proved, and that servers make.
        timeout: how many seconds a conversion, or a pass without its fine-tuning, may take.
    """

    precision: Precision = "float32"
    backend: str | None = None
    prune: float | Literal["auto"] = 0.0
    finetune_epochs: int | None = None
    passes: tuple[Pass, ...] = ()
    compiled: bool = False
    target: str | None = None
    remember: bool = True
    objective: Objective = "speed"
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    max_metric_drop: float | str = 0.005
    max_class_drop: float | None = None
    tolerance: float | None = None
    min_speedup: float = 1.0
    calibration_rows: int = 512
    proof_rows: int = 256
    golden_rows: int = 8
    max_batch_size: int = 32
    timeout: float = 900.0

    def __post_init__(self) -> None:
        _check_way(self)
        if self.mode not in (None, "min", "max"):
            raise ConfigError(f"Recipe has mode={self.mode!r}; choose 'min' or 'max'.")
        for name in ("calibration_rows", "proof_rows", "golden_rows", "max_batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"Recipe has {name}={value!r}; set a whole number from 1 on.")
        for name in ("max_metric_drop", "max_class_drop", "tolerance", "min_speedup"):
            value = getattr(self, name)
            if name in ("max_class_drop", "tolerance") and value is None:
                continue
            if name == "max_metric_drop" and isinstance(value, str):
                if not _SHARE.fullmatch(value):
                    raise ConfigError(
                        f"Recipe has {name}={value!r}; set a number from 0 on, or a share such as '0.5%'."
                    )
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"Recipe has {name}={value!r}; set a number from 0 on.")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float) or not 0 < self.timeout <= 1e6:
            raise ConfigError(f"Recipe has timeout={self.timeout!r}; set seconds, above 0 and up to 1000000.")

    @property
    def searches(self) -> bool:
        """Whether the way is still to be found."""
        return self.precision == AUTO

    def plan(self) -> Plan:
        """Return the way that is asked for; not for "auto"."""
        return plan(self.precision, self.backend or "onnxruntime", self.all_passes, self.machine)

    @property
    def machine(self) -> Target:
        """The machine that will serve."""
        return Target() if self.target is None else Target.parse(self.target)

    @property
    def all_passes(self) -> tuple[Pass, ...]:
        """The passes, with the one that `prune` stands for at first."""
        return (*self.pruned(self.prune), *self.passes) if self.prune and self.prune != AUTO else self.passes

    @property
    def starts(self) -> list[tuple[ModulePass, ...]]:
        """What a search begins with: the module as it is, then what passes make of it."""
        shares = PRUNED_SHARES if self.prune == AUTO else (self.prune,)
        of_module = tuple(each for each in self.passes if isinstance(each, ModulePass))
        found = [(*(self.pruned(share) if share else ()), *of_module) for share in shares]
        return [(), *(each for each in found if each)]

    def pruned(self, share: float | str) -> tuple[ModulePass]:
        """The pass that takes out a share of the channels; ConfigError where its settings are wrong."""
        epochs = {} if self.finetune_epochs is None else {"finetune_epochs": self.finetune_epochs}
        return (load("pass", "prune-channels")(ratio=share, **epochs),)

    def allowed_drop(self, trained: float) -> float:
        """Return how much worse the metric may be, where the trained module's is `trained`."""
        if isinstance(self.max_metric_drop, str):
            share = _SHARE.fullmatch(self.max_metric_drop)
            assert share is not None  # checked above
            return float(share[1]) / 100 * abs(trained)
        return self.max_metric_drop

    def allowed_difference(self, way: Plan) -> float:
        """Return the tolerance, in parts of the largest output, for a graph that was made this way."""
        asked = way != BASELINE if self.searches else way == self.plan()
        return self.tolerance if asked and self.tolerance is not None else way.tolerance


def _check_way(recipe: Recipe) -> None:
    """The precision, the backend and the passes are known, and go together."""
    for name in ("compiled", "remember"):
        if not isinstance(value := getattr(recipe, name), bool):
            raise ConfigError(f"Recipe has {name}={value!r}; set True or False.")
    if recipe.precision not in (names := (*PRECISIONS, AUTO)):
        raise ConfigError(f"Recipe has precision={recipe.precision!r}; choose one of {', '.join(names)}.")
    if recipe.backend is not None and recipe.backend not in (backends := known("backend")):
        raise unknown_name("backend", recipe.backend, backends)
    if in_bfloat16(recipe.precision) and recipe.backend in (None, "onnxruntime"):
        others = "'openvino', or 'aotinductor'" if recipe.precision == BFLOAT16 else "'openvino'"
        raise ConfigError(
            f"Recipe has precision={recipe.precision!r} and backend={recipe.backend!r}: onnxruntime has no bfloat16 on "
            f"a CPU. Set backend={others}."
        )
    _check_passes(recipe)
    _check_prune(recipe)
    _check_target(recipe)
    if recipe.objective not in _OBJECTIVES:
        raise ConfigError(f"Recipe has objective={recipe.objective!r}; choose one of {', '.join(_OBJECTIVES)}.")


def _check_passes(recipe: Recipe) -> None:
    if not isinstance(recipe.passes, tuple | list):
        raise ConfigError(f"Recipe has passes={recipe.passes!r}; give a tuple of shipline.export.Pass.")
    for each in recipe.passes:
        if not isinstance(each, Pass):
            raise ConfigError(f"Recipe has a {type(each).__name__} among its passes, which is no shipline.export.Pass.")
    of_graph = [isinstance(each, GraphPass) for each in recipe.passes]
    if any(of_graph) and recipe.precision != FLOAT32:
        raise ConfigError(
            f"Recipe has passes of a graph and precision={recipe.precision!r}: give passes, or the name of a "
            "precision that has its own."
        )
    rounded = [each for each in recipe.passes if isinstance(each, ModulePass) and each.precision]
    if rounded and (any(of_graph) or recipe.precision != FLOAT32):
        raise ConfigError(
            f"Recipe has {type(rounded[0]).__name__}, after which a module is {rounded[0].precision} already, and "
            f"{'passes of a graph' if any(of_graph) else f'precision={recipe.precision!r}'}: give one of them."
        )
    if of_graph != sorted(of_graph):
        raise ConfigError(
            "Recipe has a pass of a module after one of a graph; a module becomes a graph once. Put passes of the "
            "module, such as pruning, first."
        )


def _check_prune(recipe: Recipe) -> None:
    share = recipe.prune
    if share == AUTO:
        if recipe.precision != AUTO:
            raise ConfigError(
                f"Recipe has prune='auto' and precision={recipe.precision!r}: only a search tries several shares. Set "
                "precision='auto', or a share from 0 to below 1."
            )
        recipe.pruned(PRUNED_SHARES[0])  # which checks its settings
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ConfigError(f"Recipe has prune={share!r}; set a share from 0 to below 1, or 'auto'.")
    if share:
        made = recipe.all_passes[0]  # which checks its settings
        if any(type(each) is type(made) for each in recipe.passes):
            raise ConfigError(f"Recipe has prune={share!r} and {type(made).__name__} in passes: give one.")
    elif recipe.finetune_epochs is not None:
        raise ConfigError(
            f"Recipe has finetune_epochs={recipe.finetune_epochs!r} and prune=0: nothing is trained. Set prune, or the "
            "pass's own finetune_epochs."
        )


def _check_target(recipe: Recipe) -> None:
    if recipe.target is None:
        return
    target = recipe.machine
    if target.instructions is None:
        return
    if in_bfloat16(recipe.precision) and not target.bfloat16:
        raise ConfigError(
            f"Recipe has precision={recipe.precision!r} and target={recipe.target!r}: that processor, or this one, "
            "where it would be measured, has no instructions for it."
        )
    if recipe.backend == "aotinductor":
        raise ConfigError(
            f"Recipe has backend='aotinductor' and target={recipe.target!r}: a library has the instructions of the "
            "machine that makes it. Export on a machine like the target."
        )
