"""Artifacts in milliseconds: small ONNX graphs, the same functions in numpy, and golden rows made with these."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from shipline.artifact import (
    GOLDEN,
    GOLDEN_TENSORS,
    PROCESSING,
    Artifact,
    ArtifactManifest,
    ServingSettings,
    Verdict,
    open_model,
)
from shipline.lineage import Lineage
from shipline.processing import (
    Columns,
    DecodeImage,
    Grayscale,
    Labels,
    Layout,
    Normalize,
    Processing,
    Resize,
    Softmax,
)
from shipline.signature import Signature, TensorSpec
from shipline.store import Publication

Arrays = dict[str, np.ndarray]

MODEL_FILE = "model.onnx"
MAX_BATCH = 8


@dataclass(frozen=True)
class Graph:
    """A graph, the same function in numpy, and the inputs of its golden rows."""

    model: bytes
    signature: Signature
    function: Callable[[Arrays], Arrays]
    golden: Arrays


def one_tensor(dtype: str, *shape: int) -> Signature:
    """`x` -> `y`, both of this dtype and shape, behind a batch."""
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(-1, *shape)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=(-1, *shape)),),
    )


@dataclass(frozen=True)
class Raw:
    """Processing, and raw inputs that it prepares; their tensors become the golden rows."""

    processing: Processing
    inputs: Sequence[Any]


def publish(
    url: str,
    graph: Graph,
    *,
    version: str = "1",
    raw: Raw | None = None,
    files: Mapping[str, bytes] | None = None,
    **fields: Any,
) -> Artifact:
    """Commit the graph as a version of the model at `url`; `files` and `fields` replace what is right."""
    model = open_model(url)
    manifest = ArtifactManifest(
        **{
            "name": model.name,
            "version": version,
            "backend": "onnxruntime",
            "model_file": MODEL_FILE,
            "precision": "float32",
            "signature": graph.signature,
            "metrics": {"val_acc": 0.98},
            "verdicts": [Verdict(gate="parity", passed=True, measured=1e-7, limit=1e-5, message="equal enough")],
            "tolerance": {spec.name: 1e-5 for spec in graph.signature.outputs},
            "serving": ServingSettings(max_batch_size=MAX_BATCH),
            "lineage": Lineage(
                git_commit="c0ffee", seed=7, checkpoint="/private/runs/best", checkpoint_digest="d" * 64
            ),
            **fields,
        }
    )
    with Publication(model.store.at(version)) as publication:
        for name, data in (artifact_files(graph, raw) | dict(files or {})).items():
            publication.add(name, data)
        artifact = Artifact(model.store.at(version), publication.commit(manifest))
    model.point("stable", version)
    return artifact


def artifact_files(graph: Graph, raw: Raw | None = None) -> dict[str, bytes]:
    """The files that export would write."""
    if raw is None:
        return {MODEL_FILE: graph.model, **golden_files(graph.golden, graph.function(graph.golden))}
    name = graph.signature.inputs[0].name
    inputs = {name: np.stack([raw.processing.prepare(item) for item in raw.inputs])}
    outputs = graph.function(inputs)
    answers = [raw.processing.answer(row) for row in outputs[graph.signature.outputs[0].name]]
    return {
        MODEL_FILE: graph.model,
        PROCESSING: raw.processing.to_json(),
        **golden_files(inputs, outputs, raw.inputs, answers),
    }


def golden_files(
    inputs: Arrays, outputs: Arrays, raw: Sequence[Any] = (), answers: Sequence[Any] = ()
) -> dict[str, bytes]:
    """The two files of golden rows."""
    tensors = {f"input.{name}": np.ascontiguousarray(array) for name, array in inputs.items()}
    tensors |= {f"output.{name}": np.ascontiguousarray(array) for name, array in outputs.items()}
    rows = [{"raw": _stored(item), "answer": answer} for item, answer in zip(raw, answers, strict=True)]
    content = {"schema_version": 1, "count": len(next(iter(inputs.values()))), "rows": rows}
    return {GOLDEN: json.dumps(content).encode(), GOLDEN_TENSORS: safetensors.numpy.save(tensors)}


def linear(features: int = 4, outputs: int = 3, seed: int = 0) -> Graph:
    """`x` float32 [-1, features] -> `y` = x @ W + b."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((features, outputs)).astype(np.float32)
    bias = random.standard_normal(outputs).astype(np.float32)
    return Graph(
        _model(
            [helper.make_node("MatMul", ["x", "W"], ["xW"]), helper.make_node("Add", ["xW", "b"], ["y"])],
            signature := _signature({"x": ("float32", features)}, {"y": ("float32", outputs)}),
            {"W": weight, "b": bias},
        ),
        signature,
        lambda inputs: {"y": inputs["x"] @ weight + bias},
        {"x": random.standard_normal((3, features)).astype(np.float32)},
    )


