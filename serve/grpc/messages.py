"""The protocol's messages, as classes.

They are made when this is imported, of inference.binpb: what protoc makes of inference.proto. Generated Python code
would enter their names into the pool that a whole process shares, where Triton's and KServe's clients enter the same
ones, and the second to come fails; here they have a pool of their own. Nor is the file bound to a version of protobuf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from shipline.serve.errors import bad

SERVICE = "inference.GRPCInferenceService"

_POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(Path(__file__).with_name("inference.binpb").read_bytes()).file:
    _POOL.Add(_file)


def message(name: str) -> Any:
    """Return the class of a message of the protocol."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


def method(name: str) -> tuple[Any, Any]:
    """Return the classes of a method's requests and responses."""
    found = _POOL.FindServiceByName(SERVICE).methods_by_name[name]
    return GetMessageClass(found.input_type), GetMessageClass(found.output_type)


def parsed(kind: Any, data: bytes) -> Any:
    """Return the message in `data`; RequestError 400 if it is none of this kind."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise bad(f"The request is no valid {kind.DESCRIPTOR.name}.") from None
