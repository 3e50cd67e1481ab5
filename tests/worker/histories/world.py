"""One database with its storage, and those who act on it through their real code: API, worker and sweep."""

import dataclasses
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Engine, create_engine, text

from api.caller import Caller
from api.jobs.schemas import JobRequest, RetryRequest
from api.jobs.service import delete_job, retry_job
from api.jobs.submission import submit
from api.unit_of_work import Unit
from db.doorbell import Doorbell
from db.queries.jobs import cancel_job, pause_job, resume_job
from db.queries.webhooks import add_endpoint
from db.session import make_session_factory, transaction
from db.settings import Settings
from db.states import Outcome
from db.webhook_events import EventType
from tests.rows import add_file
from tests.worker.histories.faults import Faults, impatient
from worker.attempt import AttemptRunner
from worker.claim import Claim, claim_step
from worker.endings import ArtifactFile, Ending
from worker.lease import renew
from worker.runner import Runner
from worker.step import Message
from worker.step_input import build_step_input
from worker.sweep import end_lost_attempts, sweep

JOB_REQUEST: TypeAdapter[Any] = TypeAdapter(JobRequest)
RECEIVER = "https://1.1.1.1/told"
FILE_ID = "file-1"
LEASE_SECONDS = 15.0

# Each committed change of a status, as the tables saw it.
AUDIT = """
CREATE TABLE moves (
    id bigserial, kind text, row_id text, job_id text, before text, after text
);
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moves (kind, row_id, job_id, before, after) VALUES (
        TG_TABLE_NAME, NEW.id::text,
        CASE TG_TABLE_NAME WHEN 'jobs' THEN to_jsonb(NEW)->>'id' ELSE to_jsonb(NEW)->>'job_id' END,
        OLD.status, NEW.status
    );
    RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER UPDATE OF status ON jobs FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_move AFTER UPDATE OF status ON steps FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_move();
"""
EMPTY = """
UPDATE models SET current_version_id = NULL WHERE current_version_id IS NOT NULL;
DELETE FROM model_versions; DELETE FROM models WHERE recipe IS NULL;
DELETE FROM webhook_deliveries; DELETE FROM jobs; DELETE FROM moves; DELETE FROM workers;
"""
ROWS = text("""
SELECT json_build_object(
    'jobs', (SELECT coalesce(json_agg(to_json(j) ORDER BY j.id), '[]') FROM jobs j),
    'steps', (
        SELECT coalesce(json_agg(to_jsonb(s) || jsonb_build_object(
            'live', s.lease_expires_at > clock_timestamp(),
            'due', s.not_before IS NULL OR s.not_before <= clock_timestamp()
        ) ORDER BY s.job_id, s.position), '[]') FROM steps s
    ),
    'attempts', (SELECT coalesce(json_agg(to_json(a) ORDER BY a.step_id, a.number), '[]') FROM attempts a),
    'artifacts', (SELECT coalesce(json_agg(to_json(f)), '[]') FROM artifacts f),
    'events', (SELECT coalesce(json_agg(to_json(e) ORDER BY e.id), '[]') FROM events e),
    'deliveries', (SELECT coalesce(json_agg(to_json(d)), '[]') FROM webhook_deliveries d),
    'versions', (SELECT coalesce(json_agg(to_json(v)), '[]') FROM model_versions v),
    'moves', (SELECT coalesce(json_agg(to_json(m) ORDER BY m.id), '[]') FROM moves m),
    'late', (
        -- What an attempt is told to have said or measured when it had ended already.
        SELECT coalesce(json_agg(e.message), '[]') FROM events e
        JOIN steps s ON s.job_id = e.job_id AND s.name = e.step
        JOIN attempts a ON a.step_id = s.id AND a.number = e.attempt
        WHERE e.data->>'said' = 'by the step' AND e.created_at > a.ended_at
    )
)
""")
LAPSE = text(
    "UPDATE steps SET lease_expires_at = clock_timestamp() - interval '1 ms' "
    "WHERE id = :id AND status = 'running'"
)
NO_BACKOFF = text(
    "UPDATE steps SET not_before = clock_timestamp() - interval '1 ms' WHERE not_before IS NOT NULL"
)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """All that the database holds, as of one moment."""

    jobs: list[Row]
    steps: list[Row]
    attempts: list[Row]
    artifacts: list[Row]
    events: list[Row]
    deliveries: list[Row]
    versions: list[Row]
    moves: list[Row]
    late: list[str]

    def job(self, job_id: str) -> Row | None:
        return next((job for job in self.jobs if job["id"] == job_id), None)

    def steps_of(self, job_id: str) -> list[Row]:
        return [step for step in self.steps if step["job_id"] == job_id]

    def is_current(self, claim: Claim) -> bool:
        """Whether an attempt may write."""
        return any(
            step["id"] == claim.step_id
            and step["attempt"] == claim.attempt
            and step["status"] == "running"
            and step["live"]
            for step in self.steps
        )


