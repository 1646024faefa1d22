"""What a checkpoint holds, and that nothing but what was written comes back from one."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.optim import swa_utils
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from training import Mlp, Scripted, new_trainer, numbers, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.checkpoint import STATE, STATE_TENSORS, WEIGHTS, open_checkpoint
from shipline.errors import ConfigError, IntegrityError, NotFoundError, SchemaError, TrainingError
from shipline.store import open_store
from shipline.train import Callback, Module
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.tree import decode_tree, encode_tree, read_tensors
from shipline.train.checkpoints.weights import dump_weights


def dump_tree(tree: Any) -> tuple[bytes, bytes]:
    structure, tensors = encode_tree(tree)
    return structure, bytes(Image().fill(tensors))


def load_tree(structure: bytes, tensors: bytes) -> Any:
    return decode_tree(structure, read_tensors(tensors))


# ---- the tree of tensors and plain data ------------------------------------------------------------------------------

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16,
    torch.uint8, torch.bool,
]  # fmt: skip


def filled(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """A tensor of random bytes, NaN payloads included."""
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).reshape(shape)


TENSORS = st.builds(filled, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | TENSORS
KEYS = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False) | st.tuples(st.integers())
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$tensor", "$dict", "$tuple", "$float", "$"]), inner, max_size=2)
    ),
    max_leaves=12,
)


def identical(a: Any, b: Any) -> bool:
    """Equal in every type and every bit; but the sign of a NaN that is no tensor's means nothing."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return identical(list(a), list(b)) and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return bool(a == b)


@given(TREES)
def test_a_tree_comes_back_as_it_was(tree: Any) -> None:
    structure, tensors = dump_tree(tree)
    assert identical(load_tree(structure, tensors), tree)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_every_dtype_comes_back(dtype: torch.dtype) -> None:
    for tensor in (filled(dtype, [4, 3], 1), filled(dtype, [], 2), filled(dtype, [4, 3], 3).t(), filled(dtype, [0], 4)):
        [found] = load_tree(*dump_tree([tensor]))
        assert identical(found, tensor)
        assert found.is_contiguous()


def test_leaves_that_share_memory_come_back_each_on_its_own() -> None:
    base = torch.arange(4.0)
    one, other = load_tree(*dump_tree([base, base[1:3]]))
    one.zero_()
    assert other.tolist() == [1.0, 2.0]


