"""What pruning gains: accuracy, size and latency of the digits example, pruned and not, in float32 and int8.

    python benchmarks/pruning.py [--channels 32] [--epochs 10]

Each is exported with the gates on answers as they are, and those on metric and speed open: what is measured here must
not keep it from being published. Times are those of the reports: one thread, beside the float32 graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples" / "digits"))

WAYS = [(prune, precision) for prune in (0.0, 0.5, 0.75) for precision in ("float32", "int8")]


def train(scratch: str, channels: int, epochs: int) -> Any:
    """Train the example."""
    import digits

    import shipline as sl

    sl.seed_everything(0)
    best = sl.ModelCheckpoint(monitor="val_acc", mode="max")
    trainer = sl.Trainer(
        max_epochs=epochs, default_root_dir=f"{scratch}/runs", callbacks=[best], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    return trainer.fit(digits.Digits(channels=channels), digits.DigitsData())


def measured(run: Any, scratch: str, prune: float, precision: str, epochs: int) -> dict[str, Any]:
    """Export one way; return what the report says of it."""
    import shipline as sl

    trained_on = {"finetune_epochs": epochs} if prune else {}
    recipe = sl.Recipe(precision=precision, prune=prune, max_metric_drop=1.0, min_speedup=0, **trained_on)
    artifact = sl.export(run, recipe, to=f"{scratch}/models/digits")
    found = json.loads(artifact.read("report.json"))
    [chosen] = [each for each in found["candidates"] if each["chosen"]]
    return chosen


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32, help="of the first layer; the others have twice as many")
    parser.add_argument("--epochs", type=int, default=10, help="of the training, and of that after pruning")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = train(scratch, options.channels, options.epochs)
        print("| way | accuracy | bytes | ms, 1 row | ms, 32 rows |\n|---|---|---|---|---|")
        for prune, precision in WAYS:
            found = measured(run, scratch, prune, precision, options.epochs)
            times = [f"{taken['median_ms']:.3f} ({taken['speedup']:.1f}x)" for taken in found["latency"]]
            name = found["name"].removesuffix(" on onnxruntime")
            print(
                f"| {name} | {found['metrics']['val_acc']:.4f} | {found['bytes']:,} | {' | '.join(times)} |", flush=True
            )


if __name__ == "__main__":
    main()
