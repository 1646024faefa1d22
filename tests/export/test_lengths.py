"""Rows that differ in length: proved at each of their lengths, on every backend, or refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import MINILM, SENTENCES, TOKENIZER
from torch import nn

import shipline as sl
from shipline.artifact import Artifact
from shipline.backends.base import Arrays
from shipline.errors import GateError, ShiplineError, SignatureError
from shipline.export.lengths import BATCH, Shorter, _answers, freed, shorter, usual
from shipline.export.passes.base import Material
from shipline.export.passes.pt2e_int8 import Pt2eInt8
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.rows import Rows, recording
from shipline.export.runtime import Runtime
from shipline.export.source import Source
from shipline.processing import Processing, Tokenize
from shipline.serve.golden import GoldenRows
from shipline.signature import Signature, TensorSpec

LONGEST, UNIT = 48, 16
#: Texts of more tokens than the longest row has.
LONG = [" ".join(SENTENCES[i : i + 6]) for i in range(60)]
SMALL = {"proof_rows": 48, "max_batch_size": 4, "golden_rows": 4}


class Words(nn.Module):
    """The mean of a text's words, through a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.wide, self.out = nn.Embedding(30522, 16), nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        there = attention_mask.unsqueeze(-1).to(torch.float32)
        return self.answer((self.words(input_ids) * there).sum(1) / there.sum(1))

    def answer(self, mean: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(torch.relu(self.wide(mean)))
        return found


class SeesPadding(Words):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.answer(self.words(input_ids).mean(1) * attention_mask[:, :1])


class AnswersEachWord(Words):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.answer(self.words(input_ids)) * attention_mask.unsqueeze(-1)


class TakesOneLength(Words):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.linspace(-1, 1, LONGEST))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        weights = (self.place * attention_mask).unsqueeze(-1)
        return self.answer((self.words(input_ids) * weights).sum(1))


