"""Several processes do a step together: the first one speaks, and whichever falls ends all of them."""

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.worker.test_run_step import JOB, Started, start  # noqa: F401 - a fixture
from worker.launch import Launch, Spawned

if TYPE_CHECKING:
    from tests.worker.conftest import Processes

PATIENCE_SECONDS = 120  # torch is loaded three times, on cores that others keep busy


def done(one: Started) -> Any:
    one.listen(lambda: one.child.exit is not None, seconds=PATIENCE_SECONDS)
    return one.child.exit


@pytest.fixture
def launch() -> Launch:
    """As a step that holds GPUs is started."""
    return Spawned


@pytest.fixture
def begin(start: Callable[..., Started]) -> Callable[[str], Started]:  # noqa: F811
    return lambda what: start(what, module="toy_ranks", lives=PATIENCE_SECONDS)


class TestRanks:
    def test_one_that_is_killed_ends_all_by_its_signal(
        self, begin: Callable[[str], Started], processes: "Processes"
    ) -> None:
        """As if the step's only process had been killed: so the platform asks whether memory ran out."""
        one = begin("be_killed")
        assert done(one).signal == signal.SIGKILL
        assert [message["message"] for message in one.of("event")] == ["Working."]
        assert [message["values"] for message in one.of("metrics")] == [{"loss": 0.5}]
        [word] = one.of("failed")
        assert word["message"] == (
            "Rank 1 of the 2 that work together ended by signal 9 (SIGKILL): at work | about to go"
        )
        assert "[rank 0] at work" in one.child.tail
        one.child.close()
        assert processes(f"{JOB}/") == []

    @pytest.mark.slow
    def test_what_the_first_returns_is_the_result(self, begin: Callable[[str], Started]) -> None:
        one = begin("quick")
        assert done(one).code == 0
        [result] = one.of("result")
        assert result["result"] == {"first": True, "ranks": 2}

    @pytest.mark.slow
    def test_one_that_falls_is_named_with_its_last_line(self, begin: Callable[[str], Started]) -> None:
        one = begin("crash")
        assert done(one).code == 1
        [word] = one.of("failed")
        assert (
            word["message"] == "Rank 1 of the 2 that work together ended by exit code 1: RuntimeError: boom"
        )

    @pytest.mark.slow
    def test_memory_that_runs_out_in_one_has_run_out(self, begin: Callable[[str], Started]) -> None:
        one = begin("exhaust")
        assert done(one).code == 3
        assert [word["code"] for word in one.of("exhausted")] == ["out_of_memory"]

    @pytest.mark.slow
    def test_all_stop_when_the_first_is_asked_to(
        self, begin: Callable[[str], Started], processes: "Processes"
    ) -> None:
        one = begin("until_stopped")
        one.listen(lambda: bool(one.of("progress")), seconds=PATIENCE_SECONDS)
        one.child.ask_to_stop()
        assert done(one).code == 0
        assert [message["message"] for message in one.of("event")] == ["Working.", "Saved."]
        assert len(one.of("released")) == 1
        assert processes(f"{JOB}/") == []

    @pytest.mark.slow
    def test_none_outlives_the_step(self, begin: Callable[[str], Started], processes: "Processes") -> None:
        one = begin("hang")
        one.listen(lambda: bool(one.of("progress")), seconds=PATIENCE_SECONDS)
        assert len(processes(f"{JOB}/")) == 4  # guard, step, and two ranks
        one.child._orders.close()
        assert done(one).signal == signal.SIGKILL
        one.child.close()
        assert processes(f"{JOB}/") == []