class Actor:
    """The API and a worker as one: whatever they do to the rows."""

    def __init__(self, settings: Settings, engine: Engine, doorbell: Doorbell) -> None:
        self.engine = engine
        self.factory = make_session_factory(engine)
        self.settings = settings
        self.runner = Runner(settings, self.factory, doorbell, {})

    def _request(self, work: Callable[[Unit], Any]) -> Any:
        with transaction(self.factory) as session:
            unit = Unit(session, self.settings, Caller())
            answer = work(unit)
        for action in unit._afterwards:
            action()
        return answer

    def submit(self, request: Row) -> str:
        body = JOB_REQUEST.validate_python(request)
        return self._request(lambda unit: submit(unit, body).id)

    def cancel(self, job_id: str) -> None:
        self._request(lambda unit: cancel_job(unit.session, job_id, project_id=unit.project_id))

    def pause(self, job_id: str) -> None:
        self._request(lambda unit: pause_job(unit.session, job_id, project_id=unit.project_id))

    def resume(self, job_id: str) -> None:
        self._request(lambda unit: resume_job(unit.session, job_id, project_id=unit.project_id))

    def retry(self, job_id: str) -> None:
        self._request(lambda unit: retry_job(unit, job_id, RetryRequest()))

    def delete(self, job_id: str) -> None:
        self._request(lambda unit: delete_job(unit, job_id))

    def claim(self, queue: str) -> Claim | None:
        # Of another host than the sweep's: no processes of it are looked for.
        with transaction(self.factory) as session:
            return claim_step(session, queue, worker="w", host="elsewhere", lease_seconds=LEASE_SECONDS)

    def gather_input(self, claim: Claim) -> None:
        """What a worker does before it starts an attempt's process."""
        self._attempt(claim)._write(lambda session: build_step_input(session, self.settings, claim))

    def report(self, claim: Claim, messages: list[Message]) -> bool:
        """Write what a step said, as its worker does. Whether it was written."""
        attempt = self._attempt(claim)
        attempt._reports.take(messages)
        return bool(attempt._try(attempt._write_reports))

    def finish(self, claim: Claim, how: str) -> None:
        """Write an attempt's end, and clear up after it, as its worker does."""
        self._attempt(claim)._finish(ending(claim, how))

    def _attempt(self, claim: Claim) -> AttemptRunner:
        return AttemptRunner(self.runner._surroundings, claim)

    def heartbeat(self, claim: Claim) -> str:
        with transaction(self.factory) as session:
            return str(renew(session, claim, LEASE_SECONDS)[0])

    def sweep(self) -> None:
        """What each beat of a worker's sweeping thread does, and each sweep."""
        end_lost_attempts(self.runner)
        sweep(self.runner)

    def lapse(self, step_id: int) -> None:
        """Let the time of a step's lease be over, without a renewal."""
        with self.engine.begin() as connection:
            connection.execute(LAPSE, {"id": step_id})

    def let_backoffs_pass(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(NO_BACKOFF)


class World:
    """The database, and two who act on it: `main`, for whom things go wrong, and `other`, who comes in."""

    def __init__(self, settings: Settings, doorbell: Doorbell) -> None:
        self.settings = settings
        url = settings.require_database_url()
        self.main = Actor(settings, create_engine(url), doorbell)
        self.other = Actor(settings, create_engine(url), doorbell)
        self.faults = Faults(self.main.engine)
        impatient(self.other.engine)
        self._engine = create_engine(url)
        self._prepare()

    def close(self) -> None:
        for engine in (self.main.engine, self.other.engine, self._engine):
            engine.dispose()

    def _prepare(self) -> None:
        self.execute(AUDIT)
        path = self.settings.storage_root / "files" / FILE_ID
        path.parent.mkdir(parents=True)
        path.write_text("question,answer\nWho?,Me.\n")
        with transaction(self.main.factory) as session:
            add_file(session, "a.csv", id=FILE_ID, purpose="fine-tune", bytes=path.stat().st_size)
            add_endpoint(
                session,
                project_id="default",
                name="all",
                url=RECEIVER,
                event_types=[str(kind) for kind in EventType],
                secret="whsec_" + "A" * 32,
            )

    def empty(self) -> None:
        self.execute(EMPTY)

    def execute(self, statements: str, **parameters: object) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(statements), parameters)

    def rows(self) -> Rows:
        with self._engine.connect() as connection:
            return Rows(**connection.execute(ROWS).scalar_one())


def said(serial: int) -> list[Message]:
    """What a running step may say, with whose words they are."""
    data = {"said": "by the step", "serial": serial}
    return [
        {"type": "progress", "done": serial, "total": 99, "eta_seconds": None, "unit": "steps"},
        {"type": "event", "level": "info", "message": f"words {serial}", "data": data},
        {"type": "metrics", "values": data},
        {
            "type": "checkpoint",
            "step_number": serial,
            "path": f"checkpoints/checkpoint-{serial}",
            "metrics": {},
            "bytes": 1,
        },
    ]


def ending(claim: Claim, how: str) -> Ending:
    """An attempt's end, as a real one would bring it."""
    if how == "done":
        path = f"jobs/{claim.marker}/made.bin"
        artifact = ArtifactFile(f"{claim.step}.bin", path, 1, f"{claim.attempt:064}")
        return Ending(Outcome.DONE, exit_code=0, result=_result(claim), artifacts=[artifact])
    error = {"code": f"was_{how}", "message": f"It was {how}.", "param": None}
    if how == "exhausted_with_a_way":
        return Ending(Outcome.EXHAUSTED, error=error | {"adjustments": {"batch_size": 1}})
    return Ending(Outcome(how), error=None if how == "released" else error)


def _result(claim: Claim) -> Row:
    if claim.step == "publish":
        file = {"quantization": "Q8_0", "path": "x.gguf", "bytes": 5, "sha256": "ab" * 32}
        file |= {"backend": "llama_server", "backend_name": "m-v-abababababab"}
        return {"model": "m" if claim.kind == "fine_tune" else "tiny", "files": [file], "context_length": 64}
    return {"files": []} if claim.step == "verify" else {"step": claim.step}
