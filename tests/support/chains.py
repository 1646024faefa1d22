"""Every chain of module, pruning, precision and backend, tried: the table in `docs/chains.md`.

`python tests/support/chains.py` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import torch
from helpers import ROOT
from prunable import Attends, Residual
from sklearn.datasets import load_digits
from small_modules import Tiny
from torch import nn

from shipline.errors import GateError
from shipline.export import Source
from shipline.export.gates import parity
from shipline.export.passes.base import Pass
from shipline.export.passes.prune_channels import PruneChannels
from shipline.export.passes.prune_weights import PruneWeights
from shipline.export.plan import PRECISIONS, SEARCHED, Plan, plan
from shipline.export.recipe import Recipe
from shipline.export.trained import look_at
from shipline.export.workbench import Workbench

PAGE = ROOT / "docs" / "chains.md"
MODULES: dict[str, type[nn.Module]] = {"dense": Tiny, "convolutions": Residual, "transformer": Attends}
PRUNED: dict[str, tuple[Pass, ...]] = {
    "whole": (),
    "channels": (PruneChannels(ratio=0.5, finetune_epochs=0),),
    "weights": (PruneWeights(amount=0.5, finetune_epochs=0),),
}
#: Takes half a minute for each: tried with whole modules alone.
SLOW = ("float32", "aotinductor")
#: Ends the process for some modules; the others need no process of their own, which takes a second for each.
CRASHES = ("float16", "onnxruntime")
BATCH = 8


def ways() -> Iterator[tuple[str, str]]:
    """Each precision and backend."""
    for backend, precisions in SEARCHED.items():
        every = ((precision, backend) for precision in PRECISIONS if precision in precisions)
        yield from (way for way in every if way != ("bfloat16", SLOW[1]))
    yield "float32", "torch-export"


def tried(module: str, pruned: str) -> dict[tuple[str, str], str]:
    """What came of each way for a module: "" where it answers as the module does, or why not."""
    recipe = Recipe(max_batch_size=BATCH, proof_rows=64, calibration_rows=64, metric="agreement", mode="max")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        source = Source(lambda: MODULES[module]().eval(), evaluate)
        with Workbench(source, recipe, look_at(source, recipe)) as bench:
            return {
                (precision, backend): _outcome(bench, plan(precision, backend, PRUNED[pruned]), recipe)
                for precision, backend in ways()
                if (precision, backend) != SLOW or pruned == "whole"
            }


def evaluate(module: nn.Module, *, split: str = "val", rows: int | None = None) -> dict[str, float]:
    """Let scans of digits go through a module; of a chain, nothing but the answers counts."""
    with torch.no_grad():
        module(torch.tensor(load_digits().data[:64] / 16, dtype=torch.float32))
    return {"agreement": 1.0}


def _outcome(bench: Workbench, way: Plan, recipe: Recipe) -> str:
    try:
        candidate = bench.make(way)
        if (way.precision, way.backend) == CRASHES:
            bench.try_out(candidate)
        like = candidate.trained
        verdict, _ = parity(candidate.runtime, like.rows, like.signature, BATCH, 2 * way.tolerance)
        candidate.rest()
    except GateError as error:
        return str(error).splitlines()[0]
    return "" if verdict.passed else "its answers differ from the module's by more than is allowed"


def table(outcomes: dict[tuple[str, str], dict[tuple[str, str], str]]) -> str:
    """The page: a row for each way, a column for each module and pruning, and the reasons below."""
    columns = list(outcomes)
    reasons: list[str] = []

    def cell(column: tuple[str, str], way: tuple[str, str]) -> str:
        said = outcomes[column].get(way)
        if not said:
            return "" if said is None else "yes"
        if said not in reasons:
            reasons.append(said)
        return f"no ({reasons.index(said) + 1})"

    lines = [
        f"| precision | backend | {' | '.join(f'{module}, {pruned}' for module, pruned in columns)} |",
        f"|---|---|{'---|' * len(columns)}",
        *(f"| {way[0]} | {way[1]} | {' | '.join(cell(column, way) for column in columns)} |" for way in ways()),
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
    ]
    return f"{INTRODUCTION}\n" + "\n".join(lines) + "\n"


INTRODUCTION = """# Chains

Which module goes through which passes to which backend. `tests/export/test_chains.py` tries each, and compares this
page with what it found; `python tests/support/chains.py` writes the page anew. "yes": the file was made, loaded, and
answered real rows as the module does, in batches of 1, 2 and 8. "no": refused, for the reason below. Empty: not tried.

Modules: `dense` has linear layers and dropout; `convolutions` residual, depthwise and grouped ones with batch and group
norm; `transformer` two encoder layers of torch. They are `whole`, without half of their `channels`, or with half of
their `weights` at zero.
"""

if __name__ == "__main__":
    everything: Any = {(module, pruned): tried(module, pruned) for module in MODULES for pruned in PRUNED}
    PAGE.write_text(table(everything))
