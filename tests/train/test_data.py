"""DataModules, and the digest that says which data it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from training import Scripted, bare_trainer, new_trainer, numbers, same_weights

from shipline.errors import ConfigError
from shipline.train import DataModule, seed_everything
from shipline.train.data import Loaders
from shipline.train.data.fingerprint import FINGERPRINT_ROWS
from shipline.train.seed import current_seed, isolate_rng, rng_state, set_rng_state


class Data(DataModule):
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prepare_data(self) -> None:
        self.asked.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.asked.append(f"setup {stage}")

    def teardown(self, stage: str) -> None:
        self.asked.append(f"teardown {stage}")

    def train_dataloader(self) -> Any:
        return numbers(2)

    def val_dataloader(self) -> Any:
        return numbers(1)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_data_module_is_prepared_set_up_and_torn_down(stage: str) -> None:
    data = Data()
    getattr(bare_trainer(max_epochs=1), stage)(Scripted([1.0]), datamodule=data)
    assert data.asked == ["prepare_data", f"setup {stage}", f"teardown {stage}"]


def test_a_data_module_may_stand_where_a_loader_may() -> None:
    data = Data()
    run = bare_trainer(max_epochs=1).fit(Scripted([1.0]), data)
    assert run.data is data
    assert bare_trainer().validate(Scripted([2.0]), data) == [{"score": 2.0}]


def test_a_data_module_that_failed_to_set_up_is_not_torn_down() -> None:
    class Broken(Data):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no data")

    data = Broken()
    with pytest.raises(RuntimeError, match="no data"):
        bare_trainer(max_epochs=1).fit(Scripted(), datamodule=data)
    assert data.asked == ["prepare_data"]


def test_a_data_module_is_torn_down_after_an_error() -> None:
    class Fails(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("no")

    data = Data()
    with pytest.raises(RuntimeError, match="no"):
        bare_trainer(max_epochs=1).fit(Fails(), datamodule=data)
    assert data.asked[-1] == "teardown fit"


def test_an_empty_data_module_has_no_data() -> None:
    data = DataModule()
    with pytest.raises(ConfigError, match="DataModule has no train_dataloader: return a DataLoader from it"):
        data.train_dataloader()
    assert (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()) == (None, None, None)
    assert (list(data.raw_rows()), data.processing) == ([], None)


def test_loaders_give_what_they_were_given() -> None:
    train, val, test, predict = (numbers(n) for n in range(1, 5))
    loaders = Loaders(train, val, test, predict)
    assert loaders.train_dataloader() is train
    assert loaders.val_dataloader() is val
    assert loaders.test_dataloader() is test
    assert loaders.predict_dataloader() is predict
    with pytest.raises(ConfigError, match="There is no data to train on: give train_dataloaders"):
        Loaders(val=val).train_dataloader()


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_takes_no_batch_more_than_it_uses(limit: int) -> None:
    """A stream gives its next batches to the next epoch."""

    class Stream:
        def __init__(self) -> None:
            self.given = 0

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            self.given += 1
            return [torch.ones(1)]

    train, val = Stream(), Stream()
    trainer = bare_trainer(max_epochs=2, num_sanity_val_steps=0, limit_train_batches=limit, limit_val_batches=limit)
    trainer.fit(Scripted(), train, val)
    assert (train.given, val.given) == (2 * limit, 2 * limit)
    bare_trainer(max_steps=limit).fit(Scripted(), train)
    assert train.given == 3 * limit


# ---- the fingerprint -------------------------------------------------------------------------------------------------


class Items(Dataset[Any]):
    """A dataset of what it is given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def fingerprint(items: list[Any], val: list[Any] | None = None) -> str:
    return Loaders(DataLoader(Items(items)), None if val is None else DataLoader(Items(val))).fingerprint()


FINGERPRINT = "sha256:48fcf77fa2bfcf2fc2b8fb09bde38a1e52b016b908564161b926358560cdafc9"
ROWS = [(torch.full((2,), float(n)), n, f"row {n}", {"a": np.float32(n)}, [None, True]) for n in range(200)]


def test_a_fingerprint_is_the_same_for_the_same_data() -> None:
    again = [(torch.full((2,), float(n)), n, f"row {n}", {"a": np.float32(n)}, [None, True]) for n in range(200)]
    assert fingerprint(ROWS) == fingerprint(again)
    assert fingerprint(ROWS).startswith("sha256:")
    assert len(fingerprint(ROWS)) == len("sha256:") + 64


def test_a_fingerprint_does_not_change_between_versions() -> None:
    """Checkpoints hold it: one from another day must still compare."""
    rows = [(torch.tensor([1.0, 2.0]), 3, "x"), (torch.tensor([4.0, 5.0]), 6, "y")]
    assert fingerprint(rows) == FINGERPRINT


