"""The DataModule of a stage: given as such, or made of loaders, or of a module's own, or one of Lightning's."""

from __future__ import annotations

from typing import Any

from shipline.errors import ConfigError
from shipline.train.data.module import DataModule, Loaders
from shipline.train.hooks import is_foreign, overrides

_LOADERS = ("train", "val", "test", "predict")


def as_data(model: Any, datamodule: Any, **loaders: Any) -> DataModule:
    """Return the DataModule given as such, or in place of a loader, or made of the loaders.

    Raises:
        ConfigError: there is none, or more than one way to data.
    """
    given: list[Any] = [item for item in (datamodule, *loaders.values()) if item is not None]
    if not given and any(overrides(model, f"{stage}_dataloader") for stage in loaders):
        return ModuleLoaders(model)
    if not given:
        raise ConfigError("There is no data: give a DataModule or a DataLoader.")
    if datamodule is None:
        datamodule = next((item for item in given if _is_data(item)), None)
    if datamodule is None:
        return Loaders(**_with_own(model, loaders))
    if not _is_data(datamodule):
        raise ConfigError(f"datamodule is a {type(datamodule).__name__}; derive its class from shipline.DataModule.")
    if len(given) > 1:
        raise ConfigError("Give loaders or a datamodule, not both.")
    return datamodule if isinstance(datamodule, DataModule) else ForeignData(datamodule)


def _is_data(item: Any) -> bool:
    return isinstance(item, DataModule) or is_foreign(item, "LightningDataModule")


def _with_own(model: Any, loaders: dict[str, Any]) -> dict[str, Any]:
    """The loaders, those missing taken from the module where it has them."""
    own = {name: getattr(model, f"{name}_dataloader") for name in loaders if overrides(model, f"{name}_dataloader")}
    return {name: own[name]() if loader is None and name in own else loader for name, loader in loaders.items()}


class ModuleLoaders(DataModule):
    """A DataModule of the loaders that a module has as methods."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def has_loader(self, name: str) -> bool:
        """Whether the module has a loader of this name."""
        return overrides(self._module, f"{name}_dataloader")

    def train_dataloader(self) -> Any:
        """Return the module's."""
        return self._module.train_dataloader()

    def val_dataloader(self) -> Any:
        """Return the module's, or None."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Return the module's, or None."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """Return the module's, or None."""
        return self._loader("predict")

    def _loader(self, stage: str) -> Any:
        name = f"{stage}_dataloader"
        return getattr(self._module, name)() if overrides(self._module, name) else None


class ForeignData(DataModule):
    """A LightningDataModule as a DataModule: each call is passed on to it."""

    adopted: Any = None

    def __init__(self, data: Any) -> None:
        self.__dict__["adopted"] = data
        self.processing = getattr(data, "processing", None)

    def __getattribute__(self, name: str) -> Any:
        if name in _PASSED_ON:
            data = super().__getattribute__("adopted")
            if overrides(data, name):
                return getattr(data, name)
        return super().__getattribute__(name)


_PASSED_ON = frozenset({
    "prepare_data", "setup", "teardown", "on_exception", "state_dict", "load_state_dict", "train_dataloader",
    "val_dataloader", "test_dataloader", "predict_dataloader", "raw_rows",
})  # fmt: skip
