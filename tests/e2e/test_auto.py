"""Real models go through the search and are served: what it chose answers as the module does, over real HTTP."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from photos import CLASSES, efficientnet, processing, squares
from small_modules import Cells, CellTable, fit
from test_line import serving
from texts import MINILM, SENTENCES

import shipline as sl
from shipline.artifact import Artifact
from shipline.serve.golden import GoldenRows

#: Batches that are quick to measure, and rows enough to prove on.
SMALL: dict[str, Any] = {"precision": "auto", "max_batch_size": 4, "proof_rows": 16, "calibration_rows": 12}
#: Large graphs are searched for one backend; the others take a minute to compile them.
LARGE = {**SMALL, "backend": "onnxruntime"}
SIZE = 160  # of a picture: half of the work of 224, and the classes are still right


def digits(to: Path) -> Artifact:
    """The example's network, on the PNGs that its clients send."""
    spec = importlib.util.spec_from_file_location("digits_example", ROOT / "examples/digits/digits.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    run = fit(example.Digits(channels=16), example.DigitsData(), to.parent / "digits", epochs=2)
    return sl.export(run, SMALL, to=str(to / "digits"))


def table(to: Path) -> Artifact:
    """A network on rows of a table."""
    return sl.export(fit(Cells(), CellTable(), to.parent / "cells"), SMALL, to=str(to / "cells"))


def minilm(to: Path) -> Artifact:
    """An encoder of sentences."""
    return sl.export(sl.huggingface(MINILM, max_length=16), LARGE, rows=SENTENCES[:32], to=str(to / "minilm"))


def photographs(to: Path) -> Artifact:
    """A classifier of photographs, on JPEGs."""
    crops = [crop for name in CLASSES for crop in squares(name, steps=2, size=0.8)]
    return sl.export(efficientnet(SIZE), LARGE, rows=crops, processing=processing(SIZE), to=str(to / "photographs"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", [digits, table, minilm, photographs])
def test_what_the_search_chose_is_served(tmp_path: Path, make: Callable[[Path], Artifact]) -> None:
    artifact = make(tmp_path / "models")
    assert all(verdict.passed for verdict in artifact.manifest.verdicts)
    with serving(str(tmp_path / "models"), tmp_path) as address, sl.Client(address) as client:
        check_golden_rows(client, artifact)
        if make is photographs:
            check_photographs(client, artifact)


def check_golden_rows(client: sl.Client, artifact: Artifact) -> None:
    """As tensors and raw, each is answered within the stated tolerance."""
    manifest, rows = artifact.manifest, GoldenRows(artifact)
    assert rows.count >= 8
    assert len(rows.raw) == rows.count
    outputs = client.infer(manifest.name, {name: array[:4] for name, array in rows.inputs.items()})
    for name, want in rows.outputs.items():
        assert np.abs(outputs[name] - want[:4]).max() <= manifest.tolerance[name]
    for raw, want in zip(rows.raw, rows.answers, strict=True):
        found = client.predict(manifest.name, raw)
        if "label" in want:
            assert abs(found["score"] - want["score"]) <= 0.1
        else:
            np.testing.assert_allclose(found["output"], want, atol=max(manifest.tolerance.values()))


def check_photographs(client: sl.Client, artifact: Artifact) -> None:
    """The JPEG that a client sends gets the module's own class, which is the right one."""
    module, tolerance = efficientnet(SIZE), artifact.manifest.tolerance["output"]
    for name, number in CLASSES.items():
        [jpeg] = squares(name, steps=1)
        image = processing(SIZE).prepare(jpeg)[None]
        with torch.no_grad():
            own = module(torch.from_numpy(image)).numpy()
        assert own.argmax() == number
        assert np.abs(client.infer("photographs", {"inputs": image})["output"] - own).max() <= tolerance
        assert client.predict("photographs", jpeg)["label"] == str(number)
