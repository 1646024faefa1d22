"""An ONNX file from elsewhere, as an artifact: a start with serving, before anything is trained here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors
import safetensors.numpy
import torch
from google.protobuf.message import Message

from shipline.artifact import REPORT_JSON, Artifact, ArtifactManifest, Model, ServingSettings, Verdict
from shipline.backends.base import Arrays
from shipline.errors import ConfigError, GateError, SignatureError
from shipline.export import gates, report
from shipline.export.apart import apart
from shipline.export.gates import refuse_failed
from shipline.export.golden import from_rows
from shipline.export.latency import batch_of
from shipline.export.plan import BASELINE
from shipline.export.publish import Content, check_version, publish
from shipline.export.rows import Rows
from shipline.export.runtime import Runtime
from shipline.signature import DYNAMIC, OIP_DATATYPES, Signature, TensorSpec

IMPORTED = "imported"
MADE_UP_ROWS, GOLDEN_ROWS = 8, 32
LONGEST_TIMEOUT_S = 1e6


def import_onnx(
    data: bytes,
    model: Model,
    *,
    golden: bytes | None = None,
    version: str | None = None,
    max_batch_size: int = 32,
    timeout: float = 900.0,
) -> Artifact:
    """Publish an ONNX file as a new version of a model.

    With rows and right answers, it must give those; with rows alone, or none (then numbers are made up), its answers on
    this machine become the golden ones. In any case a row's answer must not depend on its batch-mates. The file may be
    anybody's: it is parsed and run in a process of its own.

    Args:
        data: the file, with its weights inside.
        model: where to publish.
        golden: a safetensors file: rows by input name; and by output name the right answers, where they are known.
        version: a number; default: one more than the newest.
        max_batch_size: the largest batch that is tried, and that servers make.
        timeout: how many seconds that may take.

    Raises:
        GateError: it cannot be loaded or run, or answers otherwise; nothing was published.
        SignatureError: its inputs or outputs have no batch dimension, or the rows do not fit them.
        ConfigError: a setting is wrong.
    """
    check_version(model, version)
    _check_settings(max_batch_size, timeout)
    with tempfile.TemporaryDirectory(prefix="shipline-import-") as scratch:
        folder = Path(scratch)
        made = apart(
            lambda: _proved(data, model.name, golden, max_batch_size, folder), f"Importing {model.name}", timeout
        )
        files = {name: (folder / name).read_bytes() for name in made["files"]}
    return publish(model, version, partial(_content, ArtifactManifest.model_validate(made["manifest"]), files))


def _check_settings(max_batch_size: int, timeout: float) -> None:
    if max_batch_size < 1:
        raise ConfigError(f"max_batch_size is {max_batch_size}; set a whole number from 1 on.")
    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"timeout is {timeout:g}; set seconds, above 0 and up to {LONGEST_TIMEOUT_S:.0f}.")


def _proved(data: bytes, name: str, golden: bytes | None, max_batch_size: int, folder: Path) -> dict[str, Any]:
    """Write what is to be published into a folder; return the manifest, and the names of the files."""
    graph = _parsed(data)
    specs = _free_batch(graph)
    settings = ServingSettings(max_batch_size=max_batch_size)
    changed = bytes(graph.SerializeToString())
    inputs, answers = _rows(golden, specs)
    runtime = Runtime(changed, settings)
    signature = Signature(inputs=specs, outputs=_outputs(graph, runtime, inputs))
    _check_names(inputs, answers, signature)
    rows = _recorded(runtime, inputs, answers, signature)
    _check_finite(rows, signature, "golden" if golden else "made-up")
    same, worst = gates.parity(runtime, rows, signature, max_batch_size, BASELINE.tolerance)
    if not answers:
        same = _unproved(same, made_up=golden is None)
    alone = gates.batch_invariance(runtime, rows, signature, max_batch_size, BASELINE.invariance)
    verdicts = [same, alone]
    refuse_failed(name, verdicts)
    tolerance = {name: scale * BASELINE.tolerance for name, scale in gates.scales(rows, signature).items()}
    file = BASELINE.backend_class.model_file
    manifest = ArtifactManifest(
        name=name, version="0", backend=BASELINE.backend, model_file=file, precision=IMPORTED,
        signature=signature, verdicts=verdicts, serving=settings, tolerance=tolerance,
    )  # fmt: skip
    files = {file: changed, **from_rows(rows, signature, GOLDEN_ROWS, worst.row).files()}
    for each, content in files.items():
        (folder / each).write_bytes(content)
    return {"manifest": manifest.model_dump(mode="json"), "files": list(files)}


def _content(manifest: ArtifactManifest, files: dict[str, bytes], version: str) -> Content:
    numbered = manifest.model_copy(update={"version": version})
    said = {
        "schema_version": 1,
        **numbered.model_dump(mode="json", include={"name", "version", "precision", "verdicts"}),
    }
    return numbered, files | {REPORT_JSON: report.to_json(said)}


def _parsed(data: bytes) -> onnx.ModelProto:
    try:
        graph = onnx.load_from_string(data)
        outside = [tensor.name for tensor in _tensors(graph) if tensor.data_location == tensor.EXTERNAL]
        if not outside:
            onnx.checker.check_model(graph)
    except Exception as error:  # protobuf's and the checker's own types
        raise GateError(f"This is no ONNX file that can be served: {str(error).strip()[:500]}") from error
    if outside:
        raise GateError(
            f"The file keeps {len(outside)} of its weights in other files, {outside[0]!r} first. Nothing outside is "
            "read: save it with onnx.save(model, path, save_as_external_data=False)."
        )
    return graph


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in the file, wherever it stands: in branches, in attributes, in functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _tensors(inner)


def _free_batch(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Let the first dimension of inputs and outputs be of any size, and return what goes in."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs or not model.graph.output:
        raise SignatureError("The graph has no inputs, or no outputs: there is nothing to ask it.")
    for value in (*inputs, *model.graph.output):
        _check_tensor(value)
        shape = value.type.tensor_type.shape
        if value in inputs and not shape.dim:
            raise SignatureError(
                f"{value.name!r} has no batch dimension; a server puts rows together along the first one."
            )
        if shape.dim and not shape.dim[0].dim_param:
            shape.dim[0].dim_param = "batch"
    if any(
        dim.HasField("dim_value") for value in model.graph.value_info for dim in value.type.tensor_type.shape.dim[:1]
    ):
        model.graph.ClearField("value_info")  # which may say what the batch was
    return tuple(
        TensorSpec(name=value.name, dtype=_dtype(value), shape=(DYNAMIC, *_sizes(value)[1:])) for value in inputs
    )


def _check_tensor(value: onnx.ValueInfoProto) -> None:
    """Raise SignatureError unless it is a tensor of numbers, which is what golden rows hold."""
    kind = str(value.type.WhichOneof("value")).removesuffix("_type")
    if kind != "tensor":
        raise SignatureError(
            f"{value.name!r} is a {kind}, and no tensor. Export the model anew, without it: skl2onnx, for one, gives a "
            "classifier's scores as a tensor with options={'zipmap': False}."
        )
    if _dtype(value) not in OIP_DATATYPES:
        known = ", ".join(OIP_DATATYPES)
        raise SignatureError(
            f"{value.name!r} is of {onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)}, which golden "
            f"rows cannot hold; they hold {known}. Let the graph take and give numbers."
        )


def _dtype(value: onnx.ValueInfoProto) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name)


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else DYNAMIC for dim in dims]


def _rows(golden: bytes | None, specs: tuple[TensorSpec, ...]) -> tuple[Arrays, Arrays]:
    """Return the rows, made up where there are none, and the answers that are known to be right."""
    if golden is None:
        return {spec.name: _made_up(spec) for spec in specs}, {}
    try:
        arrays = safetensors.numpy.load(golden)
    except (ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"The golden rows are no safetensors file: {error}.") from error
    if missing := [spec.name for spec in specs if spec.name not in arrays]:
        raise SignatureError(f"The golden rows have {', '.join(arrays) or 'nothing'}, but no {', '.join(missing)}.")
    rows = {spec.name: arrays.pop(spec.name) for spec in specs}
    for spec in specs:
        spec.check(rows[spec.name])
    return rows, arrays


def _made_up(spec: TensorSpec) -> np.ndarray:
    if DYNAMIC in spec.shape[1:]:
        raise SignatureError(
            f"{spec.name!r} has the shape {list(spec.shape)}: how large is a row? Give some, as a "
            "safetensors file: --golden"
        )
    shape, dtype = (MADE_UP_ROWS, *spec.shape[1:]), np.dtype(spec.dtype)
    generator = np.random.default_rng(0)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _outputs(model: onnx.ModelProto, runtime: Runtime, inputs: Arrays) -> tuple[TensorSpec, ...]:
    """Return what comes out, as two rows show it."""
    specs = []
    for value, array in zip(model.graph.output, runtime.run(batch_of(inputs, 2)), strict=True):
        if array.ndim == 0 or len(array) != 2:
            raise SignatureError(
                f"Two rows gave {value.name!r} of shape {list(array.shape)}; its first dimension must be the batch. "
                "A graph that was exported for one size keeps it: export it with a dynamic batch."
            )
        said = _sizes(value)[1:] or array.shape[1:]
        specs.append(TensorSpec(name=value.name, dtype=array.dtype.name, shape=(DYNAMIC, *said)))
    return tuple(specs)


def _check_names(inputs: Arrays, answers: Arrays, signature: Signature) -> None:
    """Raise SignatureError unless the answers are for exactly these outputs, one for each row."""
    if answers:
        signature.check_outputs(answers)
    counts = {name: len(array) for name, array in {**inputs, **answers}.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise SignatureError(
            f"The golden arrays must have one and the same number of rows, at least one; found {counts}."
        )


def _recorded(runtime: Runtime, inputs: Arrays, answers: Arrays, signature: Signature) -> Rows:
    count = len(next(iter(inputs.values())))
    outputs = [answers[spec.name] for spec in signature.outputs] if answers else runtime.run(inputs)
    rows = Rows(count)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
    rows.add(tensors, [torch.from_numpy(array.copy()) for array in outputs])
    return rows


def _check_finite(rows: Rows, signature: Signature, kind: str) -> None:
    """A server would refuse the version: it can compare NaN and infinity with nothing."""
    for number, (bad, first) in rows.not_finite.items():
        raise GateError(
            f"{signature.outputs[number].name!r} is NaN or infinite for {bad} of {rows.seen} {kind} rows, first for "
            f"row {first}, and no server can check itself with that. Nothing was published. Give rows that are "
            "answered with numbers, as a safetensors file: --golden"
        )


def _unproved(verdict: Verdict, *, made_up: bool) -> Verdict:
    """The verdict, with what it does not say."""
    source = "made-up rows" if made_up else "the given rows"
    text = f"nobody said what is right: the answers to {source} are the file's own; {verdict.message}"
    return verdict.model_copy(update={"message": text})
