"""Workers that have a device each: who holds it, and when it is free again."""

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.doorbell import Doorbell
from db.models import Attempt, AttemptDevice, Device, Event, Step
from db.queries.devices import (
    another_is_free,
    are_held,
    find_refusing,
    list_holdings,
    register_device,
    take_devices,
)
from db.queries.states import move
from db.queries.workers import sign_in
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import StepStatus
from serving import devices
from tests.gpus import FIRST, SECOND, show_gpus
from tests.rows import add_job
from tests.waiting import wait_until
from worker.claim import Claim, claim_step
from worker.clearing import load_again, note_unloaded
from worker.runner import PASS_ON_SECONDS, Runner

if TYPE_CHECKING:
    from tests.worker.conftest import Bench

ONLY_DEVICE_QUEUES = {f"LATHE_{queue}_CONCURRENCY": "0" for queue in ("CPU", "IO", "BULK", "HOOKS")}


def device_row(device_id: str = FIRST, index: int = 0) -> Device:
    return Device(
        id=device_id, host="h", index=index, name="RTX", memory_bytes=None, serves=None, shares=False
    )


def events_of(bench: "Bench", job_id: str) -> list[str]:
    with bench.factory() as session:
        query = select(Event.message).where(Event.job_id == job_id, Event.type == "message")
        return list(session.scalars(query.order_by(Event.id)))


def attempts_on(bench: "Bench", device_id: str) -> list[Attempt]:
    with bench.factory() as session:
        query = select(Attempt).join(AttemptDevice).where(AttemptDevice.device_id == device_id)
        return list(session.scalars(query.order_by(Attempt.started_at)))


def never_overlap(attempts: list[Attempt]) -> bool:
    return all(
        one.ended_at is not None and one.ended_at <= other.started_at
        for one, other in itertools.pairwise(attempts)
    )


class TestTheRow:
    def test_no_two_open_attempts_can_hold_one_device(self, session: Session) -> None:
        register_device(session, device_row())
        for _ in range(2):
            add_job(session)
        first = claim_step(session, "train", worker="w", host="h", lease_seconds=15, device_ids=[FIRST])
        assert first is not None
        assert are_held(session, [FIRST])
        with pytest.raises(IntegrityError, match="uq_attempt_devices_device_id"):
            claim_step(session, "train", worker="w", host="h", lease_seconds=15, device_ids=[FIRST])

    def test_chat_is_refused_no_longer_than_the_lease_of_its_step(self, session: Session) -> None:
        device = device_row()
        device.serves = "ollama"
        register_device(session, device)
        add_job(session)
        assert claim_step(session, "train", worker="w", host="h", lease_seconds=15, device_ids=[FIRST])
        assert find_refusing(session, "llama_server") is None
        refusing = find_refusing(session, "ollama")
        assert refusing is not None
        assert refusing.device.id == FIRST
        session.execute(text("UPDATE steps SET lease_expires_at = now() WHERE status = 'running'"))
        assert find_refusing(session, "ollama") is None


@pytest.fixture
def runner(settings: Settings, session_factory: SessionFactory) -> Iterator[Runner]:
    with transaction(session_factory) as session:
        register_device(session, device_row())
    doorbell = Doorbell(settings.require_redis_url())
    yield Runner(settings, session_factory, doorbell, {}, [devices.Device(FIRST, 0, "RTX", None)])
    doorbell.close()


