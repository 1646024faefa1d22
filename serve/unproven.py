"""Plain model files beside artifacts: served as tensors, and marked as what nobody has proved.

`<name>.onnx`, `<name>/model.onnx`, or Triton's layout `<name>/<version>/model.onnx`; `shipline import` makes an
artifact of such a file, with golden rows and a verdict.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shipline.artifact import Artifact, ArtifactManifest, ServingSettings
from shipline.errors import NotFoundError, ServingError
from shipline.serve.golden import Example
from shipline.signature import Signature, zeros
from shipline.store import Store, absolute, is_name, open_store, split
from shipline.store.commit import MANIFEST

UNPROVEN = "unproven"
BACKEND, MODEL_FILE = "onnxruntime", "model.onnx"
SUFFIX = ".onnx"
TIMEOUT_S = 120.0


class UnprovenModel(Artifact):
    """A model file without a manifest: what an artifact would say of it is read off the file."""

    def __init__(self, store: Store, key: str, name: str, version: str) -> None:
        self._data = store.read(key)
        said = _examined(self._data, f"{store}/{key}")
        signature = Signature.model_validate(said["signature"])
        serving = ServingSettings(**{name: said[name] for name in ("max_batch_size", "preferred_batch_size")})
        manifest = ArtifactManifest(
            name=name, version=version, backend=BACKEND, model_file=MODEL_FILE, precision=UNPROVEN,
            signature=signature, tolerance={}, serving=serving,
            digest=hashlib.sha256(self._data).hexdigest(),
        )  # fmt: skip
        super().__init__(store, manifest)
        self._size = int(said["size"])

    def __contains__(self, name: str) -> bool:
        return name == MODEL_FILE

    def read(self, name: str) -> bytes:
        """Return the model's bytes."""
        return self._data

    def example(self) -> Example:
        """Return a row of zeros, which need not be like any that is ever asked for."""
        return Example(zeros(self.manifest.signature.inputs, 1, self._size), {}, None, None)


def find_unproven(url: str, wanted: Callable[[str], bool]) -> list[UnprovenModel]:
    """Return the plain models at or below the URL whose names are wanted.

    Raises:
        ServingError: one cannot be served: it is damaged, or has no batch dimension.
    """
    return [
        UnprovenModel(store, key, name, version)
        for store, key, name, version in _files(url)
        if is_name(name) and wanted(name)
    ]


def _files(url: str) -> Iterator[tuple[Store, str, str, str]]:
    """Yield store, key, name and version of each model file without a manifest."""
    last = absolute(url).rstrip("/").rpartition("/")[2]
    if last.endswith(SUFFIX):
        yield open_store(split(absolute(url))[0]), last, last.removesuffix(SUFFIX), "1"
        return
    store = open_store(url)
    names = _listed(store)
    if MANIFEST in names:
        return
    if MODEL_FILE in names or any(name.isdecimal() for name in names):
        yield from _of_one(store, "", names, last)
        return
    for name in names:
        if name.endswith(SUFFIX):
            yield store, name, name.removesuffix(SUFFIX), "1"
        elif is_name(name):
            yield from _of_one(store, f"{name}/", _listed(store.at(name)), name)


def _of_one(store: Store, below: str, names: list[str], name: str) -> Iterator[tuple[Store, str, str, str]]:
    versions = sorted((int(number) for number in names if number.isdecimal()), reverse=True)
    for version in map(str, versions):
        inside = _listed(store.at(f"{below}{version}"))
        if MANIFEST in inside:
            return
        if MODEL_FILE in inside:
            yield store, f"{below}{version}/{MODEL_FILE}", name, version
            return
    if MODEL_FILE in names:
        yield store, f"{below}{MODEL_FILE}", name, "1"


def _listed(store: Store) -> list[str]:
    try:
        return store.list()
    except NotFoundError:
        return []


def _examined(data: bytes, where: str) -> dict[str, Any]:
    """Return what a process of its own has found out about the file, which may be anybody's and end that process."""
    with tempfile.TemporaryDirectory(prefix="shipline-unproven-") as scratch:
        (file := Path(scratch) / MODEL_FILE).write_bytes(data)
        command = [sys.executable, "-m", "shipline.backends.examination", str(file)]
        try:
            done = subprocess.run(  # noqa: S603 -- of this interpreter
                command, capture_output=True, check=False, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise ServingError(f"{where} takes longer than {TIMEOUT_S:g} s to load and run once.") from None
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        if "error" not in found:
            return found
        raise ServingError(f"{where} cannot be served: {found['error']}")
    raise ServingError(
        f"{where} cannot be served: loading it, or running it once, ended its process ({done.returncode}). "
        "It is damaged, needs more memory than there is, or is no ONNX file."
    )
