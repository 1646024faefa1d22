"""What was trained elsewhere, over real HTTP: a plain module, a checkpoint of Lightning's, an encoder of sentences."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from lightning_line import LitData, LitDigits, fit_in_lightning
from sklearn.datasets import load_digits
from texts import MINILM, SENTENCES
from torch import nn

import shipline as sl
from shipline.artifact import Artifact
from shipline.serve.golden import GoldenRows
from shipline.serve.server import BackgroundServer

IMAGES = torch.tensor(load_digits().images[:, None] / 16, dtype=torch.float32)  # [rows, 1, 8, 8]


class Parts(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        linear = self.head(torch.relu(self.conv(image)).flatten(1)) + shift
        return {"linear": linear, "best": linear.argmax(1)}


def plain(to: Path) -> Artifact:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = Parts()
    rows = {"image": IMAGES[:200].numpy(), "shift": IMAGES[:200, 0, 3, 3:4]}
    return sl.export(module, rows=rows, to=str(to / "plain"))


def lightning(to: Path) -> Artifact:
    best = fit_in_lightning(LitDigits(width=16), to.parent / "runs", epochs=1)
    return sl.export(best.best_model_path, module=LitDigits, data=LitData(), to=str(to / "lightning"))


def minilm(to: Path) -> Artifact:
    recipe = {"proof_rows": 32, "max_batch_size": 4}
    return sl.export(sl.huggingface(MINILM, max_length=32), recipe, rows=SENTENCES, to=str(to / "minilm"))


@pytest.mark.timeout(600)
def test_what_was_trained_elsewhere_is_served(tmp_path: Path) -> None:
    artifacts = [make(tmp_path / "models") for make in (plain, lightning, minilm)]
    with BackgroundServer(str(tmp_path / "models")) as server, sl.Client(server.url) as client:
        for artifact in artifacts:
            check_golden_rows(client, artifact)
        check_sentences(client, server.url)


def check_golden_rows(client: sl.Client, artifact: Artifact) -> None:
    """Each gets the trained module's answer, as tensors and raw."""
    name, rows = artifact.manifest.name, GoldenRows(artifact)
    assert rows.count >= 8
    for number in range(rows.count):
        inputs, wanted = rows.row(number)
        outputs = client.infer(name, inputs)
        for output, want in wanted.items():
            assert np.abs(outputs[output] - want).max() <= artifact.manifest.tolerance[output]
    for raw, want in zip(rows.raw, rows.answers, strict=True):
        np.testing.assert_allclose(client.predict(name, raw)["output"], want, atol=1e-4)


def check_sentences(client: sl.Client, address: str) -> None:
    """Embeddings of like sentences are near; what is no text is refused; the documentation's example works."""
    one, like, other = (
        np.array(client.predict("minilm", text)["output"])
        for text in ("How old is the patient?", "What is the age of the patient?", "The wine was pressed in Italy.")
    )
    assert one.shape == (384,)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ like > 0.9
    assert one @ other < 0.2
    for bad, said in ((7, "Expected a text; got int"), ("x" * 200_000, "at most 100000 are allowed")):
        answer = httpx.post(f"{address}/models/minilm/predict", json=bad)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    document = httpx.get(f"{address}/openapi.json").json()
    body = document["paths"]["/models/minilm/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"type": "string"}
    assert body["example"] in SENTENCES
    assert httpx.post(f"{address}/models/minilm/predict", json=body["example"]).status_code == 200