class TestClaims:
    def test_waits_for_nobody_who_is_about_to_take_it(self, runner: Runner) -> None:
        with transaction(runner.factory) as session:
            add_job(session)
        with transaction(runner.factory) as frozen:
            assert take_devices(frozen, [FIRST])
            with transaction(runner.factory) as session:
                assert runner._claim(session, "train") is None
        with transaction(runner.factory) as session:
            assert runner._claim(session, "train") is not None

    @pytest.mark.parametrize(("priority", "order"), [(0, ["verify", "train"]), (5, ["train", "verify"])])
    def test_one_at_a_time_by_priority_and_then_by_age_of_the_job(
        self, runner: Runner, priority: int, order: list[str]
    ) -> None:
        """A verification does not wait for the training of a later job, whichever queue is rung for."""
        with transaction(runner.factory) as session:
            older = add_job(session)
            add_job(session, priority=priority)
            for step in older.steps[:2]:
                move(session, step, StepStatus.CANCELLED)
            move(session, older.steps[2], StepStatus.QUEUED)
        assert runner.slots["train"] is runner.slots["gpu"]
        claimed = []
        for rung in ("train", "gpu"):
            with transaction(runner.factory) as session:
                claim = runner._claim(session, rung)
            assert claim is not None
            assert claim.device_ids == (FIRST,)
            claimed.append(claim.step)
            with transaction(runner.factory) as session:
                assert runner._claim(session, rung) is None
                session.execute(text("UPDATE attempts SET ended_at = clock_timestamp()"))
        assert claimed == order

    def test_a_ring_that_finds_the_device_busy_goes_to_one_that_is_free(self, runner: Runner) -> None:
        """Else it would lie unheard until the next sweep, for the broker gives each ring to one worker."""
        with transaction(runner.factory) as session:
            register_device(session, device_row(SECOND, 1))
            add_job(session)
        assert runner.slots["train"].take()
        runner.answer("train")
        time.sleep(2 * PASS_ON_SECONDS)
        assert runner.doorbell.unheard(["train"]) == {"train": 0}  # there is no other worker
        with transaction(runner.factory) as session:
            sign_in(session, name="other", host="h", pid=1, slots={"train": 1}, device_ids=[SECOND])
        runner.answer("train")
        wait_until(lambda: runner.doorbell.unheard(["train"]) != {"train": 0})


class TestSeveral:
    """A worker's devices are held together, or not at all."""

    @pytest.fixture
    def of_both(self, runner: Runner) -> Runner:
        with transaction(runner.factory) as session:
            register_device(session, device_row(SECOND, 1))
            for _ in range(2):
                add_job(session)
        runner.devices = (*runner.devices, devices.Device(SECOND, 1, "RTX", None))
        return runner

    def claim(self, runner: Runner, queue: str = "train") -> Claim | None:
        with transaction(runner.factory) as session:
            return runner._claim(session, queue)

    def test_a_step_holds_all_and_nobody_else_takes_one_until_it_ends(self, of_both: Runner) -> None:
        alone = Runner(of_both.settings, of_both.factory, of_both.doorbell, {}, of_both.devices[1:])
        claim = self.claim(of_both)
        assert claim is not None
        assert claim.device_ids == (FIRST, SECOND)
        assert self.claim(alone) is None
        with transaction(of_both.factory) as session:
            sign_in(session, name="w", host="h", pid=1, slots={"train": 1}, device_ids=of_both.device_ids)
            held = {each.device.id: (each.worker, each.attempt) for each in list_holdings(session)}
            assert [worker for worker, attempt in held.values() if attempt is not None] == ["w", "w"]
            started = session.scalars(select(Event.message).where(Event.job_id == claim.job_id))
            assert "Step train starts on GPU 0 (RTX), GPU 1 (RTX)." in list(started)
            session.execute(text("UPDATE attempts SET ended_at = clock_timestamp()"))
        taken = self.claim(alone)
        assert taken is not None
        assert taken.device_ids == (SECOND,)
        assert self.claim(of_both) is None  # one of its two is free
        with transaction(of_both.factory) as session:
            assert not are_held(session, [FIRST])

    def test_another_is_free_once_nothing_holds_any_of_its_own(self, of_both: Runner) -> None:
        both = of_both.device_ids

        def is_free() -> bool:
            with transaction(of_both.factory) as session:
                return another_is_free(session, ["GPU-3"], "train", within_seconds=15)

        with transaction(of_both.factory) as session:
            sign_in(session, name="w", host="h", pid=1, slots={"train": 1}, device_ids=both)
            assert not another_is_free(session, both[:1], "train", within_seconds=15)  # it is the same one
        assert is_free()
        with transaction(of_both.factory) as session:
            claim_step(session, "train", worker="v", host="h", lease_seconds=15, device_ids=both[1:])
        assert not is_free()

    def test_models_come_back_when_no_device_that_serves_is_held(self, of_both: Runner) -> None:
        backend = of_both.settings.chat_backend
        with transaction(of_both.factory) as session:
            session.execute(update(Device).values(serves=backend))
        first, second = (self.claim(of_both), None)
        assert first is not None
        with transaction(of_both.factory) as session:
            note_unloaded(session, first, ["faq"])
            assert list(session.scalars(select(Device.unloaded))) == [["faq"], ["faq"]]
            refusing = find_refusing(session, backend)
            assert refusing is not None
            assert refusing.device.id == FIRST
            session.execute(text("UPDATE attempts SET ended_at = clock_timestamp()"))
            second = claim_step(
                session, "train", worker="w", host="h", lease_seconds=15, device_ids=of_both.device_ids[1:]
            )
        assert second is not None
        assert load_again(of_both.settings, of_both.factory) == []
        with transaction(of_both.factory) as session:
            session.execute(text("UPDATE attempts SET ended_at = coalesce(ended_at, clock_timestamp())"))
        assert load_again(of_both.settings, of_both.factory) == ["faq"]


