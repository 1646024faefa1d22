"""An encoder of texts, as sentence-transformers writes it: modules.json says what becomes of the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from shipline.errors import ConfigError, IntegrityError
from shipline.export.pooling import MODES, Mode, Normalize, Pooling
from shipline.export.pretrained import CONFIG, below, load, read_json

DENSE_WEIGHTS = "model.safetensors"
#: How the pooling was written before it had one name, in the order in which several modes follow each other.
_MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)}
_INSTEAD = "Wrap it in a module, and export that with rows and processing."
#: Those of which sentence-transformers takes the encoder alone.
_ENCODERS = ("t5", "mt5", "umt5", "longt5")


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


def embedder(root: Path, config: dict[str, Any], padding_side: Literal["left", "right"]) -> Embedder:
    """Return the module of a directory.

    Raises:
        ConfigError: it is made of what is not known here.
        IntegrityError: a file is damaged, or weights are missing.
    """
    path = root / "modules.json"
    if not path.is_file():
        raise ConfigError(
            f"{root.name} is a {', '.join(config.get('architectures') or ['model'])} without sentence-transformers' "
            "modules.json, which would say what to make of its tokens. Wrap it in a module that does, and export that "
            "with rows and processing."
        )
    parts = [each for each in read_json(path, list) if isinstance(each, dict)]
    kinds = [(str(each.get("type")).rpartition(".")[2], str(each.get("path", ""))) for each in parts]
    names = [name for name, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= {"Dense", "Normalize"} or kinds[0][1]:
        raise ConfigError(
            f"{root.name} is made of {', '.join(names) or 'nothing'}; known is a Transformer, a Pooling, then Dense "
            f"or Normalize. {_INSTEAD}"
        )
    prompts = root / "config_sentence_transformers.json"
    if prompts.is_file() and read_json(prompts).get("default_prompt_name"):
        raise ConfigError(
            f"{root.name} puts a prompt before each text, for which there is no step. Wrap it in a module, and export "
            "that with rows and processing that have it."
        )
    pooling = Pooling(*_modes(root, read_json(below(root, kinds[1][1]) / CONFIG)), padding_side=padding_side)
    then = [Normalize() if name == "Normalize" else _dense(root, below(root, path)) for name, path in kinds[2:]]
    return Embedder(_encoder(root, config), pooling, *then)


def _encoder(root: Path, config: dict[str, Any]) -> Any:
    return load("AutoModelForTextEncoding" if config.get("model_type") in _ENCODERS else "AutoModel", root)


def _modes(root: Path, config: dict[str, Any]) -> list[Mode]:
    """What it pools by: one name, several, or the form of old, with a truth value for each."""
    said = config.get("pooling_mode", [mode for name, mode in _MODES.items() if config.get(name) is True])
    modes = [said] if isinstance(said, str) else said
    if not isinstance(modes, list) or not modes or any(mode not in MODES for mode in modes):
        raise ConfigError(f"{root.name} pools by {modes or 'nothing'}; known is {', '.join(MODES)}. {_INSTEAD}")
    return modes


def _dense(root: Path, path: Path) -> nn.Module:
    """Return a linear layer with what comes after it."""
    config, where = read_json(path / CONFIG), f"{root.name}/{path.name}"
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS or config.get("use_residual") or not (path / DENSE_WEIGHTS).is_file():
        raise ConfigError(
            f"{where} is a Dense with {name}; known is one of {', '.join(_ACTIVATIONS)}, without use_residual, with "
            f"its weights in {DENSE_WEIGHTS}. {_INSTEAD}"
        )
    try:
        weights = safetensors.torch.load_file(path / DENSE_WEIGHTS)
        sizes = config["in_features"], config["out_features"]
        linear = nn.Linear(*sizes, bias=config.get("bias", True), device="meta")  # what the file says takes no memory
        found = {key.removeprefix("linear."): value.float() for key, value in weights.items()}
        linear.load_state_dict(found, assign=True)
    except Exception as error:  # of safetensors, of torch, of what the file says
        raise IntegrityError(f"{where} cannot be loaded: {type(error).__name__}: {str(error)[:500]}") from error
    return nn.Sequential(linear, _ACTIVATIONS[name]())
