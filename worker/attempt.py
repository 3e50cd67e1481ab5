"""One attempt, from its claim to its end: its worker starts the child, listens, renews the lease, and
writes what follows. Everything that ends an attempt early is decided in `_reason_to_end`.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import and_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.errors import InvalidInput, NotFound, StepFailed, Unavailable
from db.models import Step
from db.queries.devices import find_refusing
from db.queries.jobs import get_job
from db.session import SessionFactory, is_passing, transaction
from db.settings import Settings
from db.sources import link_as_file
from db.states import JobStatus, Outcome
from db.storage import attempt_folder, attempt_log
from serving.chat_server import chat_server
from serving.devices import VISIBLE_DEVICES, Device
from worker.child import Child
from worker.claim import Claim
from worker.clearing import Clearing, makes_room, note_unloaded
from worker.clock import host_seconds
from worker.documents import ROWS_A_SECOND as LOADED_A_SECOND
from worker.documents import remove_loaded, write_document
from worker.endings import (
    CUT_SHORT,
    ArtifactFile,
    Ended,
    Ending,
    end_attempt,
    error_row,
    fallen,
    max_runtime_exceeded,
    put_off,
)
from worker.index_build import INDEX_STEP, IndexBuild, index_policy
from worker.launch import Launch, Spawned
from worker.lease import LeaseLost, hold_fence, job_status, note_process, renew
from worker.leavings import remove_leavings
from worker.memory import killed_for_memory, oom_kills
from worker.partial_answers import ROWS_A_SECOND, keeps_answers, write_partial
from worker.publishing import lock_model
from worker.reports import Reports, write_reports
from worker.run_step import MANIFEST
from worker.step import StepInput
from worker.step_input import build_step_input

LISTEN_SECONDS = 0.25
WRITE_EVERY_SECONDS = 0.5
LOOK_EVERY_SECONDS = 1.0
RETRY_SECONDS = 0.5
# What a step that is asked to stop has to save itself; the worker has to be gone within 30 s.
DRAIN_SECONDS = 18.0

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Surroundings:
    """`stopping` is set once the worker shall stop; `launch` starts steps that hold no device."""

    settings: Settings
    factory: SessionFactory
    modules: Mapping[tuple[str, str], str]
    stopping: threading.Event
    devices: Sequence[Device]
    launch: Launch


class AttemptRunner:
    """Runs one claimed attempt; afterwards no process of it is left, and its rows say how it ended."""

    def __init__(self, surroundings: Surroundings, claim: Claim) -> None:
        self._settings = surroundings.settings
        self._factory = surroundings.factory
        self._modules = surroundings.modules
        self._stopping = surroundings.stopping
        self._devices = surroundings.devices
        self._launch = surroundings.launch
        self._claim = claim
        self._deadline = claim.deadline
        self._folder = attempt_folder(self._settings.storage_root, claim.job_id, claim.step, claim.attempt)
        self._reports = Reports()
        self._input: StepInput | None = None
        self._adjustments: dict[str, int] = {}
        self._cancelled, self._pausing = claim.cancelling, False
        self._made_room = False  # the model that the step asks, for another step
        self._stopped: Ending | None = None  # of a step that was asked to stop: what becomes of its attempt,
        self._gone_by = 0.0  # and when it has to be gone
        self._clearing: Clearing | None = None
        self._oom_kills = oom_kills()

    def run(self) -> Ended:
        """Run the attempt to its end.

        Raises:
            LeaseLost: the attempt is no longer ours; whoever took it over decides about it.
        """
        if self._out_of_time() and not self._cancelled:
            return self._finish(self._timed_out())
        try:
            step_input = self._write(lambda session: build_step_input(session, self._settings, self._claim))
        except (InvalidInput, NotFound) as error:
            return self._finish(
                Ending(Outcome.REFUSED, error=error_row(error.code, error.message, error.param))
            )
        except Unavailable as error:
            return self._finish(put_off(error))
        self._input, self._adjustments = step_input, step_input.adjustments
        if self._cancelled:
            return self._finish(Ending(Outcome.RELEASED))
        with ExitStack() as stack:
            held = self._devices if self._claim.device_ids else ()
            cleared = [device for device in held if makes_room(self._settings, device)]
            if cleared:
                server = stack.enter_context(chat_server(self._settings))
                self._clearing = Clearing(self._settings, server, cleared, self._note_unloaded)
            ending = self._make_room() or self._run_child(step_input)
        return self._finish(ending)

    def _make_room(self) -> Ending | None:
        """Wait until the served models have left our devices; an ending if the step shall not start."""
        renewed = time.monotonic()
        while self._clearing is not None and not self._clearing.go_on():
            reason = self._reason_to_stop() or self._reason_to_end(0)
            now = time.monotonic()
            if reason is None and now - renewed >= self._settings.heartbeat_seconds:
                reason, renewed = self._renew(None), now
            if reason is not None:
                return reason
            time.sleep(LISTEN_SECONDS)
        self._reports.take(self._clearing.told() if self._clearing is not None else [])
        return None

    def _note_unloaded(self, names: list[str]) -> None:
        self._write(lambda session: note_unloaded(session, self._claim, names))

    def _run_child(self, step_input: StepInput) -> Ending:
        try:
            self._folder.mkdir(parents=True)
            child = self._start(step_input)
        except OSError as error:
            message = f"The process of step {self._claim.step} could not be started: {error}."
            return Ending(Outcome.LOST, error=error_row("step_not_started", message))
        try:
            return self._watch(child)
        finally:
            child.close()

    def _start(self, step_input: StepInput) -> Child | IndexBuild:
        claim = self._claim
        if (claim.kind, claim.step) == INDEX_STEP:
            return IndexBuild(self._factory.kw["bind"], step_input, index_policy(self._settings))
        return Child(
            self._modules[claim.kind, claim.step],
            step_input,
            deadline=self._deadline,
            marker=claim.marker,
            log_path=attempt_log(self._settings.storage_root, claim.job_id, claim.step, claim.attempt),
            # A step sees the devices that it holds, and no others.
            environment={VISIBLE_DEVICES: ",".join(claim.device_ids)} if self._devices else {},
            launch=Spawned if claim.device_ids else self._launch,
        )

    def _watch(self, child: Child | IndexBuild) -> Ending:
        """Listen to the child until it ends, or until there is a reason to end it."""
        if child.pid is not None:
            self._write(partial(note_process, claim=self._claim, pid=child.pid))
        now = time.monotonic()
        heard, written, looked, renewed = now, now, now, now
        while child.exit is None:
            messages = child.listen(LISTEN_SECONDS)
            self._reports.take(messages)
            now = time.monotonic()
            heard = now if messages else heard
            reason = self._stop(child, now) or self._reason_to_end(now - heard)
            if reason is None and now - renewed >= self._settings.heartbeat_seconds:
                reason, renewed, looked = self._renew(child), now, now
            elif reason is None and now - looked >= LOOK_EVERY_SECONDS:
                reason, looked = self._look(), now
            if reason is not None and child.exit is None:
                self._reports.take(child.end(0) if self._stopped is not None else child.end())
                return self._ended_by_us(child, reason)
            if self._reports.documents:
                self._write_documents(child)
            if self._reports.waiting and now - written >= WRITE_EVERY_SECONDS:
                self._report()
                written = now
        return self._ended_by_itself(child)

    def _stop(self, child: Child | IndexBuild, now: float) -> Ending | None:
        """Ask the step to stop once it shall; whatever it does with its time, it then has to go."""
        if self._stopped is None:
            self._stopped = self._reason_to_stop()
            if self._stopped is None:
                return None
            self._gone_by = now + DRAIN_SECONDS
            child.ask_to_stop()
        return self._stopped if now >= self._gone_by else None

    def _reason_to_stop(self) -> Ending | None:
        if self._stopping.is_set():
            return Ending(Outcome.RELEASED, reason="its worker is stopping")
        if self._pausing:
            return Ending(Outcome.RELEASED, reason="the job was paused")
        if self._made_room:
            return Ending(Outcome.RELEASED, reason="its model makes room for another step")
        if self._cancelled:
            return Ending(Outcome.RELEASED)  # of a step that has something to keep
        return self._timed_out() if self._out_of_time() else None

    def _out_of_time(self) -> bool:
        return host_seconds() >= self._claim.runs_until

    def _timed_out(self) -> Ending:
        return Ending(Outcome.EXHAUSTED, error=max_runtime_exceeded(self._claim))

    def _reason_to_end(self, silent_seconds: float) -> Ending | None:
        if host_seconds() >= self._deadline:
            raise LeaseLost("The lease could not be renewed in time.")
        if silent_seconds > self._settings.stall_seconds:
            message = f"Step {self._claim.step} showed no progress for {self._settings.stall_seconds:.0f} s."
            return Ending(Outcome.LOST, error=error_row("step_stalled", message))
        return None

    def _renew(self, child: Child | IndexBuild | None, *, longer_by: float = 0) -> Ending | None:
        lease_seconds = self._settings.lease_seconds + longer_by
        renewed = self._try(lambda session: renew(session, self._claim, lease_seconds))
        if renewed is None:
            return None
        status, self._deadline = renewed
        if child is not None:
            child.renew(self._deadline)
            self._keep_clear()
        return self._heed(status)

    def _keep_clear(self) -> None:
        if self._clearing is not None:
            self._clearing.keep_clear()
            self._reports.take(self._clearing.told())

    def _look(self) -> Ending | None:
        return self._heed(self._try(self._look_around))

    def _look_around(self, session: Session) -> JobStatus:
        asked = self._input.asked if self._input is not None else None
        self._made_room = asked is not None and any(
            find_refusing(session, backend) is not None for backend, _ in asked.places
        )
        return job_status(session, self._claim)

    def _heed(self, status: JobStatus | None) -> Ending | None:
        """Notice what the job's owner wants of it. A cancel is a reason to end the step at once."""
        self._cancelled = status == JobStatus.CANCELLING
        self._pausing = status == JobStatus.PAUSING
        return Ending(Outcome.RELEASED) if self._cancelled and not self._keeps_answers() else None

    def _keeps_answers(self) -> bool:
        return self._input is not None and keeps_answers(self._input)

    def _ended_by_us(self, child: Child | IndexBuild, reason: Ending) -> Ending:
        killed_by = child.exit.signal if child.exit is not None else None
        return replace(reason, signal=killed_by, stderr=child.tail)

    def _ended_by_itself(self, child: Child | IndexBuild) -> Ending:
        """Tell from the child's last words and its exit what became of the attempt."""
        self._write_documents(child)
        word, exited = self._reports.last_word, child.exit
        code, number = (exited.code, exited.signal) if exited is not None else (None, None)
        step = self._claim.step
        if word is not None and word["type"] in CUT_SHORT:
            error = error_row(word["code"], word["message"], word.get("param"))
            error |= {"problems": word["problems"]} if "problems" in word else {}
            if word["type"] == "exhausted":
                error = self._exhausted(word["code"], word["message"], unsaid="unsaid" in word)
            return Ending(CUT_SHORT[word["type"]], error=error, exit_code=code, stderr=child.tail)
        stopped = self._stopped is not None and number in (signal.SIGTERM, signal.SIGKILL)
        if stopped or (word is not None and word["type"] == "released"):
            ending = self._stopped or Ending(Outcome.RELEASED)
            return replace(ending, exit_code=code, signal=number, stderr=child.tail)
        if killed_for_memory(self._oom_kills, number):
            error = self._exhausted(
                "out_of_memory", f"The system ended step {step}: the host's memory ran out.", unsaid=True
            )
            return Ending(Outcome.EXHAUSTED, error=error, signal=number, stderr=child.tail)
        if word is not None and code == 0:
            return self._done(child, word["result"])
        error = fallen(step, word, str(exited), printed=child.tail if number is None else "")
        return Ending(Outcome.LOST, error=error, exit_code=code, signal=number, stderr=child.tail)

    def _done(self, child: Child | IndexBuild, result: dict[str, Any]) -> Ending:
        try:
            artifacts = self._artifacts()
        except StepFailed as failure:
            error = error_row(failure.code, failure.message)
            return Ending(Outcome.LOST, error=error, exit_code=0, stderr=child.tail)
        return Ending(Outcome.DONE, exit_code=0, stderr=child.tail, result=result, artifacts=artifacts)

    def _exhausted(self, code: str, message: str, *, unsaid: bool = False) -> dict[str, Any]:
        """The error of an attempt that ran out of something, with how to try again if there is a way.

        Args:
            unsaid: the step had no chance to give its advice.
        """
        error, fallback = error_row(code, message), self._reports.fallback
        if code == "out_of_memory" and fallback is not None:
            if fallback["adjustments"] and fallback["adjustments"] != self._adjustments:
                error["adjustments"] = fallback["adjustments"]
            elif unsaid:
                error["message"] += f" {fallback['advice']}"
        return error

    def _artifacts(self) -> list[ArtifactFile]:
        """The files that the step offered, with the sizes and hashes of its manifest."""
        files = json.loads((self._folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        artifacts = []
        for name, message in self._reports.artifacts.items():
            path = message["path"]
            entry = files.get(path)
            if entry is None or (self._folder / path).stat().st_size != entry["bytes"]:
                raise StepFailed(f"The artifact {name!r} is not in the manifest as the step left it.")
            stored = f"jobs/{self._claim.marker}/{path}"
            purpose = message.get("purpose")
            file_id = link_as_file(self._settings.storage_root, stored) if purpose else None
            artifacts.append(ArtifactFile(name, stored, entry["bytes"], entry["sha256"], purpose, file_id))
        return artifacts

    def _finish(self, ending: Ending) -> Ended:
        """Write the attempt's end. Its processes are gone, so what nobody will need can go too."""
        if self._keeps_answers() and not self._cancelled:
            self._look()  # a cancel that came just now
        if self._cancelled:
            ending = self._keep_answers(ending)
            # First, so that a cancelled job has left nothing else.
            self._remove_folders()
        ended = self._write(lambda session: self._end(session, ending))
        self._remove_leavings()
        if ended.outcome == Outcome.DONE and self._claim.step == "embed":
            remove_loaded(self._settings.storage_root, self._claim.job_id)
        log.info(
            "attempt_ended",
            outcome=str(ended.outcome),
            exit_code=ending.exit_code,
            signal=ending.signal,
            error=ending.error["message"] if ending.error else None,
        )
        return ended

    def _keep_answers(self, ending: Ending) -> Ending:
        """Let a cancelled job have the answers that it got."""
        if self._input is None or not keeps_answers(self._input):
            return ending
        self._renew(None, longer_by=self._input.results["read"]["rows"] / ROWS_A_SECOND)
        result, files = write_partial(self._settings.storage_root, self._input)
        return replace(ending, outcome=Outcome.RELEASED, result=result, artifacts=files)

    def _end(self, session: Session, ending: Ending) -> Ended:
        if ending.outcome == Outcome.DONE and self._claim.step == "publish" and ending.result is not None:
            lock_model(session, self._claim.project_id, ending.result["model"])
        try:
            job = get_job(session, self._claim.job_id, project_id=self._claim.project_id, lock=True)
        except NotFound as error:  # cancelled and deleted, since the attempt was given up for dead
            raise LeaseLost(error.message) from error
        step = hold_fence(session, self._claim)
        write_reports(session, self._claim, step, self._reports.waiting)
        return end_attempt(session, job, step, ending)

    def _report(self) -> None:
        if not self._try(self._write_reports):
            return
        saved = any(message["type"] == "checkpoint" for message in self._reports.waiting)
        self._reports.waiting.clear()
        if saved and self._claim.attempt > 1:
            # Earlier attempts' checkpoints make room for ours; the lease does not wait for large folders.
            threading.Thread(target=self._remove_leavings, name="leavings", daemon=True).start()

    def _write_reports(self, session: Session) -> bool:
        write_reports(session, self._claim, hold_fence(session, self._claim), self._reports.waiting)
        return True

    def _write_documents(self, child: Child | IndexBuild) -> None:
        """Write what the step said of documents, each in a transaction of its own. While the step runs, what
        cannot be written now waits."""
        write = self._try if child.exit is None else self._write
        for message in list(self._reports.documents):
            # The lease has to outlast the loading.
            self._renew(child, longer_by=message.get("chunks", 0) / LOADED_A_SECOND)
            if not write(partial(write_document, claim=self._claim, folder=self._folder, message=message)):
                break
            self._reports.documents.remove(message)

    def _remove_folders(self) -> None:
        """Remove the folders of this attempt and of those before it."""
        for number in range(1, self._claim.attempt + 1):
            shutil.rmtree(self._folder.with_name(str(number)), ignore_errors=True)

    def _remove_leavings(self) -> None:
        """Remove what this attempt and those before it left; if it cannot be done now, the sweep will."""
        own = and_(Step.job_id == self._claim.job_id, Step.name == self._claim.step)
        try:
            remove_leavings(self._factory, self._settings.storage_root, own)
        except DBAPIError as error:
            if not is_passing(error):
                raise
            log.warning("database_away", error=str(error.orig))

    def _try(self, work: Callable[[Session], T]) -> T | None:
        """Do `work` in a transaction; None when the database is away for the moment."""
        try:
            with transaction(self._factory) as session:
                return work(session)
        except DBAPIError as error:
            if not is_passing(error):
                raise
            log.warning("database_away", error=str(error.orig))
            return None

    def _write(self, work: Callable[[Session], T]) -> T:
        """Do `work` in a transaction, again and again until the lease has ended.

        Raises:
            LeaseLost: it could not be done in time, or the attempt is no longer current. That is also so
                when an earlier try did commit and only its answer was lost.
        """
        while True:
            try:
                with transaction(self._factory) as session:
                    return work(session)
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                log.warning("database_away", error=str(error.orig))
            if host_seconds() >= self._deadline:
                raise LeaseLost("The database did not answer while the lease lasted.")
            time.sleep(RETRY_SECONDS)
