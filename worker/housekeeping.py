"""What ages out is removed at a modest pace: by one worker at a time, and a little at once.

What dead attempts have left goes first, whenever the sweep begins it, but in a thread of its own: removing a
large folder takes seconds, in which a lost step would wait.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.errors import LatheError
from db.session import allow_silence, is_passing, transaction, unless_away
from retention import HOUSEKEEPING_LOCK, RULES, Expired, House, Removal, Rule
from worker.leavings import ended_within, no_longer_of_use, remove_leavings
from worker.runner import Runner

AT_ONCE = 50  # of each rule, between two pauses
PAUSE_SECONDS = 10.0  # while there is more
DAY_SECONDS = 24 * 3600.0
# How long after its end an attempt's leavings are looked for.
FOLDERS_FOR = timedelta(hours=1)
# And what was kept of it, after the end of its job.
CHECKPOINTS_FOR = timedelta(days=1)

log = structlog.get_logger(__name__)


class Housekeeper:
    """Removes what dead attempts left, and what the rules that are due find. `begin` returns at once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._house = House(runner.settings)
        self._cursors: dict[str, Any] = {}
        self._began_anew = time.monotonic()
        # Not at once: a worker that starts has better things to do.
        soon = time.monotonic() + min(PAUSE_SECONDS, runner.settings.housekeeping_seconds)
        self._due = {rule.kind: soon for rule in RULES}
        # The first look is at all that there was: somebody may have cancelled while no worker lived.
        self._checkpoints_for: timedelta | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start a pass in a thread, if none runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._try("attempt's folder", self.remove_dead_folders)
        now, every = time.monotonic(), self._runner.settings.housekeeping_seconds
        if now - self._began_anew > DAY_SECONDS:
            self._began_anew = now
            self._cursors.clear()  # what was held when it was passed over may be free by now
        for rule in RULES:
            if now < self._due[rule.kind] or self._runner.stopping.is_set():
                continue
            more = self._try(rule.kind, partial(self.keep, rule))
            self._due[rule.kind] = time.monotonic() + (min(PAUSE_SECONDS, every) if more else every)

    def _try(self, rule: str, work: Callable[[], bool]) -> bool:
        try:
            with unless_away():
                return work()
        except Exception:
            # The edge of the thread: a rule that fails must stop neither the worker nor the others.
            log.exception("housekeeping_broken", rule=rule)
        return False

    def remove_dead_folders(self) -> bool:
        """Remove what attempts that came to nothing have left, whichever machine they ran on.

        Returns:
            whether that was done: another worker may be at it.
        """
        runner = self._runner
        with transaction(runner.factory) as session:
            if not _keeps_house(session):
                return False
            for which in (ended_within(FOLDERS_FOR), no_longer_of_use(self._checkpoints_for)):
                remove_leavings(runner.factory, runner.settings.storage_root, which)
        self._checkpoints_for = CHECKPOINTS_FOR
        return True

    def keep(self, rule: Rule) -> bool:
        """Remove a batch of what a rule finds. Returns whether there is more."""
        with transaction(self._runner.factory) as session:
            batch = rule.find(session, self._house, self._cursors.get(rule.kind), AT_ONCE)
        removals = []
        for item in batch.items:
            if self._runner.stopping.is_set():
                return True
            removals.append(self._remove(rule, item))
        if Removal.MORE in removals:
            return True
        # What somebody works on just now is looked at again next time.
        if Removal.KEPT not in removals:
            self._cursors[rule.kind] = batch.cursor
        return batch.more

    def _remove(self, rule: Rule, item: Expired) -> Removal:
        """Remove one thing. While another worker keeps house, nothing is removed here."""
        try:
            with transaction(self._runner.factory) as session:
                if not _keeps_house(session):
                    return Removal.KEPT
                removal = rule.remove(session, self._house, item)
        except (OSError, LatheError) as error:
            log.warning("not_removed", what=item.kind, id=item.id, error=str(error))
            return Removal.DONE  # passed over, until all is looked at anew
        except DBAPIError as error:
            if is_passing(error):
                raise
            log.exception("not_removed", what=item.kind, id=item.id)
            return Removal.DONE  # what comes after it is not held up
        if removal != Removal.KEPT:
            log.info("removed", what=item.kind, id=item.id, why=item.why, bytes=item.bytes, rows=item.rows)
        return removal


def _keeps_house(session: Session) -> bool:
    """Whether no other worker does, until the end of this transaction, however long it is silent."""
    allow_silence(session)
    return session.scalars(select(func.pg_try_advisory_xact_lock(HOUSEKEEPING_LOCK))).one()
