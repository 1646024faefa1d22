"""Where batches come from: the DataModule, limits, each worker's share, and loaders that know their position."""

from shipline.train.data.combined import CombinedLoader, any_feed
from shipline.train.data.feed import Feed
from shipline.train.data.module import DataModule, LightningDataModule, Loaders
from shipline.train.data.ray_rows import RayRows
from shipline.train.data.streamed import StreamedRows

__all__ = [
    "CombinedLoader", "DataModule", "Feed", "LightningDataModule", "Loaders", "RayRows", "StreamedRows", "any_feed",
]  # fmt: skip