class Thing:
    """No plain data."""


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Thing(), "state is a Thing: a checkpoint keeps tensors, arrays, numbers, strings"),
        ({"a": [0, (1, {"b": Thing()})]}, r"state\.a\[1\]\[1\]\.b is a Thing"),
        ({1: Thing()}, r"state\[1\] is a Thing"),
        ({Thing(): 1}, "state is a Thing"),
        ({"f": len}, r"state\.f is a builtin_function_or_method"),
        ({"s": {1}}, r"state\.s is a set"),
        ({"t": torch.zeros(1, dtype=torch.complex128)}, r"state\.t is a tensor of torch\.complex128"),
        ({"t": torch.zeros(2, dtype=torch.float8_e8m0fnu)}, r"state\.t is a tensor of torch\.float8_e8m0fnu"),
        ({"t": torch.zeros(2, 2).to_sparse()}, r"state\.t is a tensor of torch\.float32, torch\.sparse_coo"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_path(tree: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        dump_tree(tree)


@pytest.mark.parametrize(
    ("structure", "tensors"),
    [
        (b"", safetensors.torch.save({})),
        (b"{", safetensors.torch.save({})),
        (b"[" * 100_000, safetensors.torch.save({})),
        (b'{"$tensor": "0"}', safetensors.torch.save({})),
        (b'{"$float": "x"}', safetensors.torch.save({})),
        (b'{"$tuple": 1}', safetensors.torch.save({})),
        (b'{"$dict": [[1]]}', safetensors.torch.save({})),
        (b'{"$dict": [[[], 1]]}', safetensors.torch.save({})),
        (b"{}", b""),
        (b"{}", pickle.dumps({})),
        (b"{}", b"\xff" * 64),
    ],
)
def test_what_is_no_tree_is_refused(structure: bytes, tensors: bytes) -> None:
    with pytest.raises(IntegrityError, match="The state of the run cannot be read"):
        load_tree(structure, tensors)


OPTIMIZERS = [
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad,
    torch.optim.Adadelta, torch.optim.Rprop, torch.optim.RAdam, torch.optim.Adafactor,
]  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_an_optimizer_goes_on_from_its_saved_state(kind: Any) -> None:
    def steps(optimizer: Any, parameter: nn.Parameter, gradients: list[float]) -> None:
        for gradient in gradients:
            parameter.grad = torch.full((2, 2), gradient)
            optimizer.step()

    undisturbed = nn.Parameter(torch.ones(2, 2))
    steps(kind([undisturbed], lr=0.1), undisturbed, [0.3, -0.2, 0.5, 0.1])

    parameter = nn.Parameter(torch.ones(2, 2))
    first, later = kind([parameter], lr=0.1), kind([parameter], lr=0.7)
    steps(first, parameter, [0.3, -0.2])
    later.load_state_dict(load_tree(*dump_tree(first.state_dict())))
    steps(later, parameter, [0.5, 0.1])
    assert torch.equal(parameter, undisturbed)


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: LambdaLR(o, lambda step: 0.9**step),
    "step": lambda o: StepLR(o, 2),
    "multi_step": lambda o: MultiStepLR(o, [2, 4, 4]),
    "exponential": lambda o: ExponentialLR(o, 0.9),
    "cosine": lambda o: CosineAnnealingLR(o, 5),
    "warm_restarts": lambda o: CosineAnnealingWarmRestarts(o, 3),
    "one_cycle": lambda o: OneCycleLR(o, 1.0, total_steps=9),
    "cyclic": lambda o: CyclicLR(o, 0.1, 1.0, step_size_up=2),
    "sequential": lambda o: SequentialLR(o, [ConstantLR(o, total_iters=2), ExponentialLR(o, 0.9)], [3]),
    "chained": lambda o: ChainedScheduler([ConstantLR(o, total_iters=2), ExponentialLR(o, 0.9)], optimizer=o),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=1),
    "swa": lambda o: swa_utils.SWALR(o, 0.01, anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_from_its_saved_state(name: str) -> None:
    def new() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    def rates(restart_at: int | None) -> list[float]:
        optimizer, scheduler = new()
        seen = []
        for step in range(8):
            if step == restart_at:
                saved = dump_tree([optimizer.state_dict(), scheduler.state_dict()])
                optimizer, scheduler = new()
                for item, state in zip((optimizer, scheduler), load_tree(*saved), strict=True):
                    item.load_state_dict(state)
            optimizer.step()
            scheduler.step(*([1.0] if name == "plateau" else []))
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    assert rates(restart_at=3) == rates(restart_at=None)
    assert len(set(rates(None))) > 1


# ---- weights ---------------------------------------------------------------------------------------------------------


class Tied(Module):
    """An embedding whose weights are the head's, and a buffer."""

    def __init__(self, words: int = 5, width: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("also_empty", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(x)) * self.scale  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0].long()).float().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    module = Tied()
    run = new_trainer(tmp_path, max_epochs=1).fit(module, numbers(5))
    checkpoint = run.checkpoint
    assert checkpoint.manifest.tied_weights == {"head.weight": "embedding.weight"}
    assert set(safetensors.torch.load(checkpoint.read(WEIGHTS))) == {"embedding.weight", "scale", "empty", "also_empty"}

    found = Tied.load_from_checkpoint(str(run.best_url))
    assert same_weights(found, module)
    assert found.head.weight is found.embedding.weight


def test_views_of_one_tensor_are_stored_each_as_it_is() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(6.0)
            for name, view in {"whole": whole, "part": whole[:2], "twisted": whole.reshape(2, 3).t()}.items():
                self.register_buffer(name, view)

    module = Views()
    data, tied = dump_weights(module.state_dict())
    assert tied == {}
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in safetensors.torch.load(data).items())