class WalksOverWords(Words):
    """What torch exports as so many products in a row."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        kept, total = attention_mask.unsqueeze(-1), torch.zeros(())
        for place in range(input_ids.shape[1]):
            total = total * 0.9 + self.answer(self.words(input_ids[:, place])) * kept[:, place]
        return total * 0.9 ** (LONGEST - input_ids.shape[1])


def processing(unit: int | None = UNIT) -> Processing:
    return Processing([Tokenize(tokenizer=TOKENIZER, max_length=LONGEST, pad_to_multiple_of=unit)])


def export(module: nn.Module, to: Path, unit: int | None = UNIT, rows: Any = SENTENCES, **recipe: Any) -> Artifact:
    return sl.export(module, SMALL | recipe, rows=rows, processing=processing(unit), to=str(to / "words"))


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        ("float32", "onnxruntime"),
        ("int8", "onnxruntime"),
        ("int8-mixed", "onnxruntime"),
        ("int8-weights", "onnxruntime"),
        ("float16", "onnxruntime"),
        ("float32", "openvino"),
        ("bfloat16", "openvino"),
        ("float32", "torchscript"),
        ("float32", "torch-export"),
        ("float32", "aotinductor"),
    ],
)
def test_every_way_is_proved_at_every_length(precision: str, backend: str, tmp_path: Path) -> None:
    recipe = {"min_speedup": 1e-6, "max_metric_drop": 0.2, "tolerance": 0.2}
    manifest = export(Words(), tmp_path, precision=precision, backend=backend, **recipe).manifest
    assert [spec.shape for spec in manifest.signature.inputs] == [(-1, -1), (-1, -1)]
    assert [spec.shape for spec in manifest.signature.outputs] == [(-1, 4)]
    assert manifest.serving.longest == LONGEST
    [padding] = [verdict for verdict in manifest.verdicts if verdict.gate == "padding"]
    assert padding.passed
    assert "rows padded to 16, 32, 48 instead of 48" in padding.message
    assert "times are measured with rows of 16" in padding.message


def test_a_program_that_torchao_has_rounded_takes_every_length(tmp_path: Path) -> None:
    manifest = export(Words(), tmp_path, passes=(Pt2eInt8(),), min_speedup=1e-6, max_metric_drop=0.1).manifest
    assert manifest.serving.longest == LONGEST
    assert all(verdict.passed for verdict in manifest.verdicts if verdict.gate == "padding")


def test_scales_and_metrics_are_of_rows_padded_no_more_than_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, measured, answered = processing(), tmp_path / "measured", set[int]()
    texts = [text for text in SENTENCES if len(steps.prepare(text)["input_ids"]) == UNIT]
    apply, run = StaticInt8.apply, Runtime.run

    def measure(self: StaticInt8, model: bytes, material: Material) -> bytes:
        measured.write_text(str(material.calibration()["input_ids"].shape[1]))  # in a process of its own
        return apply(self, model, material)

    def answer(self: Runtime, inputs: Arrays) -> list[np.ndarray]:
        rows, length = inputs["input_ids"].shape
        if rows > SMALL["max_batch_size"]:  # of what evaluates; gates ask in smaller batches
            answered.add(length)
        return run(self, inputs)

    monkeypatch.setattr(StaticInt8, "apply", measure)
    monkeypatch.setattr(Runtime, "run", answer)
    recipe = {"min_speedup": 1e-6, "max_metric_drop": 0.2, "tolerance": 0.2}
    metrics = export(Words(), tmp_path, rows=texts, precision="int8", **recipe).manifest.metrics
    assert metrics["fidelity"] > 0.9
    assert measured.read_text() == str(UNIT)
    assert answered == {UNIT}


def test_golden_rows_and_their_raw_rows_belong_together(tmp_path: Path) -> None:
    artifact = export(Words(), tmp_path)
    rows = GoldenRows(artifact)
    assert rows.inputs["input_ids"].shape == (4, LONGEST)
    assert set(rows.raw) <= set(SENTENCES)


def test_rows_of_one_length_are_as_ever(tmp_path: Path) -> None:
    manifest = export(Words(), tmp_path, unit=None).manifest
    assert [spec.shape for spec in manifest.signature.inputs] == [(-1, LONGEST), (-1, LONGEST)]
    assert manifest.serving.longest is None
    assert "padding" not in [verdict.gate for verdict in manifest.verdicts]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (SeesPadding, r"(?s)padding: rows padded to 16, 32, 48 .* 0\.0001 is allowed"),
        (AnswersEachWord, r"AnswersEachWord answers longer rows with a longer 'output' \(\[48, 4\] and \[16, 4\]\)"),
        (TakesOneLength, "TakesOneLength cannot take rows of a length of 16: RuntimeError"),
        (WalksOverWords, r"(?s)cannot be exported to ONNX, .* static shape of 48 for dimension inputs\['input_ids'\]"),
    ],
)
def test_a_module_to_which_padding_matters_is_refused(module: type[nn.Module], said: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=said) as refused:
        export(module(), tmp_path)
    assert "othing was published" in str(refused.value)
    assert not (tmp_path / "words").exists()
    assert "pad_to_multiple_of=None" in str(refused.value)
    export(module(), tmp_path, unit=None)  # which makes no difference then


@pytest.mark.parametrize("module", [SeesPadding, AnswersEachWord, TakesOneLength])
def test_lengths_that_no_row_has_are_proved_on_beginnings_of_texts(module: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(GateError, match="Pad all rows to one length"):
        export(module(), tmp_path, rows=LONG)
    [padding] = [each for each in export(Words(), tmp_path, rows=LONG).manifest.verdicts if each.gate == "padding"]
    assert "rows padded to 16, 48 instead of 48" in padding.message
    assert "times are measured with rows of 48" in padding.message


class LooksAround(Words):
    """Mixes each word with the next one, be it padding, and sees zeros behind the last place, as a convolution does."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        there = attention_mask.unsqueeze(-1).to(torch.float32)
        words = self.words(input_ids)
        both = words + nn.functional.pad(words, (0, 0, 0, 1))[:, 1:]
        return self.answer((both * there).sum(1) / there.sum(1))


def test_a_text_that_just_fills_its_row_shows_what_looks_beyond_its_end(tmp_path: Path) -> None:
    steps = processing()
    texts = [text for text in SENTENCES if not steps.prepare(text)["attention_mask"].all()]
    with pytest.raises(GateError, match=r"padding: .*length (16|32)"):
        export(LooksAround(), tmp_path, rows=texts)


