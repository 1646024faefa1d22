"""Optimum's ORTQuantizer with its settings for AVX2, dynamic and static."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnxruntime.quantization import CalibrationMethod
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig
from ways import Given, main


def dynamic(given: Given, to: Path) -> None:
    _quantise(given, to, AutoQuantizationConfig.avx2(is_static=False, per_channel=True), None)


def static(given: Given, to: Path) -> None:
    measured = CalibrationConfig("rows", "", "", 0, method=CalibrationMethod.MinMax)
    quantizer = ORTQuantizer(given.graph)
    rows = [{name: array[0] for name, array in row.items()} for row in given.each()]
    config = AutoQuantizationConfig.avx2(is_static=True, per_channel=True)
    augmented = str(to.parent / "augmented.onnx")
    ranges = quantizer.fit(rows, measured, augmented, config.operators_to_quantize)
    _quantise(given, to, config, ranges)


def _quantise(given: Given, to: Path, config: object, ranges: object) -> None:
    scratch = to.parent / f"{to.name}-files"
    ORTQuantizer(given.graph).quantize(config, scratch, calibration_tensors_range=ranges)
    shutil.move(next(scratch.glob("*.onnx")), to.with_suffix(".onnx"))


if __name__ == "__main__":
    main({"int8-dynamic": dynamic, "int8-static": static})