def test_extra_state_that_is_no_tensor_is_refused() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(TrainingError, match="extra state '_extra_state' is no tensor: keep it in a buffer"):
        dump_weights(Extra().state_dict())


def test_weights_that_could_not_be_read_back_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))

    with pytest.raises(TrainingError, match=r"phase is a tensor of torch\.complex128"):
        dump_weights(Odd().state_dict())


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def train(root: str | Path, module: Any = None) -> sl.train.Run:
    torch.manual_seed(0)
    return new_trainer(root, max_epochs=1).fit(module or Mlp(hidden=8), train_loader(64), val_loader(32))


def test_a_module_comes_back_from_a_checkpoint(url: str) -> None:
    run = train(url, Mlp(hidden=9, lr=0.05))
    found = Mlp.load_from_checkpoint(f"{url}/mlp/best")
    assert same_weights(found, run.module)
    assert found.hparams == {"hidden": 9, "dropout": 0.0, "lr": 0.05}
    assert Mlp.load_from_checkpoint(str(run.best_url), lr=0.5).lr == 0.5


def test_what_the_manifest_says(tmp_path: Path) -> None:
    sl.seed_everything(7)
    run = new_trainer(tmp_path, max_epochs=2).fit(Mlp(), train_loader(64), val_loader(32))
    manifest = run.checkpoint.manifest
    assert manifest.module == "training.Mlp"
    assert (manifest.epoch, manifest.global_step) == (1, 4)
    assert set(manifest.metrics) == {"train_loss", "val_loss", "val_acc"}
    assert manifest.metrics == pytest.approx(run.metrics)
    assert set(manifest.files) == {WEIGHTS, STATE, STATE_TENSORS}
    lineage = manifest.lineage
    assert (lineage.seed, lineage.world_size, lineage.packages["torch"]) == (7, 1, torch.__version__)
    assert str(lineage.data_fingerprint).startswith("sha256:")


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    """Its files are JSON and safetensors, whose header is JSON; the state has no objects."""
    run = train(tmp_path)
    assert run.best_url is not None
    files = [path for path in Path(run.best_url).rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".json", ".safetensors", ".safetensors"]
    for path in files:
        data = path.read_bytes()
        header = data if path.suffix == ".json" else data[8 : 8 + int.from_bytes(data[:8], "little")]
        assert isinstance(json.loads(header), dict)


def test_a_metric_that_is_no_number_is_null_in_the_manifest(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted([math.nan]), numbers(1), numbers(1))
    assert run.checkpoint.manifest.metrics == {"score": None}
    assert math.isnan(run.metrics["score"])


def test_a_checkpoint_can_be_saved_at_any_time_and_anywhere(url: str) -> None:
    module = Scripted()
    save = on_hook("on_train_batch_end", lambda trainer, *_: trainer.save_checkpoint(f"{url}/at/{trainer.global_step}"))
    trainer = new_trainer(url, max_epochs=1, callbacks=save, enable_checkpointing=False)
    trainer.fit(module, numbers(2))
    trainer.save_checkpoint(f"{url}/at/end")
    assert open_store(f"{url}/at").list() == ["1", "2", "end"]
    assert open_checkpoint(f"{url}/at/1").manifest.global_step == 1
    assert same_weights(Scripted.load_from_checkpoint(f"{url}/at/end"), module)


def test_saving_before_there_is_a_run() -> None:
    with pytest.raises(TrainingError, match="There is no run to save: call fit first"):
        new_trainer("unused").save_checkpoint("memory://nowhere/x")


