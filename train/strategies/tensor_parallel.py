"""Single layers cut among workers: PyTorch's `parallelize_module`, by a plan that the module or the user gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from shipline.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: The path of a part, which may hold `*`, to how it is cut: PyTorch's ParallelStyle, or its name.
Plan = Mapping[str, ParallelStyle | str]

_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel, "rowwise": RowwiseParallel, "sequence": SequenceParallel,
}  # fmt: skip


def cut(module: nn.Module, mesh: DeviceMesh, plan: Plan | None) -> None:
    """Cut the module's parts among the workers of the mesh.

    Args:
        module: may have `parallelize_plan()`, which returns the plan.
        mesh: of one dimension.
        plan: in place of the module's.

    Raises:
        ConfigError: there is no plan; or it names parts or styles that there are not.
    """
    kind = type(module).__name__
    if plan is None:
        plan = module.parallelize_plan() if hasattr(module, "parallelize_plan") else None  # type: ignore[operator]
    if not plan:
        raise ConfigError(
            f"Tensor parallelism needs to know how {kind} is cut: let its parallelize_plan() return a dict such as "
            "{'layers.*.up': 'colwise', 'layers.*.down': 'rowwise'}, or give the strategy a plan."
        )
    names = [name for name, _ in module.named_modules() if name]
    for path in plan:
        if not any(fnmatchcase(name, path) for name in names):
            raise ConfigError(f"The plan of {kind} has {path!r}, and there is no such part.{nearest(path, names)}")
    parallelize_module(module, mesh, {path: _style(style) for path, style in plan.items()})


def _style(style: ParallelStyle | str) -> ParallelStyle:
    if not isinstance(style, str):
        return style
    if style not in _STYLES:
        raise ConfigError(
            f"The plan has the style {style!r}.{nearest(style, _STYLES)} Known: {', '.join(_STYLES)}, or a "
            "ParallelStyle of torch.distributed.tensor.parallel."
        )
    return _STYLES[style]()
