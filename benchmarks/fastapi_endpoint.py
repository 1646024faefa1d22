"""The endpoint that people write by hand: FastAPI, a pydantic body, onnxruntime. MODEL names the ONNX file."""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()


class Item(BaseModel):
    """One row."""

    x: list[float]


@app.post("/predict")
def predict(item: Item) -> dict[str, list[float]]:
    """Answer one row. A plain def: it runs on the thread pool, and onnxruntime frees the interpreter lock."""
    return {"output": session.run(None, {name: np.array([item.x], np.float32)})[0][0].tolist()}