class Arguments(Scripted):
    """A module with arguments of every kind."""

    def __init__(self, plain: Any, other: Any = None, *rest: Any, named: int = 1, **more: Any) -> None:
        super().__init__()
        self.given = (plain, other, rest, named, more)


def test_arguments_are_kept_by_name_with_their_defaults() -> None:
    assert Arguments(1, named=2, extra=3).hparams == {"plain": 1, "other": None, "named": 2, "extra": 3}
    assert Arguments(plain=[1]).hparams == {"plain": [1], "other": None, "named": 1}


def test_arguments_are_read_by_attribute_as_in_lightning() -> None:
    module = Arguments(1, named=2)
    assert module.hparams.named == module.hparams["named"] == 2
    with pytest.raises(AttributeError, match=r"There is no argument 'nmaed'. Did you mean 'named'\?"):
        _ = module.hparams.nmaed


class Saves(Scripted):
    """Chooses which of its arguments are kept."""

    def __init__(self, a: int, b: int, c: int, *names: str, ignore: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(*names, ignore=ignore)


@pytest.mark.parametrize(
    ("names", "ignore", "kept"),
    [((), None, {"a", "b", "c", "ignore"}), (("a", "c"), None, {"a", "c"}), ((), "b", {"a", "c", "ignore"}),
     ((), ["a", "b", "ignore"], {"c"})],
)  # fmt: skip
def test_save_hyperparameters_chooses(names: tuple[str, ...], ignore: Any, kept: set[str]) -> None:
    assert set(Saves(1, 2, 3, *names, ignore=ignore).hparams) == kept


def test_wrong_arguments_are_the_constructors_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden'"):
        Mlp(hiden=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1, 1),
        (1.5, 1.5),
        ("a", "a"),
        (None, None),
        ([1, "b"], [1, "b"]),
        ((1, (2,)), [1, [2]]),
        ({"a": [1]}, {"a": [1]}),
    ],
)
def test_plain_arguments_are_kept(tmp_path: Path, value: Any, stored: Any) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Arguments(value), numbers(1))
    assert run.checkpoint.manifest.hyper_parameters["plain"] == stored
    assert run.checkpoint.manifest.not_rebuildable == []
    assert Arguments.load_from_checkpoint(str(run.best_url)).given[0] == stored


@pytest.mark.parametrize(
    "value",
    [
        Thing(),
        nn.Linear(1, 1),
        {1: "a"},
        {"a": {2: 3}},
        math.nan,
        [math.inf],
        torch.zeros(1),
        {1, 2},
        b"x",
        {"api_key": "a1"},
        "s3://me:secret@host/rows",
    ],
)
def test_other_arguments_are_named_and_must_be_given_again(tmp_path: Path, value: Any) -> None:
    """JSON would make a string of an integer key, so that, too, is not kept. Nor are credentials."""
    run = new_trainer(tmp_path, max_epochs=1).fit(Arguments(value, 5), numbers(1))
    manifest = run.checkpoint.manifest
    assert manifest.not_rebuildable == ["plain"]
    assert manifest.hyper_parameters == {"other": 5, "named": 1}
    with pytest.raises(ConfigError, match=r"Arguments cannot be rebuilt from .*: plain could not be kept.* Give it"):
        Arguments.load_from_checkpoint(str(run.best_url))
    assert Arguments.load_from_checkpoint(str(run.best_url), plain=1).given[:2] == (1, 5)


class Other(Mlp):
    """The arguments of Mlp, and other weights."""

    def __init__(self, hidden: int = 32, dropout: float = 0.0, lr: float = 0.1) -> None:
        super().__init__(hidden, dropout, lr)
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.Linear(hidden, 10))


