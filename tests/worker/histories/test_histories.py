"""The engine against its model: many histories, and in none of them is anything lost, doubled or stuck."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from db.doorbell import Doorbell
from db.settings import Settings
from tests.worker.histories.machine import Histories
from tests.worker.histories.world import World

SHORT, LONG = 12, 2000


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("worker.attempt.RETRY_SECONDS", 0)
    doorbell = Doorbell(settings.require_redis_url())
    world = World(settings, doorbell)
    yield world
    doorbell.close()
    world.close()


def live(world: World, *, histories: int, reproducible: bool) -> None:
    run_state_machine_as_test(
        lambda: Histories(world),
        settings=settings(
            max_examples=histories,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=reproducible,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_twelve_histories(world: World) -> None:
    live(world, histories=SHORT, reproducible=True)


@pytest.mark.slow
def test_two_thousand_histories(world: World) -> None:
    """Others each time, so that those who run it look further."""
    live(world, histories=LONG, reproducible=False)
