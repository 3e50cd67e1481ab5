"""Real workers at real limits: the kernel kills for memory, and a disk has no room left."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from api.caller import Caller
from api.jobs.schemas import RetryRequest
from api.jobs.service import retry_job
from api.unit_of_work import Unit
from db.models import Attempt, Event, Step
from db.queries.jobs import list_artifacts
from db.session import transaction
from db.settings import Settings
from db.storage import attempt_folder
from tests.worker.limits import MemoryGroup, memory_group, small_disk

if TYPE_CHECKING:
    from tests.worker.conftest import Bench

MEGABYTE = 1_000_000
# A worker and the two processes of a step that does nothing take some 200 MB of it.
MEMORY_BYTES = 500 * MEGABYTE
# Four rows are more than all of it, whatever else is there; two fit beside the rest.
ROW_BYTES = 130 * MEGABYTE
# No lease is to lapse, and no wait to end, because others keep the cores busy.
LEASE_SECONDS = 30.0
PATIENCE_SECONDS = 240
DISK_BYTES = 24 * MEGABYTE
FILE_BYTES = 10 * MEGABYTE


def attempts(bench: "Bench", job_id: str) -> list[Attempt]:
    with bench.factory() as session:
        query = select(Attempt).join(Step, Step.id == Attempt.step_id)
        query = query.where(Step.job_id == job_id, Step.name == "train").order_by(Attempt.number)
        return list(session.scalars(query))


def warnings(bench: "Bench", job_id: str) -> list[str]:
    with bench.factory() as session:
        query = select(Event.message).where(Event.job_id == job_id, Event.level == "warn").order_by(Event.id)
        return list(session.scalars(query))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_seconds": LEASE_SECONDS})


class TestMemory:
    """Where no control group can be made, each step's address space is bounded instead."""

    @pytest.fixture
    def group(self, bench: "Bench") -> Iterator[MemoryGroup | None]:
        with memory_group(MEMORY_BYTES) as group:
            yield group
            bench.close()

    @pytest.fixture
    def limited(self, group: MemoryGroup | None, bench: "Bench") -> dict[str, Any]:
        """Params of a step, after a worker has been started that cannot give it more memory."""
        worker = bench.start_worker()
        if group is None:
            return {"more_bytes": 300 * MEGABYTE}
        group.add(worker.pid)
        return {}

    def test_a_step_that_the_kernel_kills_is_tried_with_half_the_rows(
        self, bench: "Bench", group: MemoryGroup | None, limited: dict[str, Any]
    ) -> None:
        fits = bench.submit(
            do={"train": "takes_memory"}, params={"row_bytes": ROW_BYTES, **limited}, max_attempts=1
        )
        never = bench.submit(
            do={"train": "takes_memory"},
            params={"row_bytes": MEMORY_BYTES, "rows": 2, **limited},
            max_attempts=1,
        )
        job = bench.ended(fits, seconds=PATIENCE_SECONDS)
        assert job.status == "succeeded", (job.error, bench.logs())
        assert [row.outcome for row in attempts(bench, fits)] == ["exhausted", "exhausted", "done"]
        assert [row.signal for row in attempts(bench, fits)] == [9 if group else None] * 2 + [None]
        # Eight rows twice, four rows four times, two rows eight times: sixteen each time.
        result = next(step.result or {} for step in job.steps if step.name == "train")
        assert (result["batch_size"], result["gradient_accumulation_steps"]) == (2, 8)
        who = "The system ended step train: the" if group else "The"
        assert warnings(bench, fits) == [
            f"{who} host's memory ran out. Trying again with batch_size {batch} and "
            f"gradient_accumulation_steps {16 // batch}."
            for batch in (4, 2)
        ]
        error = bench.ended(never, seconds=PATIENCE_SECONDS).error or {}
        assert [row.outcome for row in attempts(bench, never)] == ["exhausted"] * 2
        assert error["code"] == "out_of_memory"
        assert error["message"] == f"{who} host's memory ran out. Take a smaller model."


class TestDisk:
    """Where nothing can be mounted, the device that is always full takes the place of the small disk."""

    @pytest.fixture
    def disk(self, bench: "Bench", tmp_path: Path) -> Iterator[Path | None]:
        with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
            if disk is not None:
                bench.settings = bench.settings.model_copy(update={"data_dir": disk})
            yield disk
            bench.close()

    def test_a_step_that_fills_it_fails_clearly_and_goes_on_once_there_is_room(
        self, bench: "Bench", disk: Path | None
    ) -> None:
        ballast = (disk or bench.folder) / "ballast"
        ballast.write_bytes(bytes(DISK_BYTES - FILE_BYTES))
        bench.start_worker()
        params = {"file_bytes": FILE_BYTES, "full_device": None if disk else "/dev/full"}
        job_id = bench.submit(do={"train": "fills_its_disk"}, params=params)
        error = bench.ended(job_id, seconds=PATIENCE_SECONDS).error or {}
        assert error["code"] == "disk_full"
        assert error["message"].startswith("The disk is full: free some space")
        assert [row.outcome for row in attempts(bench, job_id)] == ["exhausted"]
        root = bench.settings.storage_root
        bench.wait_for(lambda: not attempt_folder(root, job_id, "train", 1).exists())
        with bench.factory() as session:
            assert list_artifacts(session, job_id) == []

        ballast.unlink()
        with transaction(bench.factory) as session:
            retry_job(Unit(session, bench.settings, Caller()), job_id, RetryRequest())
        job = bench.ended(job_id, seconds=PATIENCE_SECONDS)
        assert job.status == "succeeded", (job.error, bench.logs(), shutil.disk_usage(root))
        with bench.factory() as session:
            made = next(row for row in list_artifacts(session, job_id) if row.name == "made.bin")
        content = (root / made.path).read_bytes()
        assert made.bytes == len(content) == FILE_BYTES
        assert made.sha256 == hashlib.sha256(content).hexdigest()
