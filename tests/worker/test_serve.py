"""Real workers, real child processes: what becomes of jobs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.worker.conftest import Bench


class TestWholeJob:
    def test_every_step_runs_in_its_turn(self, bench: "Bench") -> None:
        bench.start_worker()
        job = bench.ended(bench.submit())
        assert (job.status, job.error) == ("succeeded", None), bench.logs()
