"""Reading a directory of Hugging Face's libraries: nothing is downloaded, and nothing that is in it is run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shipline import plugins
from shipline.errors import IntegrityError
from shipline.export.convert.exporters import quiet

CONFIG = "config.json"


def read_json(path: Path, kind: type = dict) -> Any:
    """Return what a file holds; IntegrityError where that is no JSON, or of another kind."""
    where = f"{path.parent.name}/{path.name}"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{where} cannot be read: {error}.") from error
    if not isinstance(found, kind):
        raise IntegrityError(f"{where} holds a {type(found).__name__}; a {kind.__name__} is expected.")
    return found


def below(root: Path, part: str) -> Path:
    """Return a directory in the model's own; IntegrityError where what a file says leads elsewhere."""
    if not (found := (root / part).resolve()).is_relative_to(root.resolve()):
        raise IntegrityError(f"modules.json of {root.name} names {part!r}, which is outside of it.")
    return found


def load(kind: str, root: Path) -> Any:
    """Load a model of transformers; IntegrityError where weights are missing, which it would fill with random ones."""
    with _quiet():
        auto = plugins.load_target(f"transformers:{kind}")
        try:
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers neither draw bars nor warn of weights that are missing, nor of libraries that it looks for."""
    with quiet("torchao", "torch.utils._pytree"):
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
