"""Metrics and hyper-parameters in the forms that loggers keep."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from shipline.lineage import without_secrets

MOST_TEXT = 500


def plain_params(params: Any) -> dict[str, Any]:
    """Return arguments, of a dict or a Namespace, as plain data without credentials; what is not plain becomes text."""
    content = vars(params) if isinstance(params, argparse.Namespace) else dict(params)
    kept: dict[str, Any] = without_secrets(content)
    return kept


def flat_params(params: Any, separator: str = "/") -> dict[str, bool | int | float | str]:
    """Return the arguments with one name each, such as "optimizer/lr"; lists and None become text, long text is cut."""
    found: dict[str, bool | int | float | str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                add(f"{name}{separator}{key}" if name else str(key), item)
        else:
            found[name] = value if isinstance(value, bool | int | float) else str(value)[:MOST_TEXT]

    add("", plain_params(params))
    return {name: value for name, value in found.items() if name}


def numbers(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the metrics as Python's numbers, with what their names are to begin with."""
    start = f"{prefix}-" if prefix else ""
    return {f"{start}{name}": _number(value) for name, value in metrics.items()}


def _number(value: Any) -> float:
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
