"""A language model from a directory as Hugging Face's libraries write it: an encoder of sentences, or a classifier.

Nothing is downloaded, and nothing in the directory is run: architectures are those of `transformers`, weights are
safetensors.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shipline import plugins
from shipline.errors import ConfigError, IntegrityError
from shipline.export.pooling import Mode, Normalize, Pooling
from shipline.export.source import Source
from shipline.processing import Processing, Softmax, Step, step

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
#: Tokens of the longest row, where nobody says.
LONGEST = 512
#: A row has a multiple of so many tokens: few lengths, since only rows of one length make a batch.
PADDED = 16

_POOLING: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def is_pretrained(directory: str | PathLike[str]) -> bool:
    """Whether it is a directory on this machine with a model's configuration."""
    return (Path(directory) / CONFIG).is_file()


def huggingface(
    directory: str | PathLike[str], *, max_length: int | None = None, pad_to_multiple_of: int | None = PADDED
) -> Source:
    """Return the model in a directory as a source: its module, with the processing of texts.

    An encoder with sentence-transformers' `modules.json` answers an embedding, pooled and normalised as that says; a
    classifier (`...ForSequenceClassification`) answers labels.

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
    config = _json(root / CONFIG)
    for names in ((TOKENIZER,), WEIGHTS):
        if not any((root / name).is_file() for name in names):
            raise ConfigError(
                f"{root.name} has no {names[0]}. Weights are read from safetensors alone, texts are cut by "
                "tokenizer.json alone: `save_pretrained` of transformers writes both."
            )
    module, after = _classifier(root, config) if _classifies(config) else (_encoder(root, config), [])
    tokenize = _tokenize(root, module, config, max_length, pad_to_multiple_of)
    source = Source.of_module(module, processing=Processing(before=[tokenize], after=after))
    kept = {name: config.get(name) for name in ("architectures", "model_type")}
    return replace(source, lineage=source.lineage.model_copy(update={"config": source.lineage.config | kept}))


class Embedder(nn.Module):
    """Tokens -> the embedding of the text."""

    def __init__(self, encoder: nn.Module, pooling: Pooling, *then: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pooling, self.then = encoder, pooling, nn.Sequential(*then)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        others = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **others)
        return {"embedding": self.then(self.pooling(found.last_hidden_state, attention_mask))}


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
    if config.get("problem_type") == "multi_label_classification":
        raise ConfigError(
            f"{root.name} gives several labels at once, for which there is no step. Wrap the model in a module, and "
            "export that with rows and processing."
        )
    model = _load("AutoModelForSequenceClassification", root)
    names = [str(name) for _, name in sorted(model.config.id2label.items())]
    return Classifier(model), [Softmax(), _step(root, "labels", names=names)] if len(names) > 1 else []


def _encoder(root: Path, config: dict[str, Any]) -> nn.Module:
    path = root / "modules.json"
    if not path.is_file():
        raise ConfigError(
            f"{root.name} is a {', '.join(config.get('architectures') or ['model'])} without sentence-transformers' "
            "modules.json, which would say what to make of its tokens. Wrap it in a module that does, and export that "
            "with rows and processing."
        )
    parts = [each for each in _json(path, list) if isinstance(each, dict)]
    kinds = [(str(each.get("type")).rpartition(".")[2], str(each.get("path", ""))) for each in parts]
    names = [name for name, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= {"Normalize"} or kinds[0][1]:
        raise ConfigError(
            f"{root.name} is made of {', '.join(names) or 'nothing'}; known is a Transformer, a Pooling, and a "
            "Normalize. Wrap it in a module, and export that with rows and processing."
        )
    prompts = root / "config_sentence_transformers.json"
    if prompts.is_file() and _json(prompts).get("default_prompt_name"):
        raise ConfigError(
            f"{root.name} puts a prompt before each text, for which there is no step. Wrap it in a module, and export "
            "that with rows and processing that have it."
        )
    pooling = _json(_below(root, kinds[1][1]) / CONFIG)
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise ConfigError(
            f"{root.name} pools by {', '.join(modes) or 'nothing'}; known is one of {', '.join(_POOLING)}."
        )
    return Embedder(_load("AutoModel", root), Pooling(_POOLING[modes[0]]), *(Normalize() for _ in names[2:]))


def _below(root: Path, part: str) -> Path:
    """A directory in the model's own: what a file says must not lead elsewhere."""
    if not (found := (root / part).resolve()).is_relative_to(root.resolve()):
        raise IntegrityError(f"modules.json of {root.name} names {part!r}, which is outside of it.")
    return found


def _load(kind: str, root: Path) -> Any:
    """Load a model of transformers; IntegrityError where weights are missing, which it would fill with random ones."""
    auto = plugins.load_target(f"transformers:{kind}")
    try:
        with _quiet():
            model, found = auto.from_pretrained(
                root,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # of the library, of safetensors, of the parsers
        raise IntegrityError(f"{root.name} cannot be loaded: {type(error).__name__}: {str(error)[:500]}") from error
    wrong = [str(name) for name in found["missing_keys"] if "pooler." not in str(name)]
    wrong += [str(name) for name in found["mismatched_keys"]]
    if wrong:
        raise IntegrityError(f"{root.name} lacks {len(wrong)} of the model's weights, or has others: {wrong[0]} first.")
    return model


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
    root: Path, module: nn.Module, config: dict[str, Any], max_length: int | None, pad_to_multiple_of: int | None
) -> Step:
    inner, said = _inner(module), _json(path) if (path := root / "tokenizer_config.json").is_file() else {}
    path = root / "sentence_bert_config.json"
    lengths = [_json(path).get("max_seq_length") if path.is_file() else None, said.get("model_max_length")]
    known = [int(length) for length in lengths if isinstance(length, int | float) and length > 0]
    most = min([*known, _places(inner)])
    if max_length is not None and not (isinstance(max_length, int) and 1 <= max_length <= most):
        raise ConfigError(f"max_length is {max_length!r}; {root.name} takes 1 to {most} tokens.")
    return _step(
        root,
        "tokenize",
        tokenizer=(root / TOKENIZER).read_text(encoding="utf-8"),
        max_length=max_length or min(most, LONGEST),
        inputs=_inputs(inner, config),
        pad_token=_pad_token(root, config, said),
        padding_side=said.get("padding_side", "right"),
        pad_to_multiple_of=pad_to_multiple_of,
    )


def _pad_token(root: Path, config: dict[str, Any], said: dict[str, Any]) -> str:
    """What the tokenizer's configuration says, or else the token that has the number in the model's."""
    special = {each.get("id"): each.get("content") for each in _json(root / TOKENIZER).get("added_tokens") or ()}
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


def _json(path: Path, kind: type = dict) -> Any:
    where = f"{path.parent.name}/{path.name}"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{where} cannot be read: {error}.") from error
    if not isinstance(found, kind):
        raise IntegrityError(f"{where} holds a {type(found).__name__}; a {kind.__name__} is expected.")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers neither draw bars nor warn of weights that are missing, which is checked here."""
    logging = plugins.load_target("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
