"""NNCF's quantisation after training, of the OpenVINO model."""

from __future__ import annotations

from pathlib import Path

import nncf
import openvino
from ways import Given, main


def int8(given: Given, to: Path) -> None:
    kind = nncf.ModelType.TRANSFORMER if given.transformer else None
    rows = nncf.Dataset(list(given.each()))
    made = nncf.quantize(openvino.Core().read_model(given.graph), rows, model_type=kind)
    openvino.save_model(made, to.with_suffix(".xml"), compress_to_fp16=False)


if __name__ == "__main__":
    main({"int8": int8})
