"""Which models this server has, and how far each has come."""

from __future__ import annotations

from collections.abc import Callable

from shipline.artifact import Artifact, find_artifacts
from shipline.errors import ConfigError
from shipline.serve.errors import RequestError
from shipline.serve.metrics import Metrics
from shipline.serve.model import ServedModel
from shipline.serve.trust import Trust


class Repository:
    """The models below one URL. Knows no HTTP; tells `on_ready` of each model that takes traffic."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        on_ready: Callable[[ServedModel], None] = lambda model: None,
        trust: Trust | None = None,
    ) -> None:
        self.url = url
        self._trust = trust or Trust()
        self._metrics = metrics
        self._on_ready = on_ready
        self._models: dict[str, ServedModel] = {}
        self._loading: set[str] = set()
        self.complete = False

    def find(self) -> list[Artifact]:
        """Return what there is to load; blocking, and the first thing that touches the storage."""
        artifacts = find_artifacts(self.url)
        names = [artifact.manifest.name for artifact in artifacts]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two models below the URL have one name: {', '.join(names)}. Serve them apart.")
        self._loading = set(names)
        return artifacts

    async def load(self, artifact: Artifact) -> ServedModel:
        """Load one model, let it prove itself, and let it take traffic."""
        model = await ServedModel.load(artifact, self._metrics, self._trust)
        self._models[model.name] = model
        self._loading.discard(model.name)
        model.metrics.ready(value=True)
        self._on_ready(model)
        return model

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
            if name in self._loading or not self.complete:
                raise RequestError(503, "The model is being loaded. Try again in a second.", {"retry-after": "1"})
            raise RequestError(404, "There is no such model here.")
        if version is not None and version != model.version:
            raise RequestError(404, "There is no such version of the model here.")
        return model

    def close(self) -> None:
        """Give everything back."""
        for model in self._models.values():
            model.close()
        self._models.clear()
