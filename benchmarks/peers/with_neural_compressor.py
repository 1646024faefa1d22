"""Intel's Neural Compressor: its part for ONNX, since neural-compressor itself has had none from version 3 on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ways import Given, Reader, main


def dynamic(given: Given, to: Path) -> None:
    from onnx_neural_compressor.quantization import config, quantize

    _quantise(quantize, given, to, config.DynamicQuantConfig())


def static(given: Given, to: Path) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Rows(Reader, data_reader.CalibrationDataReader):
        """The rows, as it asks for them."""

    _quantise(quantize, given, to, config.StaticQuantConfig(calibration_data_reader=Rows(given)))


def _quantise(quantize: Any, given: Given, to: Path, config: Any) -> None:
    quantize(str(given.graph), str(to.with_suffix(".onnx")), config)


if __name__ == "__main__":
    main({"int8-dynamic": dynamic, "int8-static": static})
