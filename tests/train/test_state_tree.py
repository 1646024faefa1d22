"""The state of a run as a tree of tensors and plain data: every bit of it comes back, and nothing else is taken."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import Thing
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

from shipline.errors import IntegrityError, TrainingError
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.tree import decode_tree, encode_tree, read_tensors


def dump_tree(tree: Any) -> tuple[bytes, bytes]:
    structure, tensors = encode_tree(tree)
    return structure, bytes(Image().fill(tensors))


def load_tree(structure: bytes, tensors: bytes) -> Any:
    return decode_tree(structure, read_tensors(tensors))


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
