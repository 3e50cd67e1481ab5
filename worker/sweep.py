"""The sweep: what makes good for every worker, message and process that was lost on the way.

It runs in a thread of every worker. Lost attempts are looked for with every heartbeat, the rest less often.
What takes longer than a few rows, as removing folders does, is the housekeeper's, who has a thread for it.
"""

import contextlib
import os
import signal
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Row, and_, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.models import Attempt, Job, Step
from db.queries.answers import forget_answers
from db.queries.workers import sign_in, sign_out
from db.session import transaction, unless_away
from db.states import WORKER_LOST, Outcome, StepStatus
from worker.claim import attempt_marker, queues_with_work
from worker.clearing import load_again
from worker.endings import Ended, Ending, end_attempt
from worker.housekeeping import Housekeeper
from worker.identity import is_dead
from worker.leavings import dead_attempts, ended_within
from worker.monitor import task_id
from worker.processes import kill_marked
from worker.runner import Runner

# The broker brings a ring within milliseconds to whoever listens.
DEAF_AFTER_SWEEPS = 2
# How long after its end an attempt's processes are looked for.
PROCESSES_FOR = timedelta(minutes=2)

HAS_LAPSED = Step.lease_expires_at <= func.clock_timestamp()
RUNNING = (
    select(
        Step.id,
        Step.job_id,
        Step.name,
        Step.queue,
        Step.attempt,
        Attempt.host,
        Attempt.worker_process,
        HAS_LAPSED.label("lapsed"),
    )
    .join(Attempt, and_(Attempt.step_id == Step.id, Attempt.number == Step.attempt))
    .where(Step.status == StepStatus.RUNNING)
    .order_by(Step.lease_expires_at)
)

log = structlog.get_logger(__name__)


class Sweeper:
    """A worker's thread that sweeps, and says that the worker lives."""

    def __init__(self, runner: Runner, *, pid: int) -> None:
        self._runner = runner
        self._pid = pid
        self._stop = threading.Event()
        self._missed: Counter[str] = Counter()
        self._housekeeper = Housekeeper(runner)
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        settings = self._runner.settings
        every = max(1, round(settings.sweep_seconds / settings.heartbeat_seconds))
        beats = 0
        while True:
            self._attempt_one(sweeps=beats % every == 0)
            beats += 1
            if self._stop.wait(min(settings.heartbeat_seconds, settings.sweep_seconds)):
                break
        # Without a database it is forgotten soon enough.
        with contextlib.suppress(DBAPIError), transaction(self._runner.factory) as session:
            sign_out(session, self._runner.name)

    def _attempt_one(self, *, sweeps: bool) -> None:
        try:
            with unless_away():
                self._beat(sweeps=sweeps)
        except Exception:
            # The edge of the thread: a sweep that fails must not be the last one.
            log.exception("sweep_broken")

    def _beat(self, *, sweeps: bool) -> None:
        with transaction(self._runner.factory) as session:
            sign_in(
                session,
                name=self._runner.name,
                host=self._runner.host,
                pid=self._pid,
                slots={queue: slots.number for queue, slots in self._runner.slots.items()},
                device_ids=self._runner.device_ids,
                memory_bytes=self._runner.memory_bytes,
            )
        end_lost_attempts(self._runner)
        if sweeps:
            self._mind_own_hearing(*sweep(self._runner))
            self._housekeeper.begin()

    def _mind_own_hearing(self, rings: dict[str, int] | None, waiting: set[str]) -> None:
        """Notice that rings do not reach this worker although it has a free slot.

        After a broker's restart its connection may look alive and bring nothing: then it stops, once
        nothing runs here, for its supervisor to start it afresh. Until then, and while the broker is
        away altogether, it works without being rung for.
        """
        runner = self._runner
        missed = [
            queue
            for queue in runner.queues
            if queue in waiting and runner.slots[queue].free and (rings is None or rings[queue])
        ]
        self._missed = Counter({queue: self._missed[queue] + 1 for queue in missed})
        unheard = [queue for queue in missed if rings is None or self._missed[queue] >= DEAF_AFTER_SWEEPS]
        # One that starts hears nothing yet; but without a broker it has no chance to.
        may_hear = rings is not None and not runner.listening.is_set()
        if not unheard or may_hear or runner.stopping.is_set():
            return
        log.warning("rings_not_heard", queues=unheard)
        if rings is not None and runner.idle:
            log.error("worker_deaf")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for queue in unheard:
            threading.Thread(target=runner.answer, args=(queue,), name=f"unrung-{queue}").start()


