"""Olive's passes for static and dynamic quantisation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxDynamicQuantization, OnnxStaticQuantization
from ways import Given, main


def dynamic(given: Given, to: Path) -> None:
    _run(OnnxDynamicQuantization, {"per_channel": True}, given, to)


def static(given: Given, to: Path) -> None:
    @Registry.register_dataloader()
    def shipline_rows(*_: Any, **__: Any) -> Any:
        return [(row, None) for row in given.each()]

    data = DataConfig(
        name="rows",
        type="DataContainer",
        load_dataset_config=DataComponentConfig(type="dummy_dataset", params={"input_shapes": [[1]], "max_samples": 1}),
        dataloader_config=DataComponentConfig(type="shipline_rows"),
    )
    _run(OnnxStaticQuantization, {"per_channel": True, "data_config": data}, given, to)


def _run(kind: Any, config: dict[str, Any], given: Given, to: Path) -> None:
    scratch = to.parent / f"{to.name}-files"
    made = create_pass_from_dict(kind, config, disable_search=True).run(ONNXModelHandler(str(given.graph)), scratch)
    shutil.copy(made.model_path, to.with_suffix(".onnx"))


if __name__ == "__main__":
    main({"int8-dynamic": dynamic, "int8-static": static})
