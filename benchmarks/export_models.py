"""The models of the benchmark of exports: what is exported, on which rows, and how good answers are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional as F

import shipline as sl

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "examples" / "digits"), str(ROOT / "tests" / "support")]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A trained model.

    Args:
        name: how the table calls it.
        export: exports it as a recipe says, to a URL.
        rows: those that it is judged on, by the names of the graph's inputs.
        calibration: those that scales are measured on.
        answers: the module's own to `rows`.
        targets: the right classes, where they are known; else fidelity to the module's answers counts.
        trainable: whether it can be trained on, after pruning.
        transformer: whether it is one, which some peers want to be told.
    """

    name: str
    export: Callable[[sl.Recipe, str], Any] = field(repr=False)
    rows: Arrays
    calibration: Arrays
    answers: np.ndarray
    targets: np.ndarray | None = None
    trainable: bool = False
    transformer: bool = False

    @property
    def metric(self) -> str:
        """What is measured."""
        return "fidelity" if self.targets is None else "accuracy"

    def score(self, found: np.ndarray) -> float:
        """The share of right classes; or R² of these answers for the module's own, 1 where they are the same."""
        if self.targets is not None:
            return float((found.argmax(1) == self.targets).mean())
        own = self.answers.astype(np.float64)
        return 1 - float(((found - own) ** 2).sum() / ((own - own.mean(0)) ** 2).sum())


def digits(scratch: Path) -> Model:
    """The example: pictures of 8x8 pixels."""
    import digits as example

    return _trained("digits CNN", example.Digits, example.DigitsData, scratch)


def scans(scratch: Path) -> Model:
    """The same pictures, of 32x32 pixels."""
    from scans import Scans, ScansData

    return _trained("digits CNN, 32x32", Scans, ScansData, scratch)


def table(scratch: Path) -> Model:
    """A network of three layers on the measures of tumours."""
    x, y = load_breast_cancer(return_X_y=True)
    features = torch.tensor((x - x[114:].mean(0)) / x[114:].std(0), dtype=torch.float32)
    classes = torch.tensor(y)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2)
    )  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(module(features[114:]), classes[114:]).backward()
        optimizer.step()

    def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).float().mean()

    rows, calibration = {"input": features[:114].numpy()}, {"input": features[114:].numpy()}

    def export(recipe: sl.Recipe, to: str) -> Any:
        given = {"rows": (rows["input"], y[:114]), "calibration": calibration["input"]}
        return sl.export(module, recipe, **given, metric=accuracy, mode="max", to=to)

    return Model("table MLP", export, rows, calibration, _answers(module, rows), y[:114])


def minilm(scratch: Path) -> Model:
    """all-MiniLM-L6-v2 on sentences of scikit-learn's descriptions, all padded to 64 tokens."""
    from texts import MINILM, SENTENCES

    source = sl.huggingface(MINILM, max_length=64, pad_to_multiple_of=None)
    prepared = [source.processing.prepare(text) for text in SENTENCES]
    rows = {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}
    return Model(
        "MiniLM", lambda recipe, to: sl.export(source, recipe, rows=SENTENCES, to=to), rows, rows,
        _answers(source.build(), rows), transformer=True,
    )  # fmt: skip


def photographs(scratch: Path) -> Model:
    """EfficientNet-Lite0 on squares of three photographs."""
    from photos import CLASSES, efficientnet, processing, squares

    jpegs = [jpeg for name in CLASSES for jpeg in squares(name, steps=4, size=0.7)]
    module, steps = efficientnet(), processing()
    rows = {"inputs": np.stack([steps.prepare(jpeg) for jpeg in jpegs])}
    return Model(
        "EfficientNet-Lite0", lambda recipe, to: sl.export(module, recipe, rows=jpegs, processing=steps, to=to), rows,
        rows, _answers(module, rows),
    )  # fmt: skip


MODELS = {"table": table, "digits": digits, "scans": scans, "minilm": minilm, "photographs": photographs}


def _trained(name: str, make_module: Callable[[], Any], make_data: Callable[[], Any], scratch: Path) -> Model:
    """Train for 10 epochs, from the same weights each time."""
    sl.seed_everything(0)
    module, data = make_module(), make_data()
    best = sl.ModelCheckpoint(monitor="val_acc", mode="max")
    trainer = sl.Trainer(
        max_epochs=10, default_root_dir=str(scratch / "runs"), callbacks=[best], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    run = trainer.fit(module, data)
    (images, targets), (others, _) = data.val.tensors, data.train.tensors
    rows, calibration = {"image": images.numpy()}, {"image": others[:512].numpy()}
    return Model(
        name, lambda recipe, to: sl.export(run, recipe, to=to), rows, calibration, _answers(module, rows),
        targets.numpy(), trainable=True,
    )  # fmt: skip


def _answers(module: nn.Module, rows: Arrays) -> np.ndarray:
    with torch.no_grad():
        found = module.eval()(**{name: torch.from_numpy(array) for name, array in rows.items()})
    output: torch.Tensor = next(iter(found.values())) if isinstance(found, dict) else found
    return output.numpy()
