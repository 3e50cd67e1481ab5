"""The Celery app: `python -m worker` hosts it, `celery -A worker.app flower` watches it.

Celery carries doorbells, hosts the worker's threads and shows itself in Flower; what is run, and what
becomes of it, is decided by rows. Messages are JSON and are acknowledged before work starts: a lost
one costs a sweep's interval, a repeated one finds nothing to claim.
"""

from typing import Any

from celery import Celery
from kombu import Queue

from db.settings import load_settings
from worker.runner import Runner

# Threads besides those that run steps: a doorbell without a free slot must not wait behind them.
SPARE_THREADS = 2


class WorkerApp(Celery):
    """The Celery app, and in a worker process what answers its doorbells."""

    runner: Runner | None = None


def configuration() -> dict[str, Any]:
    """Celery's configuration, from the settings. It is read when it is first needed, not at import."""
    settings = load_settings()
    queues = [queue for queue, number in settings.concurrency.items() if number > 0]
    return {
        "broker_url": settings.require_redis_url(),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # for as long as it takes
        "broker_transport_options": {
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            "health_check_interval": 10,
            # Else a connection lost while an event is sent is tried for ever, deaf to signals.
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.5,
            "interval_max": 1,
        },
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_queues": [Queue(queue) for queue in queues],
        "task_default_queue": queues[0] if queues else "io",
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_concurrency": sum(settings.concurrency.values()) + SPARE_THREADS,
        "worker_pool": "threads",
        "include": ["worker.tasks"],
    }


app = WorkerApp("lathe", set_as_current=True)
app.add_defaults(configuration)
