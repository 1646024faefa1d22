"""What a module is made of, for people."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from shipline.errors import ConfigError
from shipline.train.accelerators.devices import to_device
from shipline.train.callbacks.callback import Callback
from shipline.train.callbacks.layers import UNKNOWN, Pass, count, parts, run_example
from shipline.train.callbacks.memory import gradient_bytes, optimizer_bytes, parameter_bytes
from shipline.train.metrics import rows_of

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_UNITS = ("", "K", "M", "B", "T")
_COLUMNS = ("Name", "Type", "Params", "Mode", "FLOPs", "In sizes", "Out sizes")
_NUMBERS = ("Params", "FLOPs")


class ModelSummary(Callback):
    """Prints the module's parts with their parameters, and how much memory its training will take.

    A module with an `example_input_array` is run once on it, in evaluation mode, and what `forward` changes is put
    back: then sizes and FLOPs (of a forward pass) stand there too, and the memory of that batch's activations.

    Args:
        max_depth: how many levels of submodules to show; -1: all, 0: print nothing.
        header_style: rich's style for the table's header.
    """

    def __init__(self, max_depth: int = 1, header_style: str = "bold") -> None:
        if isinstance(max_depth, bool) or not isinstance(max_depth, int) or max_depth < -1:
            raise ConfigError(f"ModelSummary has max_depth={max_depth!r}; set a whole number from -1 on.")
        self.max_depth = max_depth
        self.header_style = header_style

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Print, on the first worker; where parameters are shared out, all workers must run the example."""
        if not self.max_depth:
            return
        example = getattr(module, "example_input_array", None)
        seen = None if example is None else self._look(trainer, module, example)
        if trainer.is_global_zero:
            header, *rows = self._table(module, seen)
            text = Text.assemble((header, self.header_style), "\n", "\n".join([*rows, *_totals(trainer, module, seen)]))
            Console(soft_wrap=True).print(text)

    def _look(self, trainer: Trainer, module: Module, example: Any) -> Pass | None:
        example = trainer.precision_plugin.convert_input(to_device(example, trainer.device))
        forward = trainer.precision_plugin.wrap_step(lambda: _call(module, example))
        try:
            return run_example(module, forward, set(parts(module, self.max_depth)))
        except Exception as error:  # whatever a user's forward raises: training may do without it
            kind = type(module).__name__
            logger.warning("No sizes: %s fails on its example_input_array: %s: %s", kind, type(error).__name__, error)
            return None

    def _table(self, module: Module, seen: Pass | None) -> list[str]:
        rows: list[tuple[str, ...]] = [_COLUMNS]
        for name, part in parts(module, self.max_depth).items():
            sizes = (UNKNOWN, UNKNOWN) if seen is None else seen.sizes.get(name, (UNKNOWN, UNKNOWN))
            flops = amount(0 if seen is None else seen.flops[name])
            mode = "train" if part.training else "eval"
            rows.append((name, type(part).__name__, amount(count(part)), mode, flops, *map(str, sizes)))
        if own := count(module, recurse=False):
            rows.append(("", "own parameters", amount(own), "", "", "", ""))
        return _aligned([row if seen is not None else row[:4] for row in rows])


#: Lightning's name for the one that prints through rich, as this one always does.
RichModelSummary = ModelSummary


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines, with numbers to the right; rich's own tables take longer than all the rest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [">" if name in _NUMBERS else "<" for name in rows[0]]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]


def _call(module: Module, example: Any) -> Any:
    if isinstance(example, dict):
        return module(**example)
    return module(*example) if isinstance(example, list | tuple) else module(example)


def _totals(trainer: Trainer, module: Module, seen: Pass | None) -> list[str]:
    total, trainable = count(module), count(module, trainable=True)
    modes = [part.training for part in module.modules()][1:]
    memory = {
        "parameters": parameter_bytes(module),
        "gradients": gradient_bytes(module),
        "optimizers": optimizer_bytes(trainer.optimizers),
    }
    shares = f"{amount(trainable)} trainable, {amount(total - trainable)} not"
    lines = [
        f"Parameters: {amount(total)}, {shares}; {megabytes(memory['parameters'])} MB",
        f"Modules: {sum(modes)} in train mode, {len(modes) - sum(modes)} in eval mode",
    ]
    if seen is not None:
        rows = rows_of(module.example_input_array)
        memory[f"activations of {rows} row{'s' * (rows != 1)}"] = seen.activations
        lines.insert(1, f"FLOPs: {amount(seen.total_flops)} forward")
    text = " + ".join(f"{name} {megabytes(size)}" for name, size in memory.items())
    known = sum(size for size in memory.values() if size is not None)
    return [*lines, f"Memory, estimated: {megabytes(known)} MB = {text}"]


def amount(number: int) -> str:
    """Return the number as people read it: 7, 999, 1.2 K, 132 K, 2.6 M."""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    text = f"{value:,.0f}" if not unit or value >= 100 else f"{value:.1f}"
    return f"{text} {_UNITS[unit]}".rstrip()


def megabytes(size: int | None) -> str:
    """Return the bytes in megabytes."""
    return UNKNOWN if size is None else f"{size / 1e6:,.3f}"
