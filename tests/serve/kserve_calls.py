"""Calls of KServe's own clients, unmodified, to the server and the address of gRPC that are given; prints them as JSON.

A process of its own, which finds kserve and its older protobuf before ours (see test_kserve.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
IDS, KEEP = np.array([[1, 2, 3]]), np.array([[True, False, True]])


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool) -> InferInput:
    found = InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def linear(*, binary: bool, **options: Any) -> InferRequest:
    return InferRequest("linear", [tensor("x", X, "FP32", binary=binary)], **options)


def masked(*, binary: bool) -> InferRequest:
    inputs = [tensor("keep", KEEP, "BOOL", binary=binary), tensor("ids", IDS, "INT64", binary=binary)]
    outputs = [RequestedOutput("dropped", {"binary_data": binary})]
    return InferRequest("masked", inputs, request_id="id-7", request_outputs=outputs)


def told(response: Any) -> dict[str, Any]:
    """What a response says, and its arrays."""
    arrays = {output.name: output.as_numpy().tolist() for output in response.outputs}
    return {"id": response.id, "model": response.model_name, **arrays}


async def rest(url: str) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    old = InferenceRESTClient(RESTConfig(protocol="v1", retries=0))
    try:
        found = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, "linear"),
            "stranger ready": await refused(client.is_model_ready(url, "nobody")),
            "v1 ready": await old.is_model_ready(url, "linear"),
            "v1": await old.infer(url, {"instances": X.tolist()}, model_name="linear"),
            "wrong model": await refused(client.infer(url, linear(binary=True), model_name="nobody")),
        }
        for form, binary in (("JSON", False), ("binary", True)):
            found[form] = told(await client.infer(url, linear(binary=binary), model_name="linear"))
            found[f"{form} asked for"] = told(await client.infer(url, masked(binary=binary), model_name="masked"))
    finally:
        await client.close()
        await old.close()
    return found


async def rpc(address: str) -> dict[str, Any]:
    async with InferenceGRPCClient(address, retries=0) as client:
        wrong = linear(binary=True)
        wrong.model_name = "nobody"
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready("linear"),
            "stranger ready": await client.is_model_ready("nobody"),
            "wrong model": await refused(client.infer(wrong)),
            "typed": told(await client.infer(linear(binary=False))),
            "raw": told(await client.infer(linear(binary=True))),
            "raw asked for": told(await client.infer(masked(binary=True))),
        }


async def refused(call: Any) -> Any:
    """The status of the exception that the call raises, or what it gave."""
    try:
        return await call
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    except grpc.RpcError as error:
        return error.code().name


async def main(url: str, address: str) -> dict[str, Any]:
    return {"rest": await rest(url), "grpc": await rpc(address)}


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # it logs what it raises
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