class Places(Words):
    """Adds more to words the later they come."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.randn(LONGEST, 16) * torch.linspace(0.2, 3, LONGEST)[:, None])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        there = attention_mask.unsqueeze(-1).to(torch.float32)
        words = torch.relu(self.wide(self.words(input_ids) + self.places[: input_ids.shape[1]]))
        found: torch.Tensor = self.out((words * there).sum(1) / there.sum(1))
        return found


def test_scales_that_do_not_hold_for_long_texts_are_seen_though_all_rows_are_short(tmp_path: Path) -> None:
    steps = processing()
    texts = [text for text in SENTENCES if len(steps.prepare(text)["input_ids"]) == UNIT]
    with pytest.raises(GateError, match=r"1 of \d+ gates; .*\n  padding: .*\(length 48\)"):
        export(Places(), tmp_path, rows=texts, precision="int8", min_speedup=1e-6, max_metric_drop=0.1)


class TakesLongOnesApart(Words):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words = self.words(input_ids) * attention_mask.unsqueeze(-1)
        both = words[:, :32].sum(1) + words[:, 32:].sum(1) if input_ids.shape[1] > 32 else words.sum(1)
        return self.answer(both / attention_mask.sum(1, keepdim=True))


def test_a_program_that_was_made_of_short_rows_alone_says_so(tmp_path: Path) -> None:
    steps = processing()
    texts = [text for text in SENTENCES if len(steps.prepare(text)["input_ids"]) == UNIT]
    with pytest.raises(GateError, match="TakesLongOnesApart that was made cannot take the rows that the trained one"):
        sl.export(
            TakesLongOnesApart(), {**SMALL, "passes": (Pt2eInt8(),), "min_speedup": 1e-6}, rows=SENTENCES,
            calibration=texts, processing=steps, to=str(tmp_path / "words"),
        )  # fmt: skip


def test_where_texts_are_no_raw_rows_some_must_be_shorter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shipline.export.lengths._beginnings", lambda *_: ())
    with pytest.raises(GateError, match=r"All 60 rows that were looked at are as long as the longest, 48: .* shorter"):
        export(Words(), tmp_path, rows=LONG)


def test_texts_of_more_characters_than_are_looked_at_have_beginnings(tmp_path: Path) -> None:
    tokenize = Tokenize(tokenizer=TOKENIZER, max_length=LONGEST, pad_to_multiple_of=UNIT, max_characters=250)
    export = sl.export(Words(), SMALL, rows=SENTENCES, processing=Processing([tokenize]), to=str(tmp_path / "words"))
    assert export.manifest.serving.longest == LONGEST


def test_inputs_that_are_not_as_long_as_the_rows() -> None:
    number = TensorSpec(name="number", dtype="float32", shape=(-1, 1))
    signature = Signature(inputs=(number,), outputs=(number.model_copy(update={"name": "output"}),))
    with pytest.raises(SignatureError, match=r"rows of up to 48, and forward takes 'number' of shape \[-1, 1\]"):
        freed(signature, Source(build=Words, processing=processing()))


def recorded(module: nn.Module, texts: list[str], limit: int) -> Rows:
    """The rows of these texts, in full, all in one batch."""
    rows = [processing().whole.prepare(text) for text in texts]
    with recording(module, limit) as found, torch.no_grad():
        module(**{name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]})
    return found


def test_few_long_rows_are_in_memory_at_once_and_those_that_are_known_are_not_asked_again() -> None:
    module, batches = Words(), list[torch.Tensor]()
    known = recorded(module, SENTENCES[:40], 30)
    module.register_forward_pre_hook(lambda _, args, kwargs: batches.append(kwargs["input_ids"]), with_kwargs=True)
    ids, mask = (TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
    output = TensorSpec(name="output", dtype="float32", shape=(-1, 4))
    source = Source(build=Words, processing=processing(), raw_rows=lambda: SENTENCES[::-1])
    found = shorter(module, source, Signature(inputs=(ids, mask), outputs=(output,)), known)
    assert max(map(len, found)) > max(map(len, batches)) == BATCH
    asked = Counter(row for batch in batches for row in map(tuple, batch.tolist()))
    assert sum(asked[tuple(row)] for row in known.inputs["input_ids"].tolist()) <= 1  # one of each length is
    for each in found:
        [right] = _answers(Words(), each.inputs)
        np.testing.assert_allclose(each.outputs[0], right, atol=1e-5)


def test_the_usual_length_is_the_median() -> None:
    found = [Shorter({"x": torch.zeros(count, length).numpy()}, [torch.zeros(count).numpy()]) for length, count in
             [(8, 3), (16, 4), (24, 2)]]  # fmt: skip
    assert usual(found) is found[1]
    assert usual(found[:2]) is found[1]
    assert usual([found[0]]) is found[0]
    assert usual([Shorter(found[0].inputs, found[0].outputs, cut=3), found[2]]) is found[2]


def test_a_data_module_that_pads_all_rows_alike(tmp_path: Path) -> None:
    """Training needs rows of one shape; the processing that it makes them with is the server's, in full."""
    from torch.utils.data import DataLoader

    steps = processing()

    class Data(sl.DataModule):
        processing = steps

        def val_dataloader(self) -> Any:
            return DataLoader([steps.whole.prepare(text) for text in SENTENCES[:64]], 16)

        def raw_rows(self) -> Any:
            return SENTENCES[:64]

    class Module(sl.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Words()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.net(input_ids, attention_mask)
            return found

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("size", self(**batch).abs().mean())

    artifact = sl.export(Module(), {**SMALL, "metric": "size", "mode": "max"}, data=Data(), to=str(tmp_path / "m"))
    verdicts = {verdict.gate: verdict for verdict in artifact.manifest.verdicts}
    assert verdicts["preprocessing"].passed
    assert verdicts["padding"].passed


def test_huggingface_models_take_short_texts_as_they_are() -> None:
    source = sl.huggingface(MINILM)
    assert source.processing is not None
    assert source.processing.longest == 256
    assert source.processing.prepare("Iris")["input_ids"].shape == (16,)
    source = sl.huggingface(MINILM, pad_to_multiple_of=None)
    assert source.processing is not None
    assert source.processing.longest is None
    with pytest.raises(ShiplineError, match="pad_to_multiple_of"):
        sl.huggingface(MINILM, pad_to_multiple_of=0)