def test_weights_of_another_class_or_shape_are_refused(tmp_path: Path) -> None:
    url = str(train(tmp_path).best_url)
    with pytest.raises(IntegrityError, match=r"(?s)do not fit Other: .*layers\.1\.weight.* Give the class and"):
        Other.load_from_checkpoint(url)
    with pytest.raises(IntegrityError, match=r"(?s)do not fit Mlp: .*size mismatch.*\[8, 64\].*\[5, 64\]"):
        Mlp.load_from_checkpoint(url, hidden=5)


# ---- damage ----------------------------------------------------------------------------------------------------------


def attempts(url: str) -> list[Any]:
    """Everything that reads a checkpoint: for its weights, and to go on training."""
    trainer = new_trainer(Path(url).parent / "resumed", max_epochs=2)
    return [
        lambda: Mlp.load_from_checkpoint(url),
        lambda: trainer.fit(Mlp(hidden=8), train_loader(64), ckpt_path=url),
    ]


def damaged(tmp_path: Path, name: str) -> tuple[str, Path]:
    """A checkpoint, and the path of one of its files."""
    checkpoint = train(tmp_path).checkpoint
    return checkpoint.url, Path(checkpoint.url) / checkpoint.manifest.files[name].key


@pytest.mark.parametrize("name", [WEIGHTS, STATE, STATE_TENSORS])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_refused(tmp_path: Path, name: str, where: float) -> None:
    url, path = damaged(tmp_path, name)
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    for attempt in attempts(url)[0 if name == WEIGHTS else 1 :]:
        with pytest.raises(IntegrityError, match=r"is damaged: its sha256 is .* Do not use it"):
            attempt()


@pytest.mark.parametrize("name", [WEIGHTS, STATE, STATE_TENSORS])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    url, path = damaged(tmp_path, name)
    path.unlink()
    for attempt in attempts(url)[0 if name == WEIGHTS else 1 :]:
        with pytest.raises(IntegrityError, match=f"{path.name} is missing, though its manifest lists it"):
            attempt()


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(tmp_path: Path) -> None:
    """Even with a manifest that vouches for it: no reader of checkpoints can run code."""
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    from shipline.checkpoint import CheckpointManifest
    from shipline.store import Publication

    url = str(tmp_path / "evil")
    with Publication(open_store(url)) as publication:
        for name in (WEIGHTS, STATE, STATE_TENSORS):
            publication.add(name, pickle.dumps(Evil()))
        publication.commit(CheckpointManifest(module="training.Mlp", epoch=0, global_step=1))
    for attempt in attempts(url):
        with pytest.raises(IntegrityError):
            attempt()
    assert not canary.exists()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = train(tmp_path).checkpoint.url
    path = Path(url) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'))
    for attempt in attempts(url):
        with pytest.raises(SchemaError, match=r"schema version 2; this Shipline reads up to 1\. Upgrade"):
            attempt()


def test_a_checkpoint_without_its_manifest_does_not_exist(tmp_path: Path) -> None:
    url = train(tmp_path).checkpoint.url
    (Path(url) / "manifest.json").unlink()
    for attempt in attempts(url):
        with pytest.raises(NotFoundError, match=r"No checkpoint at .*Give a checkpoint's directory, or <run>/best"):
            attempt()


def test_names_that_are_known_are_listed(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(NotFoundError, match=r"No checkpoint at .*/bset; names known there: best, last"):
        Mlp.load_from_checkpoint(str(tmp_path / "mlp" / "bset"))
    with pytest.raises(NotFoundError, match=r"found beside it: nothing"):
        Mlp.load_from_checkpoint(str(tmp_path / "nobody" / "best"))


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    class Careless(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"object": Thing()}

    with pytest.raises(TrainingError, match=r"state\.callbacks\.\S*Careless\.object is a Thing"):
        new_trainer(tmp_path, max_epochs=1, callbacks=Careless()).fit(Scripted(), numbers(1))
    assert open_store(str(tmp_path / "scripted" / "version_0" / "checkpoints")).list() == []
