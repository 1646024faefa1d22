"""Calls of Triton's own gRPC clients, unmodified, to the server at the given address; prints what came back as JSON.

A process of its own, as a client's is; what the server reads of the protocol is imported beside the client's own.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from shipline.serve.grpc import messages

WAIT_S = 30
X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
IDS, KEEP = np.array([[1, 2, 3]]), np.array([[True, False, True]])


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> list[str | None]:
    """The code and the message of the exception that the call must raise."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("it was not refused")


def several() -> list[triton.InferInput]:
    return [tensor("keep", KEEP, "BOOL"), tensor("ids", IDS, "INT64")]


def asked(client: triton.InferenceServerClient) -> dict[str, Any]:
    x = tensor("x", X, "FP32")
    chosen = client.infer(
        "masked", several(), outputs=[triton.InferRequestedOutput("dropped")], request_id="id-7", model_version="1"
    )
    both = client.infer("masked", several())
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("linear"),
        "version ready": client.is_model_ready("picture", "3"),
        "stranger ready": client.is_model_ready("nobody"),
        "other version ready": client.is_model_ready("linear", "7"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("masked", as_json=True),
        "config": client.get_model_config("masked", as_json=True)["config"],
        "y": client.infer("linear", [x]).as_numpy("y").tolist(),
        "packed": client.infer("linear", [x], compression_algorithm="gzip").as_numpy("y").tolist(),
        "in time": client.infer("linear", [x], priority=1, timeout=30_000_000).as_numpy("y").tolist(),
        "later": later(client, x),
        "row": client.infer("lookup", [tensor("index", np.array([3, 0]), "INT64")]).as_numpy("row").tolist(),
        "total": client.infer("total", [tensor("x", X, "FP32")]).as_numpy("y").tolist(),
        "kept": both.as_numpy("kept").tolist(),
        "both dropped": both.as_numpy("dropped").tolist(),
        "dropped": chosen.as_numpy("dropped").tolist(),
        "not asked for": chosen.as_numpy("kept"),
        "id": chosen.get_response().id,
        "from": [chosen.get_response().model_name, chosen.get_response().model_version],
        "statistics": client.get_inference_statistics("masked", as_json=True)["model_stats"],
        "all statistics": [item["name"] for item in client.get_inference_statistics(as_json=True)["model_stats"]],
        **{f"refused: {name}": refused(*call) for name, call in wrong(client, x).items()},
    }


def wrong(client: triton.InferenceServerClient, x: triton.InferInput) -> dict[str, tuple[Any, ...]]:
    return {
        "shape": (client.infer, "linear", [tensor("x", X[:, :3].copy(), "FP32")]),
        "datatype": (client.infer, "linear", [tensor("x", X.astype(np.float64), "FP64")]),
        "name": (client.infer, "linear", [tensor("u", X, "FP32")]),
        "output": (client.infer, "linear", [x], "", [triton.InferRequestedOutput("z")]),
        "classes": (client.infer, "linear", [x], "", [triton.InferRequestedOutput("y", class_count=2)]),
        "model": (client.infer, "nobody", [x]),
        "version": (client.infer, "linear", [x], "7"),
        "poison": (client.infer, "lookup", [tensor("index", np.array([99]), "INT64")]),
        "metadata": (client.get_model_metadata, "nobody"),
        "config": (client.get_model_config, "nobody"),
        "statistics": (client.get_inference_statistics, "nobody"),
        "load": (client.load_model, "nobody"),
        "unload": (client.unload_model, "../nobody"),
        "files": (client.load_model, "linear", None, "{}"),
        "shared memory": (client.get_system_shared_memory_status,),
    }


def later(client: triton.InferenceServerClient, x: triton.InferInput) -> Any:
    results: queue.Queue[Any] = queue.Queue()
    client.async_infer("linear", [x], lambda result, error: results.put((result, error)))
    result, error = results.get(timeout=WAIT_S)
    assert error is None, error
    return result.as_numpy("y").tolist()


def streamed(client: triton.InferenceServerClient) -> list[Any]:
    """Twenty requests in one stream, more than are in work at a time; the fifth is for a model that is not here."""
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for number in range(20):
        model = "nobody" if number == 4 else "linear"
        client.async_stream_infer(model, [tensor("x", X * number, "FP32")], request_id=str(number))
    answers = [results.get(timeout=WAIT_S) for _ in range(20)]
    client.stop_stream()
    return [
        error.message() if error else [result.get_response().id, result.as_numpy("y").tolist()]
        for result, error in answers
    ]


def moved(client: triton.InferenceServerClient) -> dict[str, Any]:
    """Unload and load a model, and what the index says of it."""

    def state() -> Any:
        index = client.get_model_repository_index(as_json=True)["models"]
        return next([model["state"], model.get("reason", "")] for model in index if model["name"] == "logarithm")

    before = state()
    client.unload_model("logarithm")
    unloaded, ready = state(), client.is_model_ready("logarithm")
    client.load_model("logarithm")
    return {"before": before, "unloaded": unloaded, "ready": ready, "after": state()}


async def asynchronously(address: str) -> dict[str, Any]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            yield {"model_name": "linear", "inputs": [tensor("x", X * number, "FP32")], "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        numbers = range(64)
        found = await asyncio.gather(*(client.infer("linear", [tensor("x", X * n, "FP32")]) for n in numbers))
        stream = client.stream_infer(requests())
        return {
            "ready": await client.is_server_ready(),
            "y": [result.as_numpy("y").tolist() for result in found],
            "streamed": [result.as_numpy("y").tolist() async for result, error in stream if error is None],
        }


def fields(descriptor: Any) -> dict[str, list[Any]]:
    """Number, type and cardinality of each field."""
    return {
        field.name: [field.number, field.type, field.is_repeated, field.message_type and field.message_type.full_name]
        for field in descriptor.fields
    }


def numbers() -> dict[str, Any]:
    """Every message of ours, as the server and as the client has it; methods too."""
    found: dict[str, Any] = {}
    service, theirs = messages._POOL.FindServiceByName(messages.SERVICE), service_pb2.DESCRIPTOR.pool
    for name in service.file.message_types_by_name:
        ours, other = messages.message(name).DESCRIPTOR, theirs.FindMessageTypeByName(f"inference.{name}")
        found[name] = [fields(ours), {key: value for key, value in fields(other).items() if key in ours.fields_by_name}]
        for inner in ours.nested_types_by_name:
            pair = ours.nested_types_by_name[inner], other.nested_types_by_name[inner]
            found[f"{name}.{inner}"] = [fields(descriptor) for descriptor in pair]
    other = theirs.FindServiceByName(messages.SERVICE)
    found["methods"] = [
        {m.name: [m.input_type.name, m.output_type.name] for m in of.methods if m.name in service.methods_by_name}
        for of in (service, other)
    ]
    return found


if __name__ == "__main__":
    with triton.InferenceServerClient(sys.argv[1]) as client:
        answers = {**asked(client), "streamed": streamed(client), "moved": moved(client), "numbers": numbers()}
    answers["asynchronously"] = asyncio.run(asynchronously(sys.argv[1]))
    print(json.dumps(answers))
