"""Language models from directories of Hugging Face's libraries: what they answer, and what is refused."""

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
from texts import ABOUT, MINILM, SENTENCES, write_classifier
from transformers import (
    AutoModel,
    AutoTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

import shipline as sl
from shipline.artifact import open_model
from shipline.commands import main
from shipline.errors import ConfigError, IntegrityError, ShiplineError
from shipline.export import on_rows, source_of
from shipline.export.huggingface import is_pretrained

pytestmark = pytest.mark.usefixtures("no_bars")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "subjects")


def answers(source: Any, texts: list[str]) -> list[Any]:
    """What the module and its processing make of texts, one by one."""
    module, found = source.build(), []
    for text in texts:
        inputs = {name: torch.from_numpy(row[None]) for name, row in source.processing.prepare(text).items()}
        with torch.no_grad():
            (output,) = module(**inputs).values()
        found.append(source.processing.answer(output[0].numpy()))
    return found


def test_the_embeddings_are_those_of_the_model() -> None:
    """Mean over the tokens that are there, at length 1: by hand, without any padding."""
    assert is_pretrained(MINILM)
    source = sl.huggingface(MINILM, max_length=48)
    model, tokenizer = AutoModel.from_pretrained(MINILM).eval(), AutoTokenizer.from_pretrained(MINILM)
    for text, found in zip(SENTENCES[:12], answers(source, SENTENCES[:12]), strict=True):
        with torch.no_grad():
            vectors = model(**tokenizer(text, truncation=True, max_length=48, return_tensors="pt")).last_hidden_state
        wanted = torch.nn.functional.normalize(vectors[0].mean(0), dim=0)
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_embeddings_of_like_sentences_are_near() -> None:
    one, like, other = map(
        np.array,
        answers(
            sl.huggingface(MINILM, max_length=24),
            ["How old is the patient?", "What is the age of the patient?", "The wine was pressed in Italy."],
        ),
    )
    assert one @ like > 0.9
    assert one @ other < 0.2


def test_the_lengths_that_a_model_was_made_for() -> None:
    assert sl.huggingface(MINILM).processing.before[0].max_length == 256  # type: ignore[union-attr,attr-defined]
    with pytest.raises(ConfigError, match="max_length is 257; model takes 1 to 256 tokens"):
        sl.huggingface(MINILM, max_length=257)
    with pytest.raises(ConfigError, match="max_length is '64'; model takes 1 to 256 tokens"):
        sl.huggingface(MINILM, max_length="64")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"of model: .* max_length 2 leaves no room beside 2 special tokens"):
        sl.huggingface(MINILM, max_length=2)


