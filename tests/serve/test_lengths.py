"""A model whose rows differ in length: texts are padded no more than they need, and none is longer than was proved."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import artifacts
import grpc
import numpy as np
import pytest
from commands import serve_fails
from grpc_calls import Caller, array_of, calling, infer_request
from serving import check_error, tensor, web
from texts import SENTENCES, TOKENIZER

from shipline.artifact import PROCESSING, ServingSettings
from shipline.processing import Processing, Tokenize
from shipline.serve.server import BackgroundServer

LONGEST, UNIT = 40, 16
STEPS = Processing([Tokenize(tokenizer=TOKENIZER, max_length=LONGEST, pad_to_multiple_of=UNIT)])
GOLDEN = SENTENCES[:4]
WORDS = artifacts.words()


def publish(repository: Path, graph: artifacts.Graph = WORDS, raw: list[str] = GOLDEN, **fields: Any) -> None:
    """With golden rows in full, as the export writes them."""
    rows = [STEPS.whole.prepare(text) for text in GOLDEN]
    inputs = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    outputs = graph.function(inputs)
    files = artifacts.golden_files(inputs, outputs, raw, outputs["y"].tolist()) | {PROCESSING: STEPS.to_json()}
    settings = ServingSettings(max_batch_size=4, longest=LONGEST)
    artifacts.publish(
        f"{repository}/words", graph, files={"model.onnx": graph.model, **files}, **{"serving": settings, **fields}
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundServer]:
    repository = tmp_path_factory.mktemp("repository")
    publish(repository)
    with BackgroundServer(str(repository), grpc_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: BackgroundServer) -> str:
    return server.url


@pytest.fixture(scope="module")
def caller(server: BackgroundServer) -> Iterator[Caller]:
    with calling(server.grpc_address) as caller:
        yield caller


def right(text: str) -> int:
    row = STEPS.whole.prepare(text)
    return int((row["input_ids"] * row["attention_mask"]).sum())


def infer(url: str, **arrays: np.ndarray) -> Any:
    inputs = [tensor(name, array, "INT64") for name, array in arrays.items()]
    return web.post(f"{url}/v2/models/words/infer", json={"inputs": inputs})


def test_texts_of_all_lengths_at_once(url: str) -> None:
    """Each among others: rows of one length make a batch, and of another another."""
    texts = [*SENTENCES, "", "Iris", " ".join(SENTENCES[:20])]

    def ask(text: str) -> Any:
        return web.post(f"{url}/models/words/predict", json=text).json()["output"]

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(ask, texts))
    assert found == [[right(text)] for text in texts]


@pytest.mark.parametrize("length", [1, UNIT, 37, LONGEST])
def test_tensors_of_any_length_up_to_the_longest(url: str, length: int) -> None:
    ids = np.arange(3 * length, dtype=np.int64).reshape(3, length)
    answer = infer(url, input_ids=ids, attention_mask=np.ones_like(ids))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == ids.sum(1).tolist()


def test_what_is_longer_than_was_proved_is_refused(url: str) -> None:
    ids = np.ones((2, LONGEST + 1), np.int64)
    check_error(infer(url, input_ids=ids, attention_mask=ids), 400, "a length of 40 at most for this model; got 41")
    ids = np.ones((1, 4000), np.int64)
    check_error(infer(url, input_ids=ids, attention_mask=ids), 400, "got 4000")


def test_inputs_of_different_lengths_are_refused(url: str) -> None:
    ids = np.ones((2, 8), np.int64)
    answer = infer(url, input_ids=ids, attention_mask=ids[:, :7])
    check_error(answer, 400, "must have the same length; got {'input_ids': 8, 'attention_mask': 7}")
    check_error(infer(url, input_ids=ids, attention_mask=ids[:, :1]), 400, "same length")  # which would be broadcast


def test_lengths_over_grpc(caller: Caller) -> None:
    """One length after the other on a connection; what HTTP refuses is refused in the same words."""
    for length in (1, UNIT, 37, LONGEST):
        ids = np.arange(3 * length, dtype=np.int64).reshape(3, length)
        found = array_of(caller.infer(infer_request("words", input_ids=ids, attention_mask=np.ones_like(ids))))
        assert found.ravel().tolist() == ids.sum(1).tolist()
    bad, ids = grpc.StatusCode.INVALID_ARGUMENT, np.ones((2, LONGEST + 1), np.int64)
    caller.refused(infer_request("words", input_ids=ids, attention_mask=ids), bad, "a length of 40 at most for this")
    caller.refused(infer_request("words", input_ids=ids[:, :8], attention_mask=ids[:, :7]), bad, "the same length; got")


def test_the_metadata_says_that_the_length_is_free_up_to_the_longest(url: str) -> None:
    found = web.get(f"{url}/v2/models/words").json()
    assert [each["shape"] for each in found["inputs"]] == [[-1, -1], [-1, -1]]
    assert found["parameters"]["longest"] == LONGEST


def test_a_graph_to_which_padding_matters_takes_no_traffic(tmp_path: Path) -> None:
    """Golden rows in full are answered rightly; the same texts, as requests become them, are not."""
    publish(tmp_path, artifacts.words(padding=1))
    code, said = serve_fails(str(tmp_path))
    assert code == 1
    assert "golden row 1: output 'y' differs by" in said  # the first is as long as the longest


def test_raw_rows_of_other_golden_rows(tmp_path: Path) -> None:
    publish(tmp_path, raw=[*GOLDEN[1:], GOLDEN[0]])
    assert (
        "golden row 0: its raw input becomes another 'attention_mask' than at export" in serve_fails(str(tmp_path))[1]
    )
