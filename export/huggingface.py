"""A language model from a directory as Hugging Face's libraries write it: an encoder of sentences, or a classifier.

Nothing is downloaded, and nothing in the directory is run: architectures are those of `transformers`, weights are
safetensors.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.export.embedder import Embedder, embedder
from shipline.export.pretrained import CONFIG, load, read_json
from shipline.export.source import Source
from shipline.processing import Processing, Sigmoid, Softmax, Step, step

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
#: Tokens of the longest row, where nobody says.
LONGEST = 512
#: A row has a multiple of so many tokens: few lengths, since only rows of one length make a batch.
PADDED = 16


def is_pretrained(directory: str | PathLike[str]) -> bool:
    """Whether it is a directory on this machine with a model's configuration."""
    return (Path(directory) / CONFIG).is_file()


def huggingface(
    directory: str | PathLike[str], *, max_length: int | None = None, pad_to_multiple_of: int | None = PADDED
) -> Source:
    """Return the model in a directory as a source: its module, with the processing of texts.

    An encoder with sentence-transformers' `modules.json` answers an embedding, pooled and normalised as that says; a
    classifier (`...ForSequenceClassification`) answers labels, of which several may be right at once.

    Args:
        directory: has config.json, tokenizer.json and model.safetensors.
        max_length: tokens of the longest row, longer texts are cut; default: the most that the model was made for.
        pad_to_multiple_of: a text is padded to the next multiple of so many tokens, and costs the time of those; None:
            each to `max_length`.

    Raises:
        ConfigError: the directory lacks a file, or the model is of another kind.
        IntegrityError: a file is damaged, or weights are missing.
    """
    root = Path(directory)
    config = read_json(root / CONFIG)
    for names in ((TOKENIZER,), WEIGHTS):
        if not any((root / name).is_file() for name in names):
            raise ConfigError(
                f"{root.name} has no {names[0]}. Weights are read from safetensors alone, texts are cut by "
                "tokenizer.json alone: `save_pretrained` of transformers writes both."
            )
    said = read_json(path) if (path := root / TOKENIZER_CONFIG).is_file() else {}
    side = said.setdefault("padding_side", "right")
    module, after = _classifier(root, config) if _classifies(config) else (embedder(root, config, side), [])
    tokenize = _tokenize(root, module, config, said, max_length, pad_to_multiple_of)
    source = Source.of_module(module, processing=Processing(before=[tokenize], after=after))
    kept = {name: config.get(name) for name in ("architectures", "model_type")}
    return replace(source, lineage=source.lineage.model_copy(update={"config": source.lineage.config | kept}))


class Classifier(nn.Module):
    """Tokens -> the logits of the classes."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        others = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return {"logits": self.classifier(input_ids=input_ids, attention_mask=attention_mask, **others).logits}


def _classifies(config: dict[str, Any]) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _classifier(root: Path, config: dict[str, Any]) -> tuple[nn.Module, list[Step]]:
    model = load("AutoModelForSequenceClassification", root)
    names = [str(name) for _, name in sorted(model.config.id2label.items())]
    several = config.get("problem_type") == "multi_label_classification"
    if len(names) == 1 and not several:  # a number, or how well two texts fit
        return Classifier(model), []
    return Classifier(model), [Sigmoid() if several else Softmax(), _step(root, "labels", names=names)]


def _inner(module: nn.Module) -> nn.Module:
    """The model of transformers."""
    inner = module.encoder if isinstance(module, Embedder) else module.classifier
    assert isinstance(inner, nn.Module)
    return inner


def _inputs(inner: nn.Module, config: dict[str, Any]) -> tuple[str, ...]:
    takes = inspect.signature(inner.forward).parameters
    types = "token_type_ids" in takes and int(config.get("type_vocab_size") or 0) > 1
    return ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))


def _places(inner: nn.Module) -> int:
    """For how many tokens it has places; in RoBERTa and its kin, the first of the table are not for tokens."""
    for name, part in inner.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    count = getattr(inner.config, "max_position_embeddings", None)
    return count if isinstance(count, int) and count > 0 else LONGEST


def _tokenize(
    root: Path,
    module: nn.Module,
    config: dict[str, Any],
    said: dict[str, Any],
    max_length: int | None,
    pad_to_multiple_of: int | None,
) -> Step:
    inner, of_sentences = _inner(module), _of_sentences(root)
    lengths = [of_sentences.get("max_seq_length"), said.get("model_max_length")]
    known = [int(length) for length in lengths if isinstance(length, int | float) and length > 0]
    most = min([*known, _places(inner)])
    if max_length is not None and not (isinstance(max_length, int) and 1 <= max_length <= most):
        raise ConfigError(f"max_length is {max_length!r}; {root.name} takes 1 to {most} tokens.")
    return _step(
        root,
        "tokenize",
        tokenizer=_tokenizer(root, lowers=bool(of_sentences.get("do_lower_case"))),
        max_length=max_length or min(most, LONGEST),
        inputs=_inputs(inner, config),
        pad_token=_pad_token(root, config, said),
        padding_side=said["padding_side"],
        pad_to_multiple_of=pad_to_multiple_of,
    )


def _of_sentences(root: Path) -> dict[str, Any]:
    """What sentence-transformers says of texts, in a file that it once called after the model."""
    found: dict[str, Any] = next((read_json(path) for path in sorted(root.glob("sentence_*_config.json"))), {})
    return found


def _tokenizer(root: Path, *, lowers: bool) -> str:
    text = (root / TOKENIZER).read_text(encoding="utf-8")
    if not lowers:
        return text
    content = read_json(root / TOKENIZER)
    normalizers = [{"type": "Lowercase"}, *([content["normalizer"]] if content.get("normalizer") else [])]
    return json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": normalizers}}, ensure_ascii=False)


def _pad_token(root: Path, config: dict[str, Any], said: dict[str, Any]) -> str:
    """What the tokenizer's configuration says, or else the token that has the number in the model's."""
    special = {each.get("id"): each.get("content") for each in read_json(root / TOKENIZER).get("added_tokens") or ()}
    pad = said.get("pad_token") or special.get(config.get("pad_token_id"))
    if pad is None:
        raise ConfigError(
            f"{root.name} names no token to pad with, neither pad_token in tokenizer_config.json nor pad_token_id in "
            f"{CONFIG}. Set both, and save tokenizer and model again."
        )
    return str(pad["content"] if isinstance(pad, dict) else pad)


def _step(root: Path, name: str, **parameters: Any) -> Step:
    """Return the step; ConfigError says of which directory, and why not."""
    try:
        return step(name, **parameters)
    except ConfigError as error:
        raise ConfigError(f"No processing can be made of {root.name}: {error}") from error