def masked() -> Graph:
    """`ids` int64 [-1, 3] and `keep` bool [-1, 3] -> `kept` int64 [-1, 3] (0 where not kept) and `dropped` bool."""
    return Graph(
        _model(
            [
                helper.make_node("Where", ["keep", "ids", "zero"], ["kept"]),
                helper.make_node("Not", ["keep"], ["dropped"]),
            ],
            signature := _signature(
                {"ids": ("int64", 3), "keep": ("bool", 3)}, {"kept": ("int64", 3), "dropped": ("bool", 3)}
            ),
            {"zero": np.zeros(1, np.int64)},
        ),
        signature,
        lambda inputs: {"kept": np.where(inputs["keep"], inputs["ids"], 0), "dropped": ~inputs["keep"]},
        {"ids": np.array([[1, 2, 3], [4, 5, 6]]), "keep": np.array([[True, False, True], [False, True, True]])},
    )


def lookup(rows: int = 5) -> Graph:
    """`index` int64 [-1] -> `row` float32 [-1, 2] of a table. An index that is not in it is a poison row: it raises."""
    table = np.random.default_rng(1).standard_normal((rows, 2)).astype(np.float32)
    return Graph(
        _model(
            [helper.make_node("Gather", ["table", "index"], ["row"], axis=0)],
            signature := _signature({"index": ("int64",)}, {"row": ("float32", 2)}),
            {"table": table},
        ),
        signature,
        lambda inputs: {"row": table[inputs["index"]]},
        {"index": np.array([0, rows - 1])},
    )


def logarithm() -> Graph:
    """`x` float32 [-1, 2] -> `y` = log(x): NaN for negative numbers, an infinity for 0."""
    return Graph(
        _model(
            [helper.make_node("Log", ["x"], ["y"])],
            signature := _signature({"x": ("float32", 2)}, {"y": ("float32", 2)}),
        ),
        signature,
        lambda inputs: {"y": np.log(inputs["x"])},
        {"x": np.array([[1.0, 2.0]], np.float32)},
    )


def total() -> Graph:
    """`x` float32 [-1, -1] -> `y` float32 [-1, 1], the sum of each row, however long."""
    return Graph(
        _model(
            [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
            signature := _signature({"x": ("float32", -1)}, {"y": ("float32", 1)}),
            {"axes": np.array([1])},
        ),
        signature,
        lambda inputs: {"y": inputs["x"].sum(axis=1, keepdims=True)},
        {"x": np.array([[1.0, 2.0, 3.0]], np.float32)},
    )


def square() -> Graph:
    """`x` float32 [-1, -1] -> `y` float32 [-1, 1]: n x n numbers and n x n x n steps for n of them."""
    return Graph(
        _model(
            [
                helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
                helper.make_node("Unsqueeze", ["x", "first"], ["row"]),
                helper.make_node("MatMul", ["column", "row"], ["each"]),
                helper.make_node("MatMul", ["each", "each"], ["all"]),
                helper.make_node("ReduceSum", ["all", "both"], ["sum"], keepdims=0),
                helper.make_node("Unsqueeze", ["sum", "first"], ["y"]),
            ],
            signature := _signature({"x": ("float32", -1)}, {"y": ("float32", 1)}),
            {"first": np.array([1]), "last": np.array([2]), "both": np.array([1, 2])},
        ),
        signature,
        lambda inputs: {"y": (inputs["x"].sum(1) ** 2 * (inputs["x"] ** 2).sum(1))[:, None]},
        {"x": np.array([[0.5, 0.25, 0.5]], np.float32)},
    )


def count() -> Graph:
    """`x` int64 [-1, 1] -> `y` int64 [-1, 1], the same: counted, one by one, up to the largest."""
    scalar = (TensorProto.INT64, ())
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("turn", *scalar),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("before", *scalar),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, ()), helper.make_tensor_value_info("after", *scalar)],
    )
    return Graph(
        _model(
            [
                helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
                helper.make_node("Loop", ["most", "", "zero"], ["counted"], body=body),
                helper.make_node("Min", ["x", "counted"], ["y"]),
            ],
            signature := _signature({"x": ("int64", 1)}, {"y": ("int64", 1)}),
            {"zero": np.array(0), "one": np.array(1)},
        ),
        signature,
        lambda inputs: {"y": inputs["x"]},
        {"x": np.array([[3]])},
    )


