"""The endpoint that people write by hand for a language model: FastAPI, transformers, torch. MODEL is its directory."""

import os
from typing import Any

import torch
from fastapi import Body, FastAPI
from transformers import AutoModel, AutoTokenizer

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(os.environ["MODEL"])
model = AutoModel.from_pretrained(os.environ["MODEL"]).eval()
app = FastAPI()


@app.post("/models/{name}/predict")
def predict(name: str, text: str = Body()) -> dict[str, Any]:
    """Answer one text, in no padding. A plain def: it runs on the thread pool, and torch frees the interpreter lock."""
    tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        mean = model(**tokens).last_hidden_state.mean(1)
    return {"output": torch.nn.functional.normalize(mean)[0].tolist()}
