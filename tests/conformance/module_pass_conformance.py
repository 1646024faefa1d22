"""What every pass of a module must do."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_modules import Digits, Tiny
from torch import nn

from shipline.artifact import ServingSettings
from shipline.compose import finetuner
from shipline.errors import ConfigError, GateError
from shipline.export import gates
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import Material, ModulePass
from shipline.export.rows import Rows, recording
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of


class ModulePassConformance:
    """Inherit, and give `made`, a pass that does not fine-tune, `networks`, and what the pass promises."""

    @pytest.fixture
    def made(self) -> ModulePass:
        """The pass; it has a setting `finetune_epochs`, which is 0."""
        raise NotImplementedError

    @pytest.fixture
    def network(self) -> type[Tiny]:
        """A network over scans that the pass can take."""
        raise NotImplementedError

    def check_promise(self, before: nn.Module, after: nn.Module) -> None:
        """Assert that the pass has done what it is for."""
        raise NotImplementedError

    @pytest.fixture
    def module(self, network: type[Tiny]) -> Tiny:
        """The network, the same every time."""
        return seeded(network)

    @pytest.fixture
    def material(self, module: Tiny) -> Material:
        """Scans, and what trains on them."""
        rows = recorded(module)
        return Material(signature_of(module, rows), lambda: rows.inputs, finetuner(Digits()))

    def test_it_does_what_it_is_for(self, made: ModulePass, module: Tiny, material: Material) -> None:
        self.check_promise(module, made.apply(module, material))

    def test_it_has_done_so_after_fine_tuning(self, made: ModulePass, module: Tiny, material: Material) -> None:
        tuned = fine_tuning(made).apply(module, material)
        self.check_promise(module, tuned)
        plain = made.apply(module, material).state_dict()
        assert any(not torch.equal(plain[name], tensor) for name, tensor in tuned.state_dict().items())

    def test_the_signature_stays(self, made: ModulePass, module: Tiny, material: Material) -> None:
        after = made.apply(module, material)
        assert signature_of(after, recorded(after)) == material.signature

    def test_the_module_it_was_given_stays_as_it_is(self, made: ModulePass, module: Tiny, material: Material) -> None:
        before, text = copy.deepcopy(module.state_dict()), repr(module)
        after = fine_tuning(made).apply(module, material)
        same_weights(module, before)
        assert repr(module) == text
        ours = {tensor.data_ptr() for tensor in module.state_dict().values()}
        assert not any(tensor.data_ptr() in ours for tensor in after.state_dict().values() if tensor.numel())

    def test_what_it_gives_evaluates(self, made: ModulePass, module: Tiny, material: Material) -> None:
        def leaves_it_training(module: nn.Module, *, epochs: int) -> None:
            module.train()

        after = fine_tuning(made).apply(module, dataclasses.replace(material, finetune=leaves_it_training))
        assert not any(part.training for part in after.modules())

    def test_the_same_module_and_data_give_the_same(self, made: ModulePass, module: Tiny, material: Material) -> None:
        first = fine_tuning(made).apply(module, material)
        torch.rand(3)  # others draw from the generator, too
        same_weights(fine_tuning(made).apply(module, material), first.state_dict())

    def test_it_can_be_trained_copied_and_saved(self, made: ModulePass, module: Tiny, material: Material) -> None:
        after = made.apply(module, material)
        assert all(weight.is_leaf and weight.requires_grad for weight in after.parameters())
        same_weights(copy.deepcopy(after), after.state_dict())
        after.train()(torch.rand(4, 64)).sum().backward()

    def test_its_graph_passes_the_gates(self, made: ModulePass, module: Tiny, material: Material) -> None:
        after = made.apply(module, material)
        rows = recorded(after)
        runtime = Runtime(to_onnx(after, rows, material.signature), ServingSettings())
        verdicts = [
            gates.parity(runtime, rows, material.signature, 32, 1e-4)[0],
            gates.batch_invariance(runtime, rows, material.signature, 32, 1e-4),
        ]
        assert all(verdict.passed for verdict in verdicts), verdicts

    def test_what_is_to_be_trained_by_nobody_is_refused(
        self, made: ModulePass, module: Tiny, material: Material
    ) -> None:
        with pytest.raises(
            ConfigError, match=r"has finetune_epochs=1, and nobody said how to train: give sl\.export\(finetune"
        ):
            fine_tuning(made).apply(module, dataclasses.replace(material, finetune=None))

    def test_what_cannot_be_copied_is_refused(self, made: ModulePass, module: Tiny, material: Material) -> None:
        module.made = module.net[0].weight * 1 if isinstance(module.net, nn.Sequential) else module.net.weight * 1
        with pytest.raises(GateError, match=r"cannot be pruned, so nothing was published: RuntimeError: Only Tensors"):
            made.apply(module, material)

    def test_nobody_is_set_up_who_logs(
        self, made: ModulePass, module: Tiny, material: Material, capfd: pytest.CaptureFixture[str]
    ) -> None:
        root = logging.getLogger()
        before = [*root.handlers], root.level
        fine_tuning(made).apply(module, material)
        assert ([*root.handlers], root.level) == before
        assert capfd.readouterr() == ("", "")

    def test_two_of_the_same_settings_are_equal(self, made: ModulePass) -> None:
        assert made == copy.copy(made)
        assert hash(made) == hash(copy.copy(made))
        assert " " not in made.label


def seeded(kind: Callable[[], Tiny]) -> Tiny:
    """The network in evaluation mode, the same every time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return kind().eval()


def recorded(module: nn.Module) -> Rows:
    """Scans that went through the module."""
    data = Digits()
    data.setup("fit")
    with recording(module, 64) as rows, torch.no_grad():
        module(data.train.tensors[0][:64])
    return rows


def fine_tuning(made: Any) -> Any:
    """The pass, with an epoch of training after it."""
    return dataclasses.replace(made, finetune_epochs=1)


def same_weights(module: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = module.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