class TestWhereModelsAreServed:
    def test_a_step_goes_to_a_device_that_serves_none_if_one_is_free(self, runner: Runner) -> None:
        runner.settings = runner.settings.model_copy(update={"serving_device": "0"})
        with transaction(runner.factory) as session:
            register_device(session, device_row(SECOND, 1))
            sign_in(session, name="other", host="h", pid=1, slots={"train": 1}, device_ids=[SECOND])
            for _ in range(2):
                add_job(session)
        with transaction(runner.factory) as session:
            assert runner._claim(session, "train") is None
        wait_until(lambda: runner.doorbell.unheard(["train"]) != {"train": 0})
        with transaction(runner.factory) as session:
            claim_step(session, "train", worker="other", host="h", lease_seconds=15, device_ids=[SECOND])
        with transaction(runner.factory) as session:
            claim = runner._claim(session, "train")
        assert claim is not None
        assert claim.device_ids == (FIRST,)


class TestWorkers:
    def test_each_runs_on_its_own_and_one_at_a_time(self, bench: "Bench", tmp_path: Path) -> None:
        visible = show_gpus(tmp_path / "bin") | ONLY_DEVICE_QUEUES
        for device in ("0", SECOND):
            bench.start_worker(**visible, LATHE_DEVICE=device, LATHE_TRAIN_CONCURRENCY="3")
        bench.wait_for(lambda: bench.logs().count(" ready.") == 2)
        gate = tmp_path / "gate"
        jobs = [bench.submit(do={"train": "gated"}, params={"gate": str(gate)}) for _ in range(3)]
        bench.wait_for(lambda: sum(bench.began(job) for job in jobs) == 2)
        with bench.factory() as session:
            assert are_held(session, [FIRST])
            assert are_held(session, [SECOND])
        for device in (FIRST, SECOND):
            [attempt] = attempts_on(bench, device)
            with bench.factory() as session:
                job_id = session.get_one(Step, attempt.step_id).job_id
            bench.wait_for(
                lambda job_id=job_id, device=device: f"Sees '{device}'." in events_of(bench, job_id)
            )  # type: ignore[misc]
        gate.touch()
        bench.wait_for(lambda: all(bench.job(job).steps[0].status == "succeeded" for job in jobs))
        ran = [attempts_on(bench, device) for device in (FIRST, SECOND)]
        assert sorted(map(len, ran)) == [1, 2]
        assert all(map(never_overlap, ran))
        with bench.factory() as session:
            assert not are_held(session, [FIRST])
            assert session.get_one(Device, SECOND).name == "NVIDIA GB10, Spark"

    def test_a_frozen_workers_devices_are_free_once_its_lease_has_lapsed(
        self, bench: "Bench", tmp_path: Path
    ) -> None:
        """They are all that it sees, as it was told of none."""
        mine = show_gpus(tmp_path / "bin") | ONLY_DEVICE_QUEUES | {"CUDA_VISIBLE_DEVICES": "1,0"}
        lost = bench.start_worker(**mine)
        gate = tmp_path / "gate"
        job = bench.submit(do={"train": "gated"}, params={"gate": str(gate)})
        other = bench.submit()
        bench.wait_for(lambda: f"Sees '{SECOND},{FIRST}'." in events_of(bench, job))
        lost.send_signal(signal.SIGSTOP)
        gate.touch()  # for the next attempt
        bench.start_worker(**mine)
        bench.wait_for(lambda: all(bench.job(each).steps[0].status == "succeeded" for each in (job, other)))
        lost.send_signal(signal.SIGCONT)
        first, *others = attempts_on(bench, FIRST)
        assert (first.outcome, first.number, len(others)) == ("lost", 1, 2)
        assert never_overlap([first, *others])
        on_second = attempts_on(bench, SECOND)
        assert [attempt.id for attempt in on_second] == [attempt.id for attempt in (first, *others)]

    def test_a_device_that_is_not_there_is_refused(self, bench: "Bench", tmp_path: Path) -> None:
        worker = bench.start_worker(**show_gpus(tmp_path / "bin"), LATHE_DEVICE="2")
        assert worker.wait(60) == 1
        assert "LATHE_DEVICE is '2', and there is no such GPU. There are: 0: NVIDIA" in bench.logs()
