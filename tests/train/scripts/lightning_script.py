"""A script as Lightning's users write it; `test_lightning_script.py` runs it with the import changed, too."""

import argparse
import json

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchmetrics
from pytorch_lightning.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.callbacks.progress import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader, grad_norm, rank_zero_info
from pytorch_lightning.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split


class DigitsData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        rows = TensorDataset(images, torch.tensor(digits.target))
        generator = torch.Generator().manual_seed(7)
        self.train, self.val, self.held_out = random_split(rows, [400, 100, 1297], generator=generator)
        self.unlabelled = Subset(rows, range(10))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)

    def test_dataloader(self):
        return CombinedLoader([DataLoader(self.held_out, batch_size=256)], "sequential")

    def predict_dataloader(self):
        return DataLoader(self.unlabelled, batch_size=5)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, digits = batch
        return images * 2 - 1, digits


class DigitsModel(pl.LightningModule):
    def __init__(self, hidden: int = 32, lr: float = 1e-2, dropout: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))
        self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.val_metrics = torchmetrics.MetricCollection(
            {
                "acc": torchmetrics.Accuracy(task="multiclass", num_classes=10),
                "f1": torchmetrics.F1Score(task="multiclass", num_classes=10, average="macro"),
            },
            prefix="val_",
        )
        self.test_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx) -> STEP_OUTPUT:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.train_acc(logits, y)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return {"loss": loss, "logits": logits.detach()}

    def on_before_optimizer_step(self, optimizer):
        self.log_dict(grad_norm(self.layers, norm_type=2))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_metrics.update(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True, sync_dist=True)
        self.log_dict(self.val_metrics, on_epoch=True)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.test_acc(self(x), y)
        self.log("test_acc", self.test_acc)

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_train_end(self, trainer, pl_module):
        rank_zero_info("trained for %s epochs", trainer.current_epoch)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default=".")
    parser.add_argument("--max_epochs", type=int, default=4)
    args = parser.parse_args()

    pl.seed_everything(42, workers=True)
    data, model, losses = DigitsData(), DigitsModel(), Losses()
    checkpoint = ModelCheckpoint(monitor="val_acc", mode="max", save_top_k=2, filename="{epoch}-{val_acc:.3f}")
    trainer = pl.Trainer(
        default_root_dir=args.root,
        accelerator="cpu",
        devices=1,
        max_epochs=args.max_epochs,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        val_check_interval=0.5,
        log_every_n_steps=3,
        deterministic=True,
        logger=CSVLogger(args.root, name="logs"),
        callbacks=[
            checkpoint,
            EarlyStopping("val_loss", patience=20),
            LearningRateMonitor(logging_interval="step"),
            TQDMProgressBar(refresh_rate=0),
            losses,
        ],
    )
    trainer.fit(model, datamodule=data)
    fitted = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    predicted = torch.cat(trainer.predict(model, datamodule=data)).tolist()

    best = DigitsModel.load_from_checkpoint(checkpoint.best_model_path)
    best.eval()
    with torch.no_grad():
        logits = best(data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0])
    found = {
        "losses": losses.losses,
        "metrics": fitted,
        "test": tested,
        "predicted": predicted,
        "best": float(checkpoint.best_model_score),
        "kept": len(checkpoint.best_k_models),
        "logits": float(logits.double().sum()),
        "hparams": dict(best.hparams),
        "steps": trainer.global_step,
        "version": trainer.logger.version,
        "monitor": trainer.checkpoint_callback.monitor,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