@pytest.mark.parametrize(
    "changed",
    [
        [*ROWS, ROWS[0]],
        ROWS[:-1],
        ROWS[::-1],
        [(ROWS[0][0] + 1, *ROWS[0][1:]), *ROWS[1:]],
        [*ROWS[:-1], (ROWS[-1][0], -1, *ROWS[-1][2:])],
        [(*ROWS[0][:2], "other", *ROWS[0][3:]), *ROWS[1:]],
        [(*ROWS[0][:3], {"b": np.float32(0)}, ROWS[0][4]), *ROWS[1:]],
        [(*ROWS[0][:4], [None, False]), *ROWS[1:]],
        [(row[0].double(), *row[1:]) for row in ROWS],
        [(row[0].reshape(2, 1), *row[1:]) for row in ROWS],
    ],
)
def test_a_fingerprint_tells_other_data_apart(changed: list[Any]) -> None:
    assert fingerprint(changed) != fingerprint(ROWS)


def test_a_fingerprint_is_of_the_validation_rows_too() -> None:
    prints = {fingerprint(ROWS), fingerprint(ROWS, ROWS[:5]), fingerprint(ROWS, ROWS[:6]), fingerprint(ROWS[:5], ROWS)}
    assert len(prints) == 4


def test_a_fingerprint_reads_a_sample_and_not_all() -> None:
    read: list[int] = []

    class Reads(Items):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return index

    Loaders(DataLoader(Reads(list(range(1000))))).fingerprint()
    assert len(read) == FINGERPRINT_ROWS
    assert (read[0], read[-1]) == (0, 999)


def test_objects_count_by_their_class_and_not_their_address() -> None:
    class Thing:
        pass

    assert fingerprint([Thing(), 1]) == fingerprint([Thing(), 1]) != fingerprint([object(), 1])
    assert fingerprint([torch.ones(2, dtype=torch.bfloat16)]) != fingerprint([torch.zeros(2, dtype=torch.bfloat16)])
    assert fingerprint([]) != fingerprint([0])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.zeros(1)


@pytest.mark.parametrize("loader", [DataLoader(Endless()), [torch.zeros(1)], iter([torch.zeros(1)])])
def test_a_fingerprint_takes_nothing_from_a_stream(loader: Any) -> None:
    assert Loaders(loader).fingerprint().startswith("sha256:")
    if isinstance(loader, Iterator):
        assert next(loader) == 0


def test_a_fingerprint_takes_nothing_from_the_generators() -> None:
    """Reading rows may draw random numbers; the run that reads them is the run that does not."""

    class Augmented(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return [self.tensors[0][index] + torch.rand(())]

    class NoFingerprint(Loaders):
        def fingerprint(self) -> str:
            return "none"

    def trained(kind: type[Loaders]) -> Scripted:
        seed_everything(0)
        module = Scripted()
        bare_trainer(max_epochs=1).fit(module, datamodule=kind(DataLoader(Augmented(torch.arange(4.0)), shuffle=True)))
        return module

    assert same_weights(trained(Loaders), trained(NoFingerprint))


def test_a_data_module_may_say_its_own_fingerprint(tmp_path: Any) -> None:
    class Named(Data):
        def fingerprint(self) -> str:
            return "dataset-v3"

    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted([1.0]), Named())
    assert run.checkpoint.manifest.lineage.data_fingerprint == "dataset-v3"


# ---- seeds -----------------------------------------------------------------------------------------------------------


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(()).item()]


def test_a_seed_is_for_every_generator() -> None:
    assert seed_everything(5) == 5
    first = drawn()
    seed_everything(5)
    assert drawn() == first
    seed_everything(6)
    assert not set(drawn()) & set(first)
    assert current_seed() == 6


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "1"])
def test_seeds_that_are_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match=f"seed is {seed!r}; choose one from 0"):
        seed_everything(seed)
    assert current_seed() is None


def test_the_state_of_every_generator_comes_back() -> None:
    """In the middle of a pair of normal numbers, too, of which Python and numpy keep the second."""
    random.gauss(0, 1)
    np.random.standard_normal()
    state = rng_state()
    first = drawn()
    set_rng_state(state)
    assert drawn() == first


def test_isolated_draws_with_a_seed_are_always_the_same() -> None:
    state = rng_state()
    found = []
    for seed in (3, 3, 4):
        with isolate_rng(seed):
            found.append(drawn())
    assert found[0] == found[1] != found[2]
    assert rng_state() == state
    assert current_seed() is None


def test_isolated_draws_change_nothing() -> None:
    def draw_and_fail() -> None:
        with isolate_rng():
            drawn()
            raise RuntimeError("no")

    state = rng_state()
    with pytest.raises(RuntimeError, match="no"):
        draw_and_fail()
    first = drawn()
    set_rng_state(state)
    assert drawn() == first
