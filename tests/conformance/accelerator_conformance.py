"""What every accelerator must do."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from training import Mlp, bare_trainer, on_hook, train_loader, val_loader

from shipline import plugins
from shipline.train.accelerators import Accelerator, pick_accelerator


class AcceleratorConformance:
    """Inherit, and give a fixture `accelerator` that this machine has."""

    def test_is_found_by_its_name(self, accelerator: Accelerator) -> None:
        assert plugins.load("accelerator", accelerator.name) is type(accelerator)
        assert type(pick_accelerator(accelerator.name)) is type(accelerator)

    def test_it_is_there(self, accelerator: Accelerator) -> None:
        assert accelerator.is_available()
        assert accelerator.device_count() >= 1
        assert pick_accelerator(accelerator) is accelerator

    def test_each_worker_has_a_device(self, accelerator: Accelerator) -> None:
        """Those with the same number the same one, and no two of a machine share one while there are others."""
        count = accelerator.device_count()
        devices = [accelerator.device(rank) for rank in range(count)]
        assert all(isinstance(device, torch.device) for device in devices)
        assert len(set(devices)) == count
        assert accelerator.device(0) == devices[0]

    def test_tensors_live_there(self, accelerator: Accelerator) -> None:
        device = accelerator.device(0)
        accelerator.setup_device(device)
        x = torch.arange(4.0).to(device)
        assert x.device.type == device.type
        assert (x * 2).cpu().tolist() == [0, 2, 4, 6]
        accelerator.teardown()
        assert x.cpu().tolist() == [0, 1, 2, 3]  # what is in use stays

    def test_figures_are_numbers_by_name(self, accelerator: Accelerator) -> None:
        stats = accelerator.get_device_stats(accelerator.device(0))
        assert all(isinstance(name, str) and isinstance(value, int | float) for name, value in stats.items())

    def test_ray_knows_what_to_count(self, accelerator: Accelerator) -> None:
        assert isinstance(accelerator.ray_resource, str)
        assert accelerator.ray_resource

    def test_it_travels_to_workers(self, accelerator: Accelerator) -> None:
        again = pickle.loads(pickle.dumps(accelerator))  # noqa: S301 -- our own
        assert (type(again), again.name) == (type(accelerator), accelerator.name)

    @pytest.mark.parametrize("given_as", ["name", "object"])
    def test_a_run_computes_on_it(self, accelerator: Accelerator, given_as: str) -> None:
        where: set[str] = set()

        def look(trainer: Any, module: Any, _outputs: Any, batch: Any, _index: int) -> None:
            where.update((batch[0].device.type, module.device.type, trainer.device.type))

        module = Mlp()
        trainer = bare_trainer(
            max_epochs=8,
            accelerator=accelerator.name if given_as == "name" else accelerator,
            callbacks=on_hook("on_train_batch_end", look),
        )
        run = trainer.fit(module, train_loader(1000), val_loader())
        assert where == {accelerator.device(0).type}
        assert run.metrics["val_acc"] > 0.7
        [metrics] = trainer.validate(module, val_loader())
        assert metrics["val_acc"] == pytest.approx(run.metrics["val_acc"])