def test_the_first_places_of_roberta_are_not_for_tokens(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=42, pad_token_id=0, num_labels=2,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    shutil.copy(MINILM / "tokenizer.json", tmp_path)
    assert sl.huggingface(tmp_path).processing.before[0].max_length == 41  # type: ignore[union-attr,attr-defined]


def test_the_models_own_number_says_what_pads(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, root := tmp_path / "subjects")
    (root / "tokenizer_config.json").unlink()  # as of xlm-roberta-base, which says nothing of padding in it
    edit("config.json", pad_token_id=101)(root)
    assert sl.huggingface(root).processing.before[0].pad_token == "[CLS]"  # type: ignore[union-attr,attr-defined]


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_a_classifier_answers_what_the_pipeline_of_transformers_does(
    kind: str, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the pipeline would set for good
    root = shutil.copytree(classifier, tmp_path / "subjects")
    edit("config.json", problem_type=kind)(root)
    wanted = pipeline("text-classification", str(root), top_k=None, device="cpu")(SENTENCES[:8])
    for one, other in zip(answers(source_of(root), SENTENCES[:8]), wanted, strict=True):
        assert [one["label"], *one["scores"]] == [other[0]["label"], *(each["label"] for each in other)]
        np.testing.assert_allclose(list(one["scores"].values()), [each["score"] for each in other], atol=1e-5)
        assert (sum(one["scores"].values()) == pytest.approx(1)) is (kind == "single_label_classification")


def test_a_classifier_is_exported_with_its_accuracy(classifier: Path, tmp_path: Path) -> None:
    def accuracy(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return (outputs["logits"].argmax(1) == targets).float().mean()

    source = sl.huggingface(classifier, max_length=24)
    artifact = sl.export(
        source, {"proof_rows": 64, "max_batch_size": 8}, rows=(SENTENCES, ABOUT), metric=accuracy, mode="max",
        to=str(tmp_path / "m"),
    )  # fmt: skip
    manifest = artifact.manifest
    assert manifest.metrics["accuracy"] > 0.8
    assert [spec.name for spec in manifest.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [spec.name for spec in manifest.signature.outputs] == ["logits"]
    assert manifest.lineage.config["architectures"] == ["BertForSequenceClassification"]
    assert {"transformers", "tokenizers"} <= set(manifest.lineage.packages)
    assert str(classifier).encode() not in b"".join(artifact.read(name) for name in manifest.files)


def test_the_command(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts from lines, or from JSON; what cannot be read is said before anything is measured."""
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n\n".join(SENTENCES))
    Path("texts.jsonl").write_text("\n".join(map(json.dumps, SENTENCES)))
    options = ["--max_length", "48", "--to", "models/subjects"]
    for rows in ("texts.txt", "texts.jsonl"):
        assert main(["export", str(classifier), "--rows", rows, *options]) == 0
    first, second = (open_model("models/subjects").open(version) for version in ("1", "2"))
    assert first.manifest.files["golden.json"].sha256 == second.manifest.files["golden.json"].sha256
    assert first.manifest.serving.longest == 48
    capsys.readouterr()
    assert main(["export", str(classifier), "--rows", "none.txt", *options]) == 2
    assert "Cannot read the texts in 'none.txt'" in capsys.readouterr().err
    Path("other.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    assert main(["export", str(classifier), "--rows", "other.jsonl", *options]) == 2
    assert "Raw row 0 cannot be prepared: Expected a text; got dict." in capsys.readouterr().err


def test_the_outputs_of_transformers_own_models_have_names(classifier: Path) -> None:
    from shipline.export.rows import recording
    from shipline.export.signature import signature_of

    model = AutoModel.from_pretrained(classifier).eval()
    ids = torch.arange(40).reshape(4, 10)
    with recording(model, 4) as rows, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    names = [spec.name for spec in signature_of(model, rows).outputs]
    assert names == ["last_hidden_state", "pooler_output"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change what a JSON file of the directory says."""

    def change(root: Path) -> None:
        content = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(content | changes))

    return change


def modules(*kinds: tuple[str, str]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        found = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
        (root / "modules.json").write_text(json.dumps(found))

    return change


def pickled(root: Path) -> None:
    """Weights as a pickle alone, which leaves a trace where it is read."""

    class Evil:
        def __reduce__(self) -> Any:
            return Path.mkdir, (root / "planted",)

    (root / "model.safetensors").unlink()
    torch.save({"evil": Evil()}, root / "pytorch_model.bin")


def remote_code(root: Path) -> None:
    (root / "evil.py").write_text(
        f"import pathlib; pathlib.Path({str(root / 'planted')!r}).mkdir()\nclass Evil: pass\n"
    )
    edit("config.json", auto_map={"AutoModel": "evil.Evil"}, model_type="evil")(root)


def prompted(root: Path) -> None:
    (root / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')


def writes(name: str, text: str) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_text(text)


def fewer_weights(root: Path) -> None:
    weights = safetensors.torch.load_file(root / "model.safetensors")
    weights.pop("bert.encoder.layer.0.output.dense.weight")
    safetensors.torch.save_file(weights, root / "model.safetensors", metadata={"format": "pt"})


def cut(root: Path) -> None:
    data = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(data[: len(data) // 2])


EMBEDS = [edit("config.json", architectures=["BertModel"]), modules(("Transformer", ""), ("Pooling", "1_Pooling"))]


def pools(**modes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "1_Pooling").mkdir()
        (root / "1_Pooling" / "config.json").write_text(json.dumps(modes))

    return change


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ([lambda root: (root / "tokenizer.json").unlink()], ConfigError, r"subjects has no tokenizer\.json"),
        ([pickled], ConfigError, r"has no model\.safetensors\. Weights are read from safetensors alone"),
        ([remote_code, *EMBEDS[1:], pools(pooling_mode_cls_token=True)], IntegrityError, "cannot be loaded"),
        ([fewer_weights], IntegrityError, "lacks 1 of the model's weights, or has others: bert.encoder"),
        ([cut], IntegrityError, "subjects cannot be loaded"),
        ([writes("config.json", "{")], IntegrityError, r"/config\.json cannot be read"),
        ([writes("config.json", "[]")], IntegrityError, r"/config\.json holds a list; a dict is"),
        ([writes("tokenizer.json", "7")], IntegrityError, r"tokenizer\.json holds a int; a dict"),
        ([EMBEDS[0], writes("modules.json", "{}")], IntegrityError, r"s\.json holds a dict; a l"),
        ([EMBEDS[0], writes("modules.json", "[7]")], ConfigError, "is made of nothing; known is"),
        ([edit("config.json", architectures=["BertForMaskedLM"])], ConfigError, "is a BertForMaskedLM without"),
        ([EMBEDS[0], modules(("Transformer", ""), ("CNN", "2_CNN"))], ConfigError, "is made of Transformer, CNN;"),
        ([EMBEDS[0], modules(("Transformer", ""), ("Pooling", "../.."))], IntegrityError, "which is outside of it"),
        ([*EMBEDS, pools(pooling_mode_mean_tokens=False)], ConfigError, "pools by nothing; known is mean, cls, max"),
        ([*EMBEDS, pools(pooling_mode="best")], ConfigError, r"pools by \['best'\]; known is mean, cls, max"),
        ([*EMBEDS, pools(pooling_mode=7)], ConfigError, "pools by 7; known is mean"),
        ([*EMBEDS, prompted], ConfigError, "puts a prompt before each text"),
        ([edit("tokenizer_config.json", pad_token=None), edit("config.json", pad_token_id=None)], ConfigError,
         "subjects names no token to pad with, neither pad_token in tokenizer_config"),
        ([edit("tokenizer_config.json", pad_token="<pad>")], ConfigError, "of subjects: .* '<pad>' is not in the tok"),
        ([edit("tokenizer_config.json", padding_side="top")], ConfigError, "padding_side: Input should be 'left' or"),
        ([edit("config.json", id2label=dict.fromkeys(range(4), "wine"))], ConfigError, "names: .* must occur once"),
    ],
)  # fmt: skip
def test_directories_that_are_refused(
    classifier: Path, tmp_path: Path, changes: list[Callable[[Path], Any]], error: type[ShiplineError], said: str
) -> None:
    root = tmp_path / "subjects"
    shutil.copytree(classifier, root)
    for change in changes:
        change(root)
    with pytest.raises(error, match=said):
        sl.export(str(root), rows=SENTENCES, to=str(tmp_path / "m"))
    assert not (root / "planted").exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a text", "rows are raw inputs as clients send them, in a list"),
        ([], "rows has 0 rows"),
        ([*SENTENCES[:3], 7], "Raw row 3 cannot be prepared: Expected a text; got int"),
        ((SENTENCES, ABOUT[:-1]), f"rows has {len(SENTENCES)} raw inputs and {len(SENTENCES) - 1} targets"),
    ],
)
def test_rows_that_are_no_texts(classifier: Path, rows: Any, said: str) -> None:
    def evaluated() -> Any:
        source = on_rows(sl.huggingface(classifier, max_length=8), rows, metric=lambda *_: 0.0)
        return source.evaluate(source.build())

    with pytest.raises(ConfigError, match=said):
        evaluated()
