"""Where a checkpoint or an artifact comes from: code, configuration, data, seed, machine and package versions."""

from __future__ import annotations

import math
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from shipline.repository import Repository, look
from shipline.store import redact

_SECRET_KEY = re.compile(r"passw|secret|credential|(api|access|auth|private|secret)_?(key|token)", re.IGNORECASE)
PACKAGES = (
    "shipline", "torch", "numpy", "ray", "onnx", "onnxruntime", "onnxscript", "openvino", "safetensors", "pillow",
    "tokenizers", "transformers",
)  # fmt: skip


class Lineage(BaseModel):
    """What is needed to say which code, data and settings made something."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_commit: str | None = None
    git_dirty: bool | None = None
    config: dict[str, Any] = {}
    data_fingerprint: str | None = None
    seed: int | None = None
    world_size: int = 1
    python: str = platform.python_version()
    platform: str = platform.machine()
    packages: dict[str, str] = {}
    checkpoint: str | None = None  # URL of the checkpoint that an artifact was made from
    checkpoint_digest: str | None = None
    weights_digest: str | None = None  # of the module that it was made from, where there was no checkpoint


def describe_code(directory: Path | None = None) -> dict[str, Any]:
    """Return the git commit of the code, whether files differ from it, and the versions of the packages that matter."""
    return described(look(directory))


def described(repository: Repository | None) -> dict[str, Any]:
    """Return what a lineage says of code from this repository, or from none, on this machine."""
    return {
        "git_commit": None if repository is None else repository.commit,
        "git_dirty": None if repository is None else repository.dirty,
        "packages": package_versions(),
    }


def publishable(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as it may travel: without credentials, and without where things lie on this machine."""
    kept: dict[str, Any] = without_secrets({key: value for key, value in config.items() if key != "import_path"})
    return {key: _without_directories(value) for key, value in kept.items()}


def _without_directories(value: Any) -> Any:
    """The value with the last part of an absolute path in place of each."""
    if isinstance(value, dict):
        return {key: _without_directories(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_directories(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~", "file://")):
        return f".../{value.rstrip('/').rpartition('/')[2]}"
    return value


def without_secrets(config: Any) -> Any:
    """Return the configuration as JSON data; credentials, in URLs or named so by their key, become `***`."""
    if isinstance(config, dict):
        return {
            str(key): "***" if _is_secret(str(key), value) else without_secrets(value) for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [without_secrets(value) for value in config]
    if config is None or isinstance(config, bool | int) or (isinstance(config, float) and math.isfinite(config)):
        return config
    return redact(str(config))


def _is_secret(key: str, value: Any) -> bool:
    return isinstance(value, str) and _SECRET_KEY.search(key) is not None


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what is trained and answered, of those that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
