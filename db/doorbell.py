"""The doorbell: a message that says only that a queue has work. The rows say what the work is.

Rings are sent after commit, from a thread of their own, so no request or step ever waits for the
broker; several rings of one queue that come together are sent as one. A ring that cannot be sent is
logged and left to the workers' sweep.

The message is written here by Celery's protocol 2, so that whoever rings needs no Celery app.
"""

import contextlib
import threading
from collections.abc import Collection
from typing import Any

import structlog
from kombu import Connection
from kombu.exceptions import ChannelError, OperationalError
from sqlalchemy import event
from sqlalchemy.orm import Session

from db.ids import new_id
from db.session import QUEUES_WITH_WORK, SessionFactory

TASK_NAME = "lathe.doorbell"
SEND_RETRIES = {"max_retries": 3, "interval_start": 0.2, "interval_step": 0.8, "interval_max": 2}
# After a ring, so that those of a burst are sent as one: each costs its sender a millisecond of CPU.
PAUSE_SECONDS = 0.02
CONNECTION_OPTIONS = {
    "socket_connect_timeout": 5,
    "socket_timeout": 5,
    "max_retries": 1,
    "interval_start": 0.2,
}

log = structlog.get_logger(__name__)


class Doorbell:
    """Rings for workers; safe to use from any thread.

    Args:
        redis_url: the broker. It is first reached for at the first ring.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._lock = threading.Condition()
        self._rung: set[str] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, factory: SessionFactory) -> None:
        """Ring for every transaction of `factory`'s sessions that puts work on a queue."""

        @event.listens_for(factory, "after_commit")
        def ring_for_work(session: Session) -> None:
            if not session.in_nested_transaction():
                self.ring(*session.info.pop(QUEUES_WITH_WORK, ()))

    def ring(self, *queues: str) -> None:
        """Say that `queues` have work. Returns at once."""
        if not queues:
            return
        with self._lock:
            self._rung.update(queues)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_rings, name="doorbell", daemon=True)
                self._thread.start()
            self._lock.notify()

    def ring_later(self, queue: str, seconds: float) -> None:
        """Ring `queue` after some seconds, should this process live that long."""
        timer = threading.Timer(seconds, self.ring, (queue,))
        timer.daemon = True
        timer.start()

    def unheard(self, queues: Collection[str]) -> dict[str, int] | None:
        """How many rings of each queue lie in the broker; None when it cannot be reached."""
        counts = dict.fromkeys(queues, 0)
        with Connection(self._redis_url, transport_options=CONNECTION_OPTIONS) as connection:
            try:
                for queue in queues:
                    # An empty list does not exist in Redis.
                    with contextlib.suppress(ChannelError):
                        found = connection.default_channel.queue_declare(queue, passive=True)
                        counts[queue] = int(found.message_count)
            except (OperationalError, *connection.connection_errors) as error:
                log.warning("broker_away", error=str(error))
                return None
        return counts

    def close(self, timeout_seconds: float = 3) -> None:
        """Send what was rung, then stop."""
        with self._lock:
            self._closing.set()
            self._lock.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_seconds)

    def _send_rings(self) -> None:
        with Connection(self._redis_url, transport_options=CONNECTION_OPTIONS) as connection:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: self._rung or self._closing.is_set())
                    queues, self._rung = sorted(self._rung), set()
                if not queues:
                    return
                for queue in queues:
                    self._send(connection, queue)
                self._closing.wait(PAUSE_SECONDS)

    def _send(self, connection: Connection, queue: str) -> None:
        headers, body = _celery_message(queue)
        try:
            with connection.Producer(serializer="json") as producer:
                producer.publish(
                    body,
                    routing_key=queue,
                    headers=headers,
                    correlation_id=headers["id"],
                    retry=True,
                    retry_policy=SEND_RETRIES,
                )
        except Exception as error:  # noqa: BLE001 - nothing a broker does may end this thread
            log.warning("doorbell_not_rung", queue=queue, error=str(error), exception=type(error).__name__)
            connection.collect()


def _celery_message(queue: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The headers and the body of a call of the doorbell task, by Celery's task protocol 2."""
    message_id = new_id("ring")
    headers = {
        "lang": "py",
        "task": TASK_NAME,
        "id": message_id,
        "root_id": message_id,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": f"({queue!r},)",
        "kwargsrepr": "{}",
        "origin": "lathe",
        "ignore_result": True,
    }
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return headers, ([queue], {}, embed)
