"""A server with every kind of model, and a repository with one, for the tests of one file; and either client."""

from __future__ import annotations

from collections.abc import Iterator

import artifacts
import pytest
from clients import Twin
from serving import publish_all

from shipline.client import AsyncClient, Client
from shipline.serve.server import BackgroundServer


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server."""
    repository = tmp_path_factory.mktemp("repository")
    publish_all(repository)
    with BackgroundServer(str(repository)) as server:
        yield server.url


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with one model."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish(f"{root}/linear", artifacts.linear())
    return str(root)


@pytest.fixture(params=[Client, AsyncClient])
def ask(request: pytest.FixtureRequest) -> Twin:
    """Either client."""
    return Twin(request.param)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    seen: list[float] = []

    async def note(seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr("shipline.client.synchronous.sleep", seen.append)
    monkeypatch.setattr("shipline.client.asynchronous.sleep", note)
    return seen
