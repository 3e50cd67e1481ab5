"""A worker's slots: how many steps of each queue it runs at once, and what a doorbell makes it do."""

import os
import socket
import threading
from collections.abc import Mapping

import structlog
from sqlalchemy.exc import DBAPIError

from db.doorbell import Doorbell
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import Queue
from worker.attempt import AttemptRunner, Surroundings, is_passing
from worker.claim import Claim, claim_step, has_work
from worker.deliveries import deliver_next
from worker.lease import LeaseLost

log = structlog.get_logger(__name__)


class Slots:
    """The free slots of one queue. A ring that finds none is remembered for whoever frees one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = number
        self._rung = False
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        with self._lock:
            return self._free

    def take(self) -> bool:
        with self._lock:
            if self._free == 0:
                self._rung = True
                return False
            self._free -= 1
            self._rung = False
            return True

    def give_back(self) -> bool:
        """Free a slot. Returns whether somebody rang while there was none."""
        with self._lock:
            self._free += 1
            return self._rung


class Runner:
    """Claims and runs steps. One a worker process; each of its threads may answer the doorbell.

    Args:
        modules: for each kind's steps, the module that does it.
    """

    def __init__(
        self,
        settings: Settings,
        factory: SessionFactory,
        doorbell: Doorbell,
        modules: Mapping[tuple[str, str], str],
    ) -> None:
        self.settings = settings
        self.factory = factory
        self.doorbell = doorbell
        self.host = socket.gethostname()
        self.name = f"worker-{os.getpid()}@{self.host}"
        # `listening` is set once the worker takes messages, `stopping` once it shall stop.
        self.listening = threading.Event()
        self.stopping = threading.Event()
        self.slots = {queue: Slots(number) for queue, number in settings.concurrency.items() if number > 0}
        self._surroundings = Surroundings(settings, factory, modules, self.stopping)

    @property
    def queues(self) -> list[str]:
        return list(self.slots)

    @property
    def idle(self) -> bool:
        return all(slots.free == slots.number for slots in self.slots.values())

    def answer(self, queue: str) -> int:
        """Run steps of `queue` until none is left, or none of its slots is free.

        Returns:
            how many attempts were run.
        """
        slots, attempts = self.slots[queue], 0
        while slots.take():
            worked = False
            try:
                worked = not self.stopping.is_set() and self._work(queue)
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                # The sweep rings again once the database is back.
                log.warning("database_away", error=str(error.orig))
            finally:
                rung = slots.give_back()
            attempts += worked
            if self.stopping.is_set() or not (worked or rung):
                break
        return attempts

    def _work(self, queue: str) -> bool:
        """Claim one step and run it, or one delivery and send it. Whether there was one."""
        if queue == Queue.HOOKS:
            return self._deliver()
        with transaction(self.factory) as session:
            claim = claim_step(
                session,
                queue,
                worker=self.name,
                host=self.host,
                lease_seconds=self.settings.lease_seconds,
            )
            more = claim is not None and has_work(session, queue)
        if claim is None:
            return False
        if more:
            # Rings that come together are sent as one; whoever hears it passes it on.
            self.doorbell.ring(queue)
        with structlog.contextvars.bound_contextvars(
            job_id=claim.job_id, step=claim.step, attempt=claim.attempt
        ):
            self._run(claim)
        return True

    def _deliver(self) -> bool:
        slots = self.slots[Queue.HOOKS]
        # Receivers that failed get at most half of the slots, so that the others never wait for them.
        patient = slots.number - slots.free <= max(1, slots.number // 2)
        return deliver_next(self.settings, self.factory, self.doorbell, patient=patient)

    def _run(self, claim: Claim) -> None:
        log.info("attempt_started", kind=claim.kind, queue=claim.queue)
        try:
            delay = AttemptRunner(self._surroundings, claim).run()
        except LeaseLost as error:
            log.warning("lease_lost", reason=error.message)
        except Exception:
            # The edge of an attempt: its lease lapses, and the sweep decides what follows.
            log.exception("attempt_broken")
        else:
            if delay:
                self.doorbell.ring_later(claim.queue, delay)
