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
shapes = {value.name: [1, *value.shape[1:]] for value in session.get_inputs()}
dtypes = {
    value.name: np.int64 if value.type == "tensor(int64)" else np.float32 for value in session.get_inputs()
}  # fmt: skip
app = FastAPI()


class Item(BaseModel):
    """One row: its numbers by the name of the input."""

    inputs: dict[str, list[float]]


@app.post("/predict")
def predict(item: Item) -> dict[str, list[float]]:
    """Answer one row. A plain def: it runs on the thread pool, and onnxruntime frees the interpreter lock."""
    inputs = {name: np.array(row, dtypes[name]).reshape(shapes[name]) for name, row in item.inputs.items()}
    return {"output": session.run(None, inputs)[0][0].tolist()}
