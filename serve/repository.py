"""Which models this server has, how far each has come, and what an operator may do with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from shipline.artifact import Artifact, find_artifact, find_artifacts
from shipline.errors import ConfigError, NotFoundError
from shipline.serve.errors import MemoryLimitError, RequestError
from shipline.serve.hosting import Hosting
from shipline.serve.model import ServedModel
from shipline.serve.threads import in_thread
from shipline.serve.unproven import UnprovenModel, find_unproven
from shipline.store import is_name

logger = logging.getLogger(__name__)


class State(StrEnum):
    """How far a model has come, in the words of the Open Inference Protocol's model repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Status:
    """What is said of a model to whoever asks."""

    name: str
    version: str
    state: State
    reason: str = ""


class Repository:
    """The models below one URL. Knows no HTTP; tells `on_ready` and `on_gone` of models that take traffic, or no more.

    All its methods belong to one event loop. What is done to one model is done alone: who comes meanwhile is refused.
    """

    def __init__(
        self,
        url: str,
        hosting: Hosting,
        on_ready: Callable[[ServedModel], None] = lambda model: None,
        on_gone: Callable[[ServedModel], None] = lambda model: None,
    ) -> None:
        self.url = url
        self._hosting = hosting
        self._on_ready, self._on_gone = on_ready, on_gone
        self._models: dict[str, ServedModel] = {}
        self._statuses: dict[str, Status] = {}
        self._busy: set[str] = set()
        self.complete = False

    async def load_all(self, but: Container[str] = (), pinned: Mapping[str, str] = MappingProxyType({})) -> None:
        """Load what there is to load when the server starts, but for these names.

        Args:
            but: names of models that are not wanted.
            pinned: name -> version of models of which another than the stable version is wanted.

        Raises:
            ShiplineError: a model cannot be loaded, or there is none.
        """
        artifacts = await in_thread(self._find_all)
        names = [artifact.manifest.name for artifact in artifacts]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two models below the URL have one name: {', '.join(names)}. Serve them apart.")
        wanted = [artifact for artifact in artifacts if artifact.manifest.name not in but]
        artifacts = [await in_thread(self._pinned, one, pinned.get(one.manifest.name)) for one in wanted]
        for artifact in artifacts:
            self._tell(artifact.manifest.name, artifact.manifest.version, State.LOADING)
        for artifact in artifacts:
            async with self._alone(artifact.manifest.name):
                await self._load(artifact)
        self.complete = True

    async def load(self, name: str) -> None:
        """Load the version of a model that is stable now; one that takes traffic does so until the other is ready.

        Raises:
            RequestError: 404, there is no such model; 409, something else is being done to it; 422, it cannot be
                loaded, and what took traffic before still does.
        """
        async with self._alone(name):
            before = self._statuses.get(name)
            version = before.version if before else ""
            self._tell(name, version, State.LOADING)
            try:
                artifact = await in_thread(self._find, name)
                await self._load(artifact)
            except NotFoundError:
                self._put_back(name, before)
                raise no_such_model() from None
            except MemoryLimitError as error:
                logger.error("%s", error)
                self._put_back(name, before or Status(name, "", State.UNAVAILABLE, "there is no memory for it"))
                raise RequestError(507, str(error)) from error
            except Exception as error:  # runtimes raise what they like
                logger.error("Model %r cannot be loaded: %s", name, error)
                self._put_back(name, before or Status(name, "", State.UNAVAILABLE, "it could not be loaded"))
                raise RequestError(422, "The model cannot be loaded; the server's log says why.") from error
            except asyncio.CancelledError:
                self._put_back(name, before)
                raise

    async def unload(self, name: str) -> None:
        """Take the traffic from a model, let what it accepted finish, and give its memory back.

        Raises:
            RequestError: 404, there is no such model; 409, something else is being done to it.
        """
        async with self._alone(name):
            model = self._models.pop(name, None)
            if model is None:
                raise no_such_model()
            await self._retire(model, State.UNLOADING)
            self._tell(name, model.version, State.UNAVAILABLE, "unloaded")

    def index(self, *, ready: bool = False) -> list[Status]:
        """Return what is known of each model, by name; or of those alone that are ready."""
        found = [self._status(name) for name in sorted(self._statuses)]
        return [status for status in found if status.state is State.READY or not ready]

    def models(self) -> list[ServedModel]:
        """Return the models that take traffic."""
        return list(self._models.values())

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that takes traffic.

        Raises:
            RequestError: 404, there is no such model or version; 503, it is being loaded.
        """
        model = self._models.get(name)
        if model is None:
            status = self._statuses.get(name)
            if not self.complete or (status and status.state is State.LOADING):
                raise RequestError(503, "The model is being loaded. Try again in a second.", {"retry-after": "1"})
            raise no_such_model()
        if version is not None and version != model.version:
            raise RequestError(404, "There is no such version of the model here.")
        return model

    def close(self) -> None:
        """Give everything back."""
        for model in self._models.values():
            model.close()
        self._models.clear()

    def _find_all(self) -> list[Artifact]:
        """Return the artifacts below the URL, and the plain models beside them."""
        missing: NotFoundError | None = None
        artifacts: list[Artifact] = []
        try:
            artifacts = find_artifacts(self.url)
        except NotFoundError as error:
            missing = error
        taken = {artifact.manifest.name for artifact in artifacts}
        found = artifacts + find_unproven(self.url, lambda name: name not in taken)
        if not found and missing is not None:
            raise missing
        return found

    def _pinned(self, artifact: Artifact, version: str | None) -> Artifact:
        if version in (None, artifact.manifest.version) or isinstance(artifact, UnprovenModel):
            return artifact
        try:
            return find_artifact(self.url, artifact.manifest.name, version)
        except NotFoundError as error:
            logger.warning("%s The stable version is loaded instead.", error)
            return artifact

    def _find(self, name: str) -> Artifact:
        try:
            return find_artifact(self.url, name)
        except NotFoundError:
            if found := find_unproven(self.url, lambda other: other == name):
                return found[0]
            raise

    async def _load(self, artifact: Artifact) -> None:
        """Load one version, let it prove itself, and let it take the traffic from what took it before."""
        name = artifact.manifest.name
        # Several at a time, by threads that are not waited for when the process ends.
        await asyncio.gather(*(in_thread(artifact.read, name) for name in artifact.manifest.files))
        model = await ServedModel.load(artifact, self._hosting)
        before, self._models[name] = self._models.get(name), model
        self._on_ready(model)
        model.tell(ready=True)
        self._tell(name, model.version, State.READY)
        logger.info("%s version %s (%s) is ready: %s", name, model.version, model.manifest.precision, artifact)
        if before is not None:
            await self._retire(before)

    async def _retire(self, model: ServedModel, state: State | None = None) -> None:
        if state is not None:
            self._tell(model.name, model.version, state)
            self._on_gone(model)
        await model.drain()
        model.close()
        now = self._models.get(model.name)
        if now is None or now.version != model.version:  # the same version may have been loaded again
            model.tell(ready=False)

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        if not is_name(name):  # before any storage is asked about it
            raise no_such_model()
        if name in self._busy:
            raise RequestError(409, "The model is being loaded or unloaded already. Try again when that is over.")
        self._busy.add(name)
        try:
            yield
        finally:
            self._busy.discard(name)

    def _tell(self, name: str, version: str, state: State, reason: str = "") -> None:
        self._statuses[name] = Status(name, version, state, reason)

    def _status(self, name: str) -> Status:
        status, model = self._statuses[name], self._models.get(name)
        if status.state is State.READY and model is not None and not model.available:
            return Status(name, status.version, State.UNAVAILABLE, "it has failed too often, and is started again soon")
        return status

    def _put_back(self, name: str, status: Status | None) -> None:
        if status is None:
            self._statuses.pop(name, None)
        else:
            self._statuses[name] = status


def no_such_model() -> RequestError:
    """Return the error for a name that nothing here has."""
    return RequestError(404, "There is no such model here.")
