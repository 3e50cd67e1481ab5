"""How far the model of lathe.yaml is, told to whoever watches the stack that fetches it.

The API queues the job. Who wants more than these lines follows it with `lathe watch`.
"""

import time
from collections.abc import Iterator
from typing import Any

import psycopg2

from db.lathe_yaml import ConfiguredModel
from db.wording import how_far
from deploy.local import health

LOOK_SECONDS = 1.0
TOLD_EVERY_PERCENT = 10
# The API has its own reason then, which is in its log.
QUEUED_WITHIN_SECONDS = 30.0
STATEMENT = """
    SELECT json_build_object(
        'there', EXISTS (
            SELECT FROM models WHERE project_id = 'default' AND name = %(name)s
            AND current_version_id IS NOT NULL
        ),
        'id', job.id, 'status', job.status, 'error', job.error ->> 'message',
        'step', step.name, 'progress', step.progress
    )
    FROM (SELECT 1) AS one
    LEFT JOIN LATERAL (
        SELECT id, status, error FROM jobs
        WHERE project_id = 'default' AND kind = 'pull' AND params ->> 'name' = %(name)s
        AND params #>> '{source,hub}' = %(hub)s ORDER BY id DESC LIMIT 1
    ) AS job ON true
    LEFT JOIN LATERAL (
        SELECT name, progress FROM steps WHERE job_id = job.id AND status = 'running' LIMIT 1
    ) AS step ON true
"""


class Fetching:
    """Looks every second until the model is there, or is known not to come."""

    def __init__(self, model: ConfiguredModel | None, database_url: str) -> None:
        self._model = model
        self._database_url = database_url
        self._begun = time.monotonic()
        self._told: tuple[Any, ...] | None = None
        self.is_over = model is None or model.hub is None

    def news(self) -> Iterator[str]:
        """What has not been told yet."""
        if self.is_over or self._model is None:
            return
        model = self._model
        try:
            found = health.first_value(self._database_url, STATEMENT, {"name": model.name, "hub": model.hub})
        except psycopg2.Error:
            return  # it is asked again
        status = found["status"]
        if status in ("failed", "cancelled"):
            self.is_over = True
            yield f"model {model.name}: job {found['id']} {status}. {found['error'] or ''}".rstrip()
        elif status == "succeeded" or (status is None and found["there"]):
            self.is_over = True
            if self._told is not None:
                yield f"model {model.name}: answers"
        elif status is None:
            if time.monotonic() - self._begun > QUEUED_WITHIN_SECONDS:
                self.is_over = True
                yield f"model {model.name}: is not being fetched; lathe logs api says why"
        else:
            yield from self._progress(model, found)

    def _progress(self, model: ConfiguredModel, found: dict[str, Any]) -> Iterator[str]:
        progress = found["progress"] or {}
        percent = 100 * (progress.get("done") or 0) // (progress.get("total") or 1)
        state = (found["status"], found["step"], percent // TOLD_EVERY_PERCENT)
        if state == self._told:
            return
        if self._told is None:
            yield f"model {model.name}: fetched from {model.hub} by job {found['id']}"
        self._told = state
        yield f"model {model.name}: {how_far(found['step'], progress) if found['step'] else found['status']}"
