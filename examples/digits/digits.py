"""Scanned digits: a small convolutional network, and the data that scikit-learn ships (1,797 scans of 8x8 pixels)."""

import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl
from shipline.processing import DecodeImage, Grayscale, Labels, Layout, Normalize, Resize, Softmax


class Digits(sl.Module):
    """A picture of 8x8 pixels -> the logits of ten digits."""

    signature = sl.Signature(
        inputs=(sl.TensorSpec(name="image", dtype="float32", shape=(-1, 1, 8, 8)),),
        outputs=(sl.TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),),
    )

    def __init__(self, channels: int = 32, lr: float = 2e-3):
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(2 * channels * 2 * 2, 10)

    def forward(self, image):
        return self.head(self.features(image).flatten(1))

    def training_step(self, batch, batch_idx):
        image, digit = batch
        loss = F.cross_entropy(self(image), digit)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        image, digit = batch
        logits = self(image)
        self.log("val_loss", F.cross_entropy(logits, digit), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == digit).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class DigitsData(sl.DataModule):
    """A fifth of the scans validates, the rest trains. Every row starts as the PNG that a client would send."""

    processing = sl.Processing(
        before=[DecodeImage(), Grayscale(), Resize(height=8, width=8), Normalize(scale=255), Layout(to="CHW")],
        after=[Softmax(), Labels(names=tuple("0123456789"))],
    )

    def __init__(self, batch_size: int = 32):
        self.batch_size = batch_size

    def setup(self, stage: str):
        images, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(digits))
        train, val = order[len(order) // 5 :], order[: len(order) // 5]
        self.val_pngs = [to_png(image) for image in images[val]]
        self.train = self._rows([to_png(image) for image in images[train]], digits[train])
        self.val = self._rows(self.val_pngs, digits[val])

    def _rows(self, pngs, digits):
        rows = np.stack([self.processing.prepare(png) for png in pngs])
        return TensorDataset(torch.from_numpy(rows), torch.from_numpy(digits))

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 64)

    def raw_rows(self):
        return self.val_pngs


def to_png(image: np.ndarray) -> bytes:
    """The scan, whose pixels count from 0 to 16, as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray((image.reshape(8, 8) * 255 / 16).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
