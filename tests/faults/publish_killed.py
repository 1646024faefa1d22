"""Publish version 2 of a model beside version 1, and be killed at step N of it.

    python publish_killed.py REPOSITORY N

A step is every 512 bytes written, and every call that changes the store. Exits 0 where N is past the last step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Self

from shipline.artifact import ArtifactManifest, open_model
from shipline.signature import Signature, TensorSpec
from shipline.store import Publication
from shipline.store.store import RemoteStore


def manifest(version: str) -> ArtifactManifest:
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 2))
    return ArtifactManifest(
        name="m", version=version, backend="onnxruntime", model_file="model.onnx", precision="float32",
        signature=Signature(inputs=(spec,), outputs=(spec,)), tolerance={"x": 0.0},
    )  # fmt: skip


def publish(url: str, version: str) -> None:
    model = open_model(url)
    with Publication(model.store.at(version)) as publication:
        publication.add("model.onnx", version.encode() * 4000)
        publication.add("processing.json", version.encode() * 600)
        publication.commit(manifest(version))
    model.point("stable", version)


class Killer:
    """Counts steps; the process dies at the N-th."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def local(self) -> None:
        """Die in the middle of writes, and before each change that the operating system is asked for."""
        open_path = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = open_path(path, mode, *args, **kwargs)
            return SlowFile(file, self) if "x" in mode else file

        Path.open = opened  # type: ignore[method-assign, assignment]
        watched = {"os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
        sys.addaudithook(lambda event, _: self.step() if event in watched else None)

    def remote(self) -> None:
        """Die before and after each request that changes the store."""
        for name in ("write", "create", "remove"):
            self._around(name)

    def _around(self, name: str) -> None:
        original = getattr(RemoteStore, name)

        def around(*args: Any, **kwargs: Any) -> None:
            self.step()
            original(*args, **kwargs)
            self.step()

        setattr(RemoteStore, name, around)


class SlowFile:
    """A file that is written 512 bytes at a time, a step each."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self._file, self._killer = file, killer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), 512):
            self._file.write(data[start : start + 512])
            self._file.flush()
            self._killer.step()


if __name__ == "__main__":
    url, at = sys.argv[1], int(sys.argv[2])
    killer = Killer(at)
    if "://" in url:
        killer.remote()
    else:
        killer.local()
    publish(url, "2")
