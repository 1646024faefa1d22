"""A Hugging Face model is a Module in five lines, and its batches are what its own tools make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from training import bare_trainer, new_trainer, rows, same_weights
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput

import shipline as sl

CONFIG = BertConfig(
    vocab_size=17, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=10,
    max_position_embeddings=64,
)  # fmt: skip


class Bert(sl.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = BertForSequenceClassification(CONFIG)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(**batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Measured(Bert):
    """With what validates and predicts."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        out = self.model(**batch)
        self.log_dict({"val_loss": out.loss, "val_acc": (out.logits.argmax(-1) == batch["labels"]).float().mean()})

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(**batch)


def tokens(start: int, end: int) -> list[dict[str, Any]]:
    """Scanned digits as sentences: each of the 64 pixels is a word, one of 17 shades of grey."""
    return [{"input_ids": (pixels * 16).long(), "labels": digit} for pixels, digit in rows(start, end)]


def encoded(samples: list[dict[str, Any]]) -> BatchEncoding:
    """What a tokenizer returns: a mapping that is no dict."""
    return BatchEncoding(default_data_collator(samples))


def loader(start: int, end: int, collate: Any = encoded, **options: Any) -> DataLoader[Any]:
    return DataLoader(tokens(start, end), 32, collate_fn=collate, **options)  # type: ignore[arg-type]


def test_it_trains_and_goes_on_exactly_from_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Dropout and shuffling included."""

    def fit(name: str, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        keep = sl.ModelCheckpoint(every_n_train_steps=6, save_top_k=-1)
        trainer = new_trainer(tmp_path, name=name, max_epochs=4, callbacks=keep)
        module = Bert()
        return module, trainer.fit(module, loader(0, 130, shuffle=True), ckpt_path=ckpt_path)

    whole, run = fit("whole")
    resumed, _ = fit("resumed", f"{run.url}/checkpoints/epoch=1-step=6")
    assert same_weights(resumed, whole)
    loaded = Bert.load_from_checkpoint(f"{run.url}/checkpoints/epoch=1-step=6")
    assert not same_weights(loaded, whole)  # those of then
    bare_trainer(max_epochs=40).fit(loaded, loader(0, 32))
    with torch.no_grad():
        assert loaded.eval().model(**encoded(tokens(0, 32))).loss < 1.7  # a guess has 2.3


@pytest.mark.parametrize("collate", [encoded, default_data_collator])
def test_its_batches_are_moved_counted_and_predicted(collate: Any) -> None:
    """A mean counts the rows of each batch, the last one of which is short."""
    torch.manual_seed(0)
    module = Measured()
    trainer = bare_trainer()
    [found] = trainer.validate(module, loader(1400, 1450, collate), verbose=False)
    predictions = trainer.predict(module, loader(1400, 1450, collate))
    assert all(isinstance(each, SequenceClassifierOutput) for each in predictions)
    logits = torch.cat([each.logits for each in predictions])
    digits = torch.stack([row["labels"] for row in tokens(1400, 1450)])
    assert found["val_acc"] == pytest.approx((logits.argmax(1) == digits).float().mean().item())
    assert found["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, digits).item(), rel=1e-5)