def words(padding: int = 0) -> Graph:
    """`input_ids` and `attention_mask` int64 [-1, -1] -> `y` int64 [-1, 1]: the sum of a text's tokens.

    `padding` is what each place counts besides, whether there is a token or none.
    """
    return Graph(
        _model(
            [
                helper.make_node("Mul", ["input_ids", "attention_mask"], ["there"]),
                helper.make_node("Add", ["there", "padding"], ["all"]),
                helper.make_node("ReduceSum", ["all", "axes"], ["y"]),
            ],
            signature := _signature({"input_ids": ("int64", -1), "attention_mask": ("int64", -1)}, {"y": ("int64", 1)}),
            {"axes": np.array([1]), "padding": np.array([padding])},
        ),
        signature,
        lambda inputs: {"y": (inputs["input_ids"] * inputs["attention_mask"] + padding).sum(1, keepdims=True)},
        {"input_ids": np.array([[3, 1]]), "attention_mask": np.array([[1, 1]])},
    )


def picture() -> tuple[Graph, Raw]:
    """`image` float32 [-1, 1, 8, 8] -> `logits` float32 [-1, 10], and the processing of PNG files."""
    weight = np.random.default_rng(2).standard_normal((64, 10)).astype(np.float32)
    graph = Graph(
        _model(
            [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "W"], ["logits"])],
            signature := _signature({"image": ("float32", 1, 8, 8)}, {"logits": ("float32", 10)}),
            {"W": weight},
        ),
        signature,
        lambda inputs: {"logits": inputs["image"].reshape(-1, 64) @ weight},
        {},
    )
    processing = Processing(
        before=[DecodeImage(), Grayscale(), Resize(height=8, width=8), Normalize(scale=255), Layout(to="CHW")],
        after=[Softmax(), Labels(names=tuple("0123456789"))],
    )
    return graph, Raw(processing, [png(number) for number in range(4)])


def table() -> tuple[Graph, Raw]:
    """`x` float32 [-1, 4] -> `y` float32 [-1, 3], and the processing of JSON rows with three columns."""
    processing = Processing(
        before=[Columns(numeric=("age", "height"), categorical={"colour": ("red", "blue")})],
        after=[Softmax(), Labels(names=("low", "middle", "high"))],
    )
    rows = [{"age": 1.5, "height": 2, "colour": "red"}, {"age": -3, "height": 0.25, "colour": "blue"}]
    return linear(), Raw(processing, rows)


def png(seed: int, size: int = 8) -> bytes:
    """The bytes of a random grey picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


def answers_of(graph: Graph, raw: Raw, items: Sequence[Any]) -> list[Any]:
    """The answers to raw inputs, without a server."""
    inputs = {graph.signature.inputs[0].name: np.stack([raw.processing.prepare(item) for item in items])}
    return [raw.processing.answer(row) for row in graph.function(inputs)[graph.signature.outputs[0].name]]


def _signature(inputs: Mapping[str, tuple[Any, ...]], outputs: Mapping[str, tuple[Any, ...]]) -> Signature:
    def specs(tensors: Mapping[str, tuple[Any, ...]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype=dtype, shape=(-1, *rest)) for name, (dtype, *rest) in tensors.items())

    return Signature(inputs=specs(inputs), outputs=specs(outputs))


def _model(
    nodes: list[onnx.NodeProto], signature: Signature, constants: Mapping[str, np.ndarray] | None = None
) -> bytes:
    def values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                spec.name,
                helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)),
                [f"{spec.name}_{axis}" if size == -1 else size for axis, size in enumerate(spec.shape)],
            )
            for spec in specs
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", values(signature.inputs), values(signature.outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _stored(raw: Any) -> dict[str, Any]:
    return {"base64": base64.b64encode(raw).decode()} if isinstance(raw, bytes) else {"json": raw}
