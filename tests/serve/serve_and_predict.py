"""Serve the repository given, ask for predictions, and print which of the modules that are not needed were imported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from shipline.client import Client
from shipline.serve.server import BackgroundServer

HEAVY = (
    "torch",
    "ray",
    "onnx",
    "onnxscript",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "shipline.train",
    "shipline.export",
)

if __name__ == "__main__":
    with BackgroundServer(sys.argv[1]) as server, Client(server.url) as client:
        client.infer("linear", {"x": np.zeros((1, 4), np.float32)})
        client.predict("picture", Path(sys.argv[2]))
        client.metadata("linear")
    print(*(name for name in HEAVY if name in sys.modules))
