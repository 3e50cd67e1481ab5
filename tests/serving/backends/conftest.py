from collections.abc import Iterator

import pytest

from tests.serving.backends.stand_in import StandIn


@pytest.fixture
def server() -> Iterator[StandIn]:
    server = StandIn().start()
    yield server
    server.stop()
