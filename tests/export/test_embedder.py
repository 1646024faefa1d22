"""Encoders of texts as sentence-transformers writes them: their embeddings are those that it computes itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from texts import MINILM, SENTENCES
from torch import nn
from transformers import AutoModel, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel, T5Model

import shipline as sl
from shipline.errors import ConfigError, IntegrityError, ShiplineError
from shipline.export import pooling

pytestmark = pytest.mark.usefixtures("no_bars")

TEXTS = [*SENTENCES[:4], "  Leading and TRAILING  ", "", "Ünïcödé ß é"]
WIDTH = 384
MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of MiniLM's layers, and its words."""
    directory = tmp_path_factory.mktemp("minilm")
    AutoModel.from_pretrained(MINILM, num_hidden_layers=1).save_pretrained(directory)
    return with_tokenizer(directory)


def with_tokenizer(directory: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINILM / name, directory)
    return directory


def edit(path: Path, **changes: Any) -> None:
    """Change what a JSON file says."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write(directory: Path, root: Path, *after: nn.Module) -> Path:
    """Write the model in `root` with what comes after it, as sentence-transformers does."""
    SentenceTransformer(modules=[Transformer(str(root)), *after]).save(str(directory))
    return directory


def embeddings(source: Any) -> np.ndarray:
    """What the module and its processing make of the texts, one by one."""
    module, found = source.build(), []
    for text in TEXTS:
        inputs = {name: torch.from_numpy(row[None]) for name, row in source.processing.prepare(text).items()}
        with torch.no_grad():
            (output,) = module(**inputs).values()
        found.append(output[0].numpy())
    return np.stack(found)


def check(directory: Path) -> None:
    np.testing.assert_allclose(
        embeddings(sl.huggingface(directory)), SentenceTransformer(str(directory)).encode(TEXTS), atol=1e-5
    )


@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean")])
def test_the_embeddings_are_those_of_sentence_transformers(mode: Any, minilm: Path, tmp_path: Path) -> None:
    check(write(tmp_path / "model", minilm, Pooling(WIDTH, mode)))


def test_layers_after_the_pooling(minilm: Path, tmp_path: Path) -> None:
    """LaBSE has one with Tanh, models of T5 one with neither bias nor activation."""
    torch.manual_seed(0)
    plain = Dense(128, 64, bias=False, activation_function=nn.Identity())
    check(write(tmp_path / "model", minilm, Pooling(WIDTH), Dense(WIDTH, 128), plain, Normalize()))


@pytest.mark.parametrize("modes", [("mean",), ("lasttoken",), ("mean", "cls")])
def test_the_way_in_which_poolings_were_written(modes: tuple[str, ...], minilm: Path, tmp_path: Path) -> None:
    """Of several the order is sentence-transformers' own, whatever that of the file."""
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    directory = write(tmp_path / "model", minilm, Pooling(WIDTH))
    said = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH} | said))
    check(directory)


