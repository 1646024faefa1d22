"""A version of a model, ready to answer: processing, batcher and backend put together."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from shipline.artifact import PROCESSING, Artifact, ArtifactManifest, ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores
from shipline.errors import InputError, ProcessingError, SignatureError
from shipline.processing import Processing
from shipline.serve.batcher import Batcher
from shipline.serve.errors import bad
from shipline.serve.golden import Example, GoldenRows, replay
from shipline.serve.hosting import Hosting
from shipline.serve.isolated import IsolatedBackend, backend_class
from shipline.serve.jobs import Job, Terms
from shipline.serve.memory import resident
from shipline.serve.tensors import check_length
from shipline.serve.threads import in_thread
from shipline.serve.unproven import UnprovenModel
from shipline.signature import BYTES, DYNAMIC, Signature

QUEUED_BATCHES = 64
# Handing a batch to a thread costs about this much, and makes others wait about as long.
INLINE_S = 5e-4
# What the event loop does for one request; a backend that takes less for it is not what keeps others waiting.
REQUEST_S = 5e-5
# A batch that takes longer is slow, however often it is timed.
SURE_S = 0.25
# A model whose last batch ended longer ago is asked for a row when somebody wants to know whether it lives; and so long
# it may take, or as much longer than its largest batch took.
RECENT_S, ALIVE_S, TIMES = 5.0, 4.0, 5.0
# What a graph has in its file that does something as often, or as large, as its inputs say: the kind of a node of ONNX.
_AS_TOLD = (b"\x22\x04Loop", b"\x22\x05Range", b"\x22\x0fConstantOfShape")


class ServedModel:
    """One version that takes traffic. Knows models and tensors; knows nothing of HTTP."""

    def __init__(
        self,
        manifest: ArtifactManifest,
        backend: Backend,
        processing: Processing | None,
        example: Example,
        hosting: Hosting,
        *,
        graph: bytes = b"",
    ) -> None:
        self.manifest = manifest
        self.processing = processing
        self.example = example
        self.metrics = hosting.metrics.for_model(manifest.name, manifest.version)
        tracing = hosting.tracing
        self.tracing = None if tracing is None else tracing.for_model(manifest.name, manifest.version)
        self._backend = backend
        self._memory = hosting.memory
        self.batch_delay_s = hosting.batch_delay_s
        self.file_bytes = self.memory_bytes = 0
        self._users, self._unused = 0, asyncio.Event()
        settings = manifest.serving
        preferred = settings.preferred_batch_size if backend.device == "cpu" else None  # measured on a CPU
        self.batch_size = min(preferred or settings.max_batch_size, settings.max_batch_size)
        batch_s = _batch_seconds(backend, example.inputs, settings.max_batch_size)
        self._alive_s = max(ALIVE_S, TIMES * batch_s)
        self._canary: asyncio.Task[bool] | None = None
        threads = threads_for(batch_s, settings)
        if not threads and (isinstance(backend, IsolatedBackend) or _takes_any_size(manifest.signature, graph)):
            threads = 1  # the event loop waits for no other process, nor for as long as a client likes
        self.instances = max(threads, 1)
        self._batcher = Batcher(
            backend.run,
            max_batch=self.batch_size,
            max_queued=settings.max_batch_size * QUEUED_BATCHES,
            threads=threads,
            stats=self.metrics,
            traced=None if self.tracing is None else self.tracing.batch,
            delay_s=hosting.batch_delay_s,
        )

    @classmethod
    async def load(cls, artifact: Artifact, hosting: Hosting) -> ServedModel:
        """Return the model behind an artifact, after it has answered its own golden rows as the trained module did.

        Raises:
            IntegrityError: a file is damaged.
            ServingError: an answer to a golden row is wrong on this machine, or it holds code and is not trusted.
        """
        rows = artifact if isinstance(artifact, UnprovenModel) else GoldenRows(artifact)
        model = await in_thread(cls._open, artifact, rows.example(), hosting)
        if isinstance(rows, GoldenRows):
            try:
                await replay(model, rows)
            except BaseException:
                model.close()
                raise
        return model

    @classmethod
    def _open(cls, artifact: Artifact, example: Example, hosting: Hosting) -> ServedModel:
        manifest = artifact.manifest
        chosen = backend_class(manifest.backend, hosting.device)
        hosting.trust.check(artifact, chosen)
        processing = Processing.from_json(artifact.read(PROCESSING)) if PROCESSING in artifact else None
        graph = artifact.read(manifest.model_file)
        hosting.memory.check(manifest.name, len(graph))
        before = resident()
        backend = chosen.load(graph, manifest.serving)
        try:
            model = cls(manifest, backend, processing, example, hosting, graph=graph)
        except BaseException:
            backend.close()
            raise
        try:
            model.take_memory(len(graph), before)
        except BaseException:
            model.close()
            raise
        return model

    def take_memory(self, at_least: int, before: int) -> None:
        """Count the memory that it takes.

        Args:
            at_least: bytes of its file.
            before: bytes of this process when it was not loaded.

        Raises:
            MemoryLimitError: that is too much.
        """
        backend = self._backend
        grown = resident(backend.pid) if isinstance(backend, IsolatedBackend) else resident() - before
        self.file_bytes, self.memory_bytes = at_least, max(grown, at_least)
        self._memory.check(self.name, self.memory_bytes)
        self._memory.take(self, self.memory_bytes)

    def tell(self, *, ready: bool) -> None:
        """Tell the metrics that it takes traffic, or that no model of its name and version does any more."""
        self.metrics.ready(value=ready)
        self.metrics.memory(*((self.file_bytes, self.memory_bytes) if ready else (0, 0)))

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The version's number."""
        return self.manifest.version

    @property
    def device(self) -> str:
        """What it computes on."""
        return self._backend.device

    @property
    def available(self) -> bool:
        """Whether requests are taken now, and not refused because the backend has failed too often."""
        return self._backend.available

    async def alive(self) -> bool:
        """Return whether it still computes, by an answer and not by having been loaded.

        A backend in a process of its own always does: that is watched, and replaced, by itself.
        """
        if isinstance(self._backend, IsolatedBackend):
            return True
        if self._canary is None or self._canary.done():  # however many ask
            row = {name: array[:1] for name, array in self.example.inputs.items()}
            self._canary = asyncio.create_task(self._batcher.responds(row, RECENT_S, self._alive_s))
        return await asyncio.shield(self._canary)

    async def infer(self, inputs: Arrays, rows: int, terms: Terms | None = None) -> Arrays:
        """Return the outputs for tensors that match the signature.

        Raises:
            RequestError: too few or too many rows, too many requests, values that the runtime does not compute with, or
                no answer in time.
        """
        self._check(inputs, rows)
        try:
            return await self._batcher.submit(inputs, rows, terms)
        except InputError as error:
            raise bad(str(error)) from error

    def begin(self, inputs: Arrays, rows: int, terms: Terms) -> Job:
        """Let rows wait, and return the job whose future ends as `infer` does, but for InputError."""
        self._check(inputs, rows)
        return self._batcher.begin(inputs, rows, terms)

    def check_room(self) -> None:
        """Raise RequestError 503 where one more request would be refused: its body need not be looked at."""
        self._batcher.check_room()

    def forget(self, job: Job) -> None:
        """Drop a job whose sender is gone."""
        self._batcher.forget(job)

    def _check(self, inputs: Arrays, rows: int) -> None:
        serving = self.manifest.serving
        if not 1 <= rows <= serving.max_batch_size:
            raise bad(f"A request has 1 to {serving.max_batch_size} rows for this model; got {rows}.")
        if serving.longest is not None:
            check_length(inputs, serving.longest)

    def prepare(self, raw: Any, *, whole: bool = False) -> Arrays:
        """Return the tensors for one raw input, or those at full length; RequestError where it is at fault."""
        if self.processing is None:
            raise bad("This model has no processing of raw inputs: send tensors to its infer endpoint.")
        try:
            steps = self.processing.whole if whole else self.processing
            return steps.inputs(raw, self.manifest.signature)
        except (ProcessingError, SignatureError) as error:
            raise bad(str(error)) from error

    def answer(self, outputs: Arrays) -> Any:
        """Return what people see for the outputs of one row."""
        assert self.processing is not None
        return self.processing.answer(outputs[self.manifest.signature.outputs[0].name][0])

    def enter(self) -> None:
        """Count a request that will ask this model: it may still be arriving when another version takes the traffic."""
        self._users += 1

    def leave(self) -> None:
        """Count one less."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def drain(self) -> None:
        """Return when nothing that was accepted is arriving, waiting or running."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await self._batcher.drain()

    def close(self) -> None:
        """Give back threads and memory."""
        self._memory.give_back(self)
        self._batcher.close()
        self._backend.close()


def threads_for(batch_seconds: float, settings: ServingSettings) -> int:
    """How many batches run at once: as many as keep the cores busy, where it is the backend that does."""
    if batch_seconds < INLINE_S:
        return 0
    if batch_seconds < REQUEST_S * settings.max_batch_size:
        return 1
    return max(cores() // settings.threads, 1)


def _takes_any_size(signature: Signature, graph: bytes) -> bool:
    """Whether a row may be larger, or mean more work, than those by which the model was timed."""
    free = any(spec.dtype == BYTES or DYNAMIC in spec.shape[1:] for spec in signature.inputs)
    return free or any(kind in graph for kind in _AS_TOLD)


def _batch_seconds(backend: Backend, row: Arrays, rows: int) -> float:
    """Warm up, and return how long the largest batch takes; of a real row, since dynamic dimensions count."""
    inputs = {name: np.repeat(array, rows, axis=0) for name, array in row.items()}
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        backend.run(inputs)
        taken.append(time.perf_counter() - began)
        if taken[-1] > SURE_S:
            break
    return min(taken)
