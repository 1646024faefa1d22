"""Shipline: from a PyTorch module to a verified HTTP endpoint.

    import shipline as sl

    run = sl.Trainer(max_epochs=5).fit(module, data)
    artifact = sl.export(run, "int8", to="models/digits")
    sl.serve("models", port=8000)

Importing this package imports neither torch nor ray; each name below is imported when it is first used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shipline.client import AsyncClient as AsyncClient, Client as Client
    from shipline.compose import export as export
    from shipline.errors import ShiplineError as ShiplineError
    from shipline.export.huggingface import huggingface as huggingface
    from shipline.export.recipe import Recipe as Recipe
    from shipline.processing import Processing as Processing
    from shipline.serve.server import serve as serve
    from shipline.serve.settings import Limits as Limits, ServerSettings as ServerSettings
    from shipline.signature import Signature as Signature, TensorSpec as TensorSpec
    from shipline.train import (
        Callback as Callback,
        DataModule as DataModule,
        EarlyStopping as EarlyStopping,
        ModelCheckpoint as ModelCheckpoint,
        Module as Module,
        Trainer as Trainer,
        seed_everything as seed_everything,
    )

__version__ = "0.1.0"

# Who uses the package decides where its log goes; the command line sends it to standard error.
logging.getLogger("shipline").addHandler(logging.NullHandler())

# The public surface: name -> "module:attribute". `export` and `serve` are packages that can be called.
_SURFACE = {
    "AsyncClient": "shipline.client:AsyncClient",
    "Callback": "shipline.train:Callback",
    "Client": "shipline.client:Client",
    "DataModule": "shipline.train:DataModule",
    "EarlyStopping": "shipline.train:EarlyStopping",
    "Limits": "shipline.serve.settings:Limits",
    "ModelCheckpoint": "shipline.train:ModelCheckpoint",
    "Module": "shipline.train:Module",
    "Processing": "shipline.processing:Processing",
    "Recipe": "shipline.export:Recipe",
    "ServerSettings": "shipline.serve.settings:ServerSettings",
    "ShiplineError": "shipline.errors:ShiplineError",
    "Signature": "shipline.signature:Signature",
    "TensorSpec": "shipline.signature:TensorSpec",
    "Trainer": "shipline.train:Trainer",
    "huggingface": "shipline.export:huggingface",
    "seed_everything": "shipline.train:seed_everything",
}
_PACKAGES = ("export", "serve", "train")

__all__ = ["__version__", *sorted([*_SURFACE, "export", "serve"])]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    target = f"shipline.{name}" if name in _PACKAGES else _SURFACE.get(name)
    if target is None:
        raise AttributeError(f"module 'shipline' has no attribute {name!r}")
    from shipline.plugins import load_target

    return load_target(target)


def __dir__() -> list[str]:
    return sorted([*globals(), *_SURFACE, *_PACKAGES])
