"""Calls of Triton's own client, unmodified, to the server whose URL is given; prints what came back as JSON.

A process of its own: the client brings gevent, which changes the process that it is imported into.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
BINARY: dict[str, dict[str, Any]] = {
    "binary": {},
    "binary output": {"outputs": [triton.InferRequestedOutput("y")]},
    "binary in, JSON out": {"outputs": [triton.InferRequestedOutput("y", binary_data=False)]},
    "gzip": {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"},
    "deflate": {"request_compression_algorithm": "deflate", "response_compression_algorithm": "deflate"},
}
IDS, KEEP = np.array([[1, 2, 3]]), np.array([[True, False, True]])


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=False)
    return found


def refused(call: Any, *arguments: Any, **options: Any) -> list[str | None]:
    """The status and the message of the exception that the call must raise."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("it was not refused")


def asked(client: triton.InferenceServerClient) -> dict[str, Any]:
    x = tensor("x", X, "FP32")
    several = [tensor("keep", KEEP, "BOOL"), tensor("ids", IDS, "INT64")]
    dropped = triton.InferRequestedOutput("dropped", binary_data=False)
    plain = client.infer("linear", [x])
    chosen = client.infer("masked", several, outputs=[dropped], request_id="id-7", model_version="1")
    both = client.infer("masked", several)
    later = client.async_infer("linear", [x]).get_result()
    short = tensor("x", X[:, :3].copy(), "FP32")
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("linear"),
        "version ready": client.is_model_ready("picture", "3"),
        "stranger ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata("masked"),
        "version": client.get_model_metadata("picture", "3"),
        "y": plain.as_numpy("y").tolist(),
        "dtype": plain.as_numpy("y").dtype.name,
        "later": later.as_numpy("y").tolist(),
        "kept": both.as_numpy("kept").tolist(),
        "both dropped": both.as_numpy("dropped").tolist(),
        "dropped": chosen.as_numpy("dropped").tolist(),
        "not asked for": chosen.as_numpy("kept"),
        "response": chosen.get_response(),
        "wrong shape": refused(client.infer, "linear", [short]),
        "wrong datatype": refused(client.infer, "linear", [tensor("x", X.astype(np.float64), "FP64")]),
        "wrong name": refused(client.infer, "linear", [tensor("u", X, "FP32")]),
        "wrong output": refused(
            client.infer, "linear", [x], outputs=[triton.InferRequestedOutput("z", binary_data=False)]
        ),
        "wrong model": refused(client.infer, "nobody", [x]),
        "wrong version": refused(client.infer, "linear", [x], model_version="7"),
        "poison": refused(client.infer, "lookup", [tensor("index", np.array([99]), "INT64")]),
        **{name: binary(client, options) for name, options in BINARY.items()},
    }


def binary(client: triton.InferenceServerClient, options: dict[str, Any]) -> Any:
    """What comes back for tensors sent, and asked for, as the client does unless told otherwise."""
    x = triton.InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X)
    return client.infer("linear", [x], **options).as_numpy("y").tolist()


if __name__ == "__main__":
    with triton.InferenceServerClient(sys.argv[1].removeprefix("http://")) as client:
        print(json.dumps(asked(client)))