def sweep(runner: Runner) -> tuple[dict[str, int] | None, set[str]]:
    """Sweep once.

    Returns:
        the rings that lie in the broker for each queue that has work (None: it is away), and those queues.
    """
    with transaction(runner.factory) as session:
        waiting = queues_with_work(session)
    rings = runner.doorbell.unheard(waiting) if waiting else {}
    # Only where none lies in the broker; else rings would pile up.
    runner.doorbell.ring(*(queue for queue, number in (rings or {}).items() if number == 0))
    with transaction(runner.factory) as session:
        forget_answers(session)
    if loaded := load_again(runner.settings, runner.factory):
        log.info("models_loaded_again", models=loaded)
    kill_dead_processes(runner)
    return rings, waiting


def end_lost_attempts(runner: Runner, *, wait: bool = False) -> int:
    """End as lost each attempt whose lease ran out, or whose worker is dead on this machine.

    Nothing can renew a lease that has lapsed, and nobody that of a dead worker. So its processes may go,
    frozen ones too, before anybody can claim the step: on one machine no two attempts of it ever run at once.

    Args:
        wait: for rows that somebody holds; else they are left to a later beat.
    Returns:
        how many were ended.
    """
    with transaction(runner.factory) as session:
        running = session.execute(RUNNING).all()
    lost = [row for row in running if row.lapsed or _worker_is_dead(runner, row)]
    here = {attempt_marker(row.job_id, row.name, row.attempt) for row in lost if row.host == runner.host}
    if here and (killed := kill_marked(here)):
        log.warning("processes_left_behind", killed=killed)
    number = 0
    for row in lost:
        message = f"The worker that ran step {row.name} is gone"
        message += ", or did not answer in time." if row.lapsed else "."
        with transaction(runner.factory) as session:
            ended = _end_lost(session, row, message, wait=wait)
        if ended is None:
            continue
        number += 1
        event = "lease_lapsed" if row.lapsed else "worker_dead"
        log.warning(event, job_id=row.job_id, step=row.name, attempt=row.attempt)
        runner.monitor.failed(task_id(row.job_id, row.name, row.attempt), message)
        if ended.retry_seconds:
            runner.doorbell.ring_later(row.queue, ended.retry_seconds)
    return number


def _worker_is_dead(runner: Runner, row: Row[*tuple[Any, ...]]) -> bool:
    # Virtual machines that were copied while they ran differ by their names alone.
    return row.host == runner.host and row.worker_process is not None and is_dead(row.worker_process)


def _end_lost(session: Session, row: Row[*tuple[Any, ...]], message: str, *, wait: bool) -> Ended | None:
    """End it, unless somebody was quicker, or holds its rows, as a frozen worker may."""
    of_job = select(Job).where(Job.id == row.job_id)
    job = session.scalars(of_job.with_for_update(key_share=True, skip_locked=not wait)).one_or_none()
    current = (Step.id == row.id, Step.status == StepStatus.RUNNING, Step.attempt == row.attempt)
    of_step = select(Step).where(*current, *([HAS_LAPSED] if row.lapsed else []))
    step = session.scalars(of_step.with_for_update(key_share=True, skip_locked=not wait)).one_or_none()
    if job is None or step is None:
        return None
    error = {"code": WORKER_LOST, "message": message, "param": None}
    return end_attempt(session, job, step, Ending(Outcome.LOST, error=error))


def kill_dead_processes(runner: Runner) -> None:
    """Kill what dead attempts of killed workers left running on this machine."""
    with transaction(runner.factory) as session:
        dead = dead_attempts(session, ended_within(PROCESSES_FOR))
    markers = {
        attempt_marker(attempt.job_id, attempt.step, attempt.number)
        for attempt in dead
        if attempt.host == runner.host
    }
    if markers and (killed := kill_marked(markers)):
        log.warning("processes_left_behind", killed=killed)
