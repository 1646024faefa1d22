"""What an export leaves: the files of an artifact, and those of a directory."""

from __future__ import annotations

from pathlib import Path

FILES = {"model.onnx", "golden.json", "golden.safetensors", "report.json", "report.html"}


def tree(url: str) -> set[str]:
    """Every file below a local directory, whatever its name."""
    return {str(path.relative_to(url)) for path in Path(url).rglob("*") if path.is_file()}
