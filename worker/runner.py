"""A worker's slots: how many steps of each queue it runs at once, and what a doorbell makes it do."""

import os
import socket
import threading
from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy.orm import Session

from db.doorbell import Doorbell
from db.queries.devices import another_is_free, take_devices
from db.session import SessionFactory, transaction, unless_away
from db.settings import Settings
from db.states import DEVICE_QUEUES, Queue
from serving.devices import Device
from worker.attempt import AttemptRunner, Surroundings
from worker.claim import Claim, claim_step, first_queues, has_work
from worker.clearing import makes_room
from worker.deliveries import deliver_next
from worker.identity import identify
from worker.launch import Launch, Spawned
from worker.lease import LeaseLost
from worker.memory import memory_limit
from worker.monitor import Monitor

# How soon a ring that found this worker's devices busy is passed on to another's.
PASS_ON_SECONDS = 0.2

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
        devices: those of this worker, which a step holds together; the queues whose steps need them then
            share one slot.
        launch: starts the processes of steps that compute on no GPU.
    """

    def __init__(
        self,
        settings: Settings,
        factory: SessionFactory,
        doorbell: Doorbell,
        modules: Mapping[tuple[str, str], str],
        devices: Sequence[Device] = (),
        *,
        launch: Launch = Spawned,
    ) -> None:
        self.settings = settings
        self.factory = factory
        self.doorbell = doorbell
        self.host = socket.gethostname()
        self.name = f"worker-{os.getpid()}@{self.host}"
        self.process = identify(os.getpid())
        # `listening` is set once the worker takes messages, `stopping` once it shall stop.
        self.listening = threading.Event()
        self.stopping = threading.Event()
        self.devices = tuple(devices)
        self.memory_bytes = memory_limit()
        self.monitor = Monitor()
        self.slots = {queue: Slots(number) for queue, number in settings.concurrency.items() if number > 0}
        if self.devices:
            shared = Slots(1)
            self.slots |= {queue: shared for queue in DEVICE_QUEUES if queue in self.slots}
        self._surroundings = Surroundings(settings, factory, modules, self.stopping, self.devices, launch)

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
        slots, attempts, answered = self.slots[queue], 0, False
        while slots.take():
            answered, worked = True, False
            try:
                with unless_away():  # the sweep rings again once the database is back
                    worked = not self.stopping.is_set() and self._work(queue)
            finally:
                rung = slots.give_back()
            attempts += worked
            if self.stopping.is_set() or not (worked or rung):
                break
        if not answered and self._needs_devices(queue):
            self._pass_on(queue)
        return attempts

    @property
    def device_ids(self) -> list[str]:
        return [device.id for device in self.devices]

    def _needs_devices(self, queue: str) -> bool:
        return bool(self.devices) and queue in DEVICE_QUEUES

    def _pass_on(self, queue: str) -> None:
        """Ring once more if another worker's devices are free for it: the ring was meant for that one."""
        within, wanted = self.settings.lease_seconds, False
        with unless_away(), transaction(self.factory) as session:
            is_free = another_is_free(session, self.device_ids, queue, within_seconds=within)
            wanted = is_free and has_work(session, queue)
        if wanted:
            self.doorbell.ring_later(queue, PASS_ON_SECONDS)

    def _work(self, queue: str) -> bool:
        """Claim one step and run it, or one delivery and send it. Whether there was one."""
        if queue == Queue.HOOKS:
            return self._deliver()
        with transaction(self.factory) as session:
            claim = self._claim(session, queue)
            more = claim is not None and has_work(session, claim.queue)
        if claim is None:
            return False
        if more:
            # Rings that come together are sent as one; whoever hears it passes it on.
            self.doorbell.ring(claim.queue)
        with structlog.contextvars.bound_contextvars(
            job_id=claim.job_id, step=claim.step, attempt=claim.attempt
        ):
            self._run(claim)
        return True

    def _claim(self, session: Session, queue: str) -> Claim | None:
        """Claim a step of `queue`; of those that need our devices, the best one, whichever was rung for."""
        queues, device_ids = [queue], []
        if self._needs_devices(queue):
            device_ids = self.device_ids
            if not take_devices(session, device_ids):
                return None  # an attempt of another worker, whose end rings
            queues = first_queues(session, DEVICE_QUEUES & self.slots.keys())
            if queues and self._leaves_it_to_another(session, queues[0]):
                return None
        for each in queues:
            claim = claim_step(
                session,
                each,
                worker=self.name,
                host=self.host,
                lease_seconds=self.settings.lease_seconds,
                worker_process=self.process,
                device_ids=device_ids,
            )
            if claim is not None:
                return claim
        return None

    def _leaves_it_to_another(self, session: Session, queue: str) -> bool:
        """Whether models would have to make room on our devices, and none on others that are free."""
        within = self.settings.lease_seconds
        found = any(makes_room(self.settings, device) for device in self.devices) and another_is_free(
            session, self.device_ids, queue, within_seconds=within, undisturbed=True
        )
        if found:
            self.doorbell.ring_later(queue, PASS_ON_SECONDS)
        return found

    def _deliver(self) -> bool:
        slots = self.slots[Queue.HOOKS]
        # Receivers that failed get at most half of the slots, so that the others never wait for them.
        patient = slots.number - slots.free <= max(1, slots.number // 2)
        return deliver_next(self.settings, self.factory, self.doorbell, patient=patient)

    def _run(self, claim: Claim) -> None:
        log.info("attempt_started", kind=claim.kind, queue=claim.queue)
        self.monitor.started(claim)
        try:
            ended = AttemptRunner(self._surroundings, claim).run()
        except LeaseLost as error:
            log.warning("lease_lost", reason=error.message)
        except Exception:
            # The edge of an attempt: its lease lapses, and the sweep decides what follows.
            log.exception("attempt_broken")
        else:
            self.monitor.ended(claim, ended)
            if ended.retry_seconds:
                self.doorbell.ring_later(claim.queue, ended.retry_seconds)
            return
        self.monitor.given_up(claim)