@pytest.mark.parametrize("kind", [T5Model, T5EncoderModel])
def test_of_t5_the_encoder_alone(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=30522, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0)
    kind(config).save_pretrained(tmp_path / "t5")
    check(write(tmp_path / "model", with_tokenizer(tmp_path / "t5"), Pooling(32), Normalize()))


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "weightedmean"])
def test_padding_on_the_left(mode: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(vocab_size=30522, hidden_size=32, intermediate_size=64, pad_token_id=0, **sizes)
    Qwen3Model(config).save_pretrained(tmp_path / "qwen")
    edit(with_tokenizer(tmp_path / "qwen") / "tokenizer_config.json", padding_side="left")
    check(write(tmp_path / "model", tmp_path / "qwen", Pooling(32, mode)))


def test_texts_in_lower_case(minilm: Path, tmp_path: Path) -> None:
    """Where sentence-transformers says so, and the tokenizer does not."""
    directory = write(tmp_path / "model", minilm, Pooling(WIDTH))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    edit(directory / "tokenizer.json", normalizer=tokenizer["normalizer"] | {"lowercase": False})
    edit(directory / "tokenizer_config.json", do_lower_case=False)
    cased = embeddings(sl.huggingface(directory))
    edit(directory / "sentence_bert_config.json", do_lower_case=True)
    assert np.abs(embeddings(sl.huggingface(directory)) - cased).max() > 0.01
    check(directory)


def test_the_longest_text_by_a_file_of_another_name(minilm: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", minilm, Pooling(WIDTH))
    (directory / "sentence_bert_config.json").unlink()
    (directory / "sentence_roberta_config.json").write_text('{"max_seq_length": 40}')
    assert sl.huggingface(directory).processing.longest == 40


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_with_all_of_it(backend: str, minilm: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", minilm, Pooling(WIDTH, MODES), Dense(WIDTH * len(MODES), 64), Normalize())
    source = sl.huggingface(directory, max_length=48)
    artifact = sl.export(
        source, sl.Recipe(backend=backend, min_speedup=0), rows=SENTENCES[:64], to=str(tmp_path / "models")
    )
    assert [spec.shape for spec in artifact.manifest.signature.outputs] == [(-1, 64)]
    assert "padding" in {verdict.gate for verdict in artifact.manifest.verdicts}


# ---- poolings alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_does_not_see_what_is_masked(mode: Any, side: Any) -> None:
    vectors, there = torch.linspace(-2, -1, 24).reshape(2, 4, 3), [1, 1, 0, 0][:: 1 if side == "right" else -1]
    mask, kept = torch.tensor([there, [1, 1, 1, 1]]), vectors[0][torch.tensor(there) == 1]
    pool = pooling.Pooling(mode, padding_side=side)
    torch.testing.assert_close(pool(vectors, mask)[0], pool(kept[None], torch.ones(1, 2))[0])
    alone = {
        "mean": kept.mean(0), "cls": kept[0], "max": kept.amax(0), "mean_sqrt_len_tokens": kept.sum(0) / 2**0.5,
        "weightedmean": (kept[0] + 2 * kept[1]) / 3, "lasttoken": kept[1],
    }  # fmt: skip
    torch.testing.assert_close(pool(vectors, mask)[0], alone[mode])
    assert pool(vectors, torch.zeros(2, 4)).isfinite().all()  # which nobody should send


def test_unknown_modes_are_named() -> None:
    with pytest.raises(ShiplineError, match=r"Unknown pooling mode 'men'\. Did you mean 'mean'"):
        pooling.Pooling("men")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Pooling needs a mode; choose one of mean, cls"):
        pooling.Pooling()


# ---- what is refused -------------------------------------------------------------------------------------------------


def cut(directory: Path) -> None:
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def another_width(directory: Path) -> None:
    safetensors.torch.save_file(
        {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}, directory / "model.safetensors"
    )


def says(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "config.json", **changes)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (says(use_residual=True), ConfigError, "model/2_Dense is a Dense with Tanh; known is .* without use_residual"),
        (says(activation_function="os.system"), ConfigError, "is a Dense with system; known is one of Identity, Tanh"),
        (
            says(in_features=1 << 28, out_features=1 << 10),
            IntegrityError,
            "model/2_Dense cannot be loaded: RuntimeError",
        ),
        (says(in_features="many"), IntegrityError, "model/2_Dense cannot be loaded: TypeError"),
        (lambda directory: (directory / "model.safetensors").unlink(), ConfigError, "its weights in model.safetensors"),
        (cut, IntegrityError, "model/2_Dense cannot be loaded: SafetensorError"),
        (another_width, IntegrityError, "model/2_Dense cannot be loaded: RuntimeError: .*size mismatch"),
    ],
)
def test_layers_that_are_refused(
    change: Callable[[Path], Any], error: type[ShiplineError], said: str, minilm: Path, tmp_path: Path
) -> None:
    directory = write(tmp_path / "model", minilm, Pooling(WIDTH), Dense(WIDTH, 8))
    change(directory / "2_Dense")
    with pytest.raises(error, match=f"(?s){said}"):
        sl.huggingface(directory)
