"""The step that makes the inputs of a language model of a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from step_conformance import StepConformance
from texts import MINILM, SENTENCES, TOKENIZER
from transformers import AutoTokenizer

from shipline import plugins
from shipline.errors import IntegrityError, MissingExtraError, ProcessingError, SignatureError
from shipline.processing import Columns, Labels, Processing, Softmax, Step, Tokenize
from shipline.signature import Signature, TensorSpec

ALL = ("input_ids", "attention_mask", "token_type_ids")


class TestTokenize(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Tokenize(tokenizer=TOKENIZER, max_length=12, inputs=ALL, padding_side="left", max_characters=500)

    @pytest.fixture
    def value(self) -> str:
        return SENTENCES[3]

    def test_is_data(self, step: Step, value: Any) -> None:
        stored = Processing(before=[step]).to_json()
        json.loads(stored, parse_constant=pytest.fail)
        again = Processing.from_json(stored)
        assert again.before == (step,)
        assert again.to_json() == stored
        check_same(again.prepare(value), step(value))

    def test_gives_the_same_every_time(self, step: Step, value: Any) -> None:
        check_same(step(value), step.model_copy()(value))

    def test_gives_the_same_in_many_threads(self, step: Step, value: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            for number, found in enumerate(pool.map(step, SENTENCES * 4)):
                check_same(found, step(SENTENCES[number % len(SENTENCES)]))


def check_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == np.int64
        assert array.tolist() == other[name].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [4, 16, 64])
def test_it_is_what_transformers_makes_of_texts(length: int, side: Any) -> None:
    theirs = AutoTokenizer.from_pretrained(MINILM, padding_side=side)
    step = Tokenize(tokenizer=TOKENIZER, max_length=length, inputs=ALL, padding_side=side)
    for text in [*SENTENCES[:40], "", " ", "Zürich \u4e2d\u6587 \U0001f600 \x00\x07 e\u0301", "a" * 300]:
        found = step(text)
        wanted = theirs(text, padding="max_length", truncation=True, max_length=length)
        assert {name: array.tolist() for name, array in found.items()} == {name: wanted[name] for name in ALL}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("unit", "most"), [(1, 20), (8, 20), (16, 64), (100, 12)])
def test_rows_are_as_long_as_their_texts_need(unit: int, most: int, side: Any) -> None:
    theirs = AutoTokenizer.from_pretrained(MINILM, padding_side=side)
    step = Tokenize(tokenizer=TOKENIZER, max_length=most, inputs=ALL, padding_side=side, pad_to_multiple_of=unit)
    for text in [*SENTENCES[:40], "", "a" * 300]:
        found, whole = step(text), step.whole()(text)
        tokens = theirs(text, truncation=True, max_length=most)["input_ids"]
        length = min((len(tokens) + unit - 1) // unit * unit, most)
        wanted = theirs(text, padding="max_length", truncation=True, max_length=length)
        assert {name: array.tolist() for name, array in found.items()} == {name: wanted[name] for name in ALL}
        wanted = theirs(text, padding="max_length", truncation=True, max_length=most)
        assert {name: array.tolist() for name, array in whole.items()} == {name: wanted[name] for name in ALL}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("inputs", [ALL, ("input_ids",), ("attention_mask",)])
@pytest.mark.parametrize("unit", [1, 8])
def test_whole_rows_are_trimmed_to_what_the_longest_of_them_needs(unit: int, inputs: Any, side: Any) -> None:
    step = Tokenize(tokenizer=TOKENIZER, max_length=40, inputs=inputs, padding_side=side, pad_to_multiple_of=unit)
    processing = Processing([step])
    for texts in (SENTENCES[:1], ["", "Iris", "two words"], ["Iris", " ".join(SENTENCES)]):
        whole = [processing.whole.prepare(text) for text in texts]
        found = processing.trim({name: np.stack([row[name] for row in whole]) for name in inputs})
        longest = max(len(step(text)[inputs[0]]) for text in texts)
        padded = step.model_copy(update={"pad_to_multiple_of": None, "max_length": longest})
        for name, rows in found.items():
            assert rows.flags.c_contiguous
            assert rows.tolist() == [padded(text)[name].tolist() for text in texts]


def test_rows_that_nothing_tells_the_length_of_are_not_trimmed() -> None:
    rows = {"token_type_ids": np.zeros((2, 40), np.int64)}
    step = Tokenize(tokenizer=TOKENIZER, max_length=40, inputs=("token_type_ids",), pad_to_multiple_of=8)
    assert Processing([step]).trim(rows) is rows
    assert Processing([step.whole()]).trim(rows) is rows


def test_a_processing_knows_how_long_its_rows_are() -> None:
    free = Processing([Tokenize(tokenizer=TOKENIZER, max_length=20, pad_to_multiple_of=8)], [Softmax()])
    assert free.longest == 20
    assert free.whole.longest is None
    assert free.whole.after == free.after
    assert free.whole is free.whole  # its tokenizer is read once
    assert free.whole.whole is free.whole
    again = Processing.from_json(free.to_json())
    assert again.longest == 20
    assert again.prepare("Iris")["input_ids"].shape == (8,)
    assert Processing([Columns(numeric=("a",))]).longest is None
    for unit in (20, 32):  # a multiple that all rows are as long as
        assert Processing([Tokenize(tokenizer=TOKENIZER, max_length=20, pad_to_multiple_of=unit)]).longest is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (7, "Expected a text; got int. Send a JSON string"),
        (["a", "b"], "Expected a text; got list"),
        (b"bytes", "Expected a text; got bytes"),
        (None, "Expected a text; got NoneType"),
        ("x" * 501, "The text has 501 characters; at most 500 are allowed"),
        ("half \ud800 a pair", "it is no valid Unicode"),
    ],
)
def test_what_is_no_text(raw: Any, said: str) -> None:
    step = Tokenize(tokenizer=TOKENIZER, max_length=8, max_characters=500)
    with pytest.raises(ProcessingError, match=said):
        step(raw)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer": "{}"}, "tokenizer is no tokenizer.json"),
        ({"tokenizer": "no JSON"}, "tokenizer is no tokenizer.json"),
        ({"pad_token": "<nothing>"}, "pad_token '<nothing>' is not in the tokenizer's vocabulary"),
        ({"max_length": 2}, "max_length 2 leaves no room beside 2 special tokens"),
        ({"max_length": 0}, "greater than or equal to 1"),
        ({"inputs": ()}, "at least 1 item"),
        ({"pad_to_multiple_of": 0}, "greater than or equal to 1"),
        ({"inputs": ("input_ids", "input_ids")}, "each input must occur once"),
        ({"inputs": ("ids",)}, "Input should be 'input_ids', 'attention_mask' or 'token_type_ids'"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Tokenize(**{"tokenizer": TOKENIZER, "max_length": 8, **settings})


def test_a_damaged_tokenizer_in_an_artifact() -> None:
    stored = {"schema_version": 1, "before": [{"step": "tokenize", "tokenizer": "{", "max_length": 8}], "after": []}
    with pytest.raises(IntegrityError, match="tokenizer is no tokenizer"):
        Processing.from_json(json.dumps(stored).encode())


def test_its_repr_leaves_the_vocabulary_out() -> None:
    assert len(repr(Tokenize(tokenizer=TOKENIZER, max_length=8))) < 200


def test_a_model_that_takes_something_else() -> None:
    def spec(name: str, dtype: str = "int64", length: int = 8) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=(-1, length))

    processing = Processing([Tokenize(tokenizer=TOKENIZER, max_length=8)], [Softmax(), Labels(names=("a", "b"))])
    out = (spec("y", "float32", 2),)
    good = Signature(inputs=(spec("input_ids"), spec("attention_mask")), outputs=out)
    assert {name: array.shape for name, array in processing.inputs("a text", good).items()} == {
        "input_ids": (1, 8), "attention_mask": (1, 8),
    }  # fmt: skip
    with pytest.raises(SignatureError, match="Unknown input 'attention_mask'"):
        processing.inputs("a text", Signature(inputs=(spec("input_ids"),), outputs=out))
    with pytest.raises(SignatureError, match=r"'input_ids' must have shape \[-1, 9\]; got \[1, 8\]"):
        processing.inputs(
            "a text", Signature(inputs=(spec("input_ids", "int64", 9), spec("attention_mask")), outputs=out)
        )


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"This needs 'tokenizers'.*pip install 'shipline\[text\]'"):
        plugins.load("step", "tokenize")(tokenizer=TOKENIZER, max_length=8)


def test_serving_needs_the_tokenizer_alone(tmp_path: Path) -> None:
    path = tmp_path / "processing.json"
    path.write_bytes(Processing([Tokenize(tokenizer=TOKENIZER, max_length=8)]).to_json())
    program = (
        "import sys, pathlib, shipline; "
        f"p = shipline.Processing.from_json(pathlib.Path({str(path)!r}).read_bytes()); p.prepare('some text'); "
        "print({'torch', 'transformers', 'huggingface_hub', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
