"""The desk of answers, and its server as new for each test."""

from collections.abc import Iterator

import pytest

from tests.api.answers.answering_server import AnsweringServer
from tests.api.answers.conftest import (
    Desk,
    answering,
    app_settings,
    app_url,
    client,
    desk,
    embeddings,
    handbook,
    library,
)

__all__ = ["answering", "app_settings", "app_url", "client", "desk", "embeddings", "handbook", "library"]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def streams(request: pytest.FixtureRequest) -> bool:
    """Whether the answer is asked for as a stream."""
    wanted: bool = request.param
    return wanted


@pytest.fixture
def server(desk: Desk) -> Iterator[AnsweringServer]:
    server = desk.server
    server.streams = True
    yield server
    server.streams, server.thinks, server.calls, server.finish, server.dies = False, "", [], "stop", False
