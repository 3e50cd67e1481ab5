"""The supervisor: starts the parts in order, watches them, starts the dead again, and stops them.

    python -m deploy.local.supervisor [--report-fd N]

One loop in one thread, which the kernel wakes when a child dies or somebody asks us to stop. Every
child is told to die with this thread (`child.py`), so that even a SIGKILL leaves nothing running;
orphans of a part that died come to us, for we are their subreaper.
"""

import argparse
import contextlib
import os
import sys
import time
from datetime import datetime

from db.errors import LatheError, StepFailed
from db.settings import Settings, load_settings
from deploy.local import child, logs, parts, report, startup, state
from deploy.local.fetching import LOOK_SECONDS, Fetching
from deploy.local.parts import Part, Secrets, externals, local_api_url
from deploy.local.process import Supervised
from deploy.local.report import Reporter
from deploy.local.signals import Signals, StopRequested
from deploy.local.state import PartState, StackState

PR_SET_CHILD_SUBREAPER = 36
# A part that dies so often before it was ever ready will not become so.
TRIES_AT_START = 3
IDLE_SECONDS = 15.0
STOP_SECONDS = 39.0


class Supervisor:
    """A local stack on one data folder, from start to stop."""

    def __init__(self, settings: Settings, reporter: Reporter, signals: Signals) -> None:
        self.settings = settings
        self.reporter = reporter
        self.signals = signals
        self.secrets = Secrets(settings)
        self.ready = False
        self._groups: list[list[Supervised]] = []
        self._written: tuple[bool, list[PartState]] | None = None
        self._externals = externals(settings)

    # --- what startup.py builds on

    def begin(self, parts: list[Part]) -> list[Supervised]:
        """Start parts together; they stop together, before those that were started earlier."""
        group = [Supervised(part, self.settings.data_dir) for part in parts]
        self._groups.append(group)
        for supervised in group:
            supervised.start()
        self._write_state()
        return group

    def wait_for(self, group: list[Supervised]) -> None:
        """Wait until each part of a group is ready.

        Raises:
            StepFailed: one died again and again, or was not ready in its time; with the end of its log.
        """
        waiting = list(group)
        while waiting:
            self.reporter.working("waiting for " + ", ".join(s.part.title for s in waiting))
            self.tick(0.1)
            for supervised in [s for s in waiting if s.state == "ready"]:
                seconds = time.monotonic() - supervised.started
                self.reporter.done(
                    supervised.part.title, f"{supervised.part.address}  {seconds:.1f} s".strip()
                )
                waiting.remove(supervised)

    def tick(self, longest_wait: float) -> None:
        """One turn: wait for something to happen, then see to every part.

        Raises:
            StopRequested: somebody wants the stack to stop.
        """
        self.signals.wait(longest_wait)
        if self.signals.stops:
            raise StopRequested
        self._reap()
        now = time.monotonic()
        for supervised in self._all():
            if supervised.state == "restarting" and now >= supervised.start_at:
                supervised.restart()
                self.note(f"{supervised.part.name} started again")
            supervised.check()
            logs.rotate(supervised.log)
        self._write_state()

    def note(self, text: str) -> None:
        """Write a line into the supervisor's own log."""
        path = logs.folder(self.settings.data_dir) / "supervisor.log"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as log:
            log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")
        logs.rotate(path)

    # --- life

    def run(self) -> int:
        """Start everything and stay until asked to stop; returns the exit code."""
        code = 1
        try:
            with state.hold(self.settings.data_dir):
                try:
                    code = self._live()
                finally:
                    self._stop()
        except (LatheError, OSError) as error:  # another stack holds the folder, or it is not ours
            self._fail(error)
        self.reporter.close()
        return code

    def _live(self) -> int:
        try:
            startup.end_leftovers(self.settings)
            self._write_state()
            startup.bring_up(self)
            self.ready = True
            self._write_state()
            self.note("ready")
            self.reporter.finished(self._facts())
            fetching = Fetching(
                self.settings.configured_model, parts.database_url(self.settings, self.secrets)
            )
            while True:
                wait = self._until_next_turn()
                self.tick(wait if fetching.is_over else min(wait, LOOK_SECONDS))
                for news in fetching.news():
                    self.note(news)
                    self.reporter.line(news)
        except StopRequested:
            return 0 if self.ready else 130
        except (LatheError, OSError) as error:
            self._fail(error)
            self.note(f"failed: {error}")
            return 1

    def _fail(self, error: LatheError | OSError) -> None:
        self.reporter.problem(f"lathe up: {error}")
        if isinstance(error, StepFailed) and error.stderr not in error.message:
            for line in error.stderr.splitlines():
                self.reporter.line(line)

    def _until_next_turn(self) -> float:
        now = time.monotonic()
        if any(supervised.state == "starting" for supervised in self._all()):
            return 0.1
        restarts = [s.start_at - now for s in self._all() if s.state == "restarting"]
        return max(0.05, min([IDLE_SECONDS, *restarts]))

    def _reap(self) -> None:
        by_pid = {supervised.pid: supervised for supervised in self._all() if supervised.alive}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if (supervised := by_pid.pop(ended.si_pid, None)) is not None:
                self._died(supervised)
            else:
                os.waitpid(ended.si_pid, 0)  # an orphan that a part left to us

    def _died(self, supervised: Supervised) -> None:
        death = supervised.collect()
        name = supervised.part.name
        if not self.ready and supervised.deaths_in_a_row >= TRIES_AT_START:
            raise StepFailed(
                f"{supervised.part.title} does not start ({death.note}). The end of {supervised.log}:",
                stderr="\n".join(death.log),
            )
        text = f"{name}: {death.note}; trying again in {death.delay_seconds:g} s"
        self.note("\n".join([text, *(f"    {line}" for line in death.log)]))
        self.reporter.problem(text)
        for line in death.log[-5:]:
            self.reporter.line(line)

    # --- the end

    def _stop(self) -> None:
        """Stop the parts, the latest first, within a bound; then whatever else is below us."""
        begun = time.monotonic()
        for group in reversed(self._groups):
            self._stop_group(group, begun + STOP_SECONDS)
        startup.end_descendants()
        state.remove(self.settings.data_dir)
        if self._groups:
            self.note("stopped")
            self.reporter.done("stopped", f"{time.monotonic() - begun:.1f} s")

    def _stop_group(self, group: list[Supervised], deadline: float) -> None:
        begun = time.monotonic()
        alive = [supervised for supervised in group if supervised.alive]
        for supervised in alive:
            supervised.ask_to_stop()
        while alive:
            self.reporter.working("stopping " + ", ".join(s.part.title for s in alive))
            now = time.monotonic()
            for supervised in alive:
                in_a_hurry = self.signals.stops > 1 or now > deadline
                if in_a_hurry or now - begun > supervised.part.stop_seconds:
                    supervised.kill()
            self.signals.wait(0.1)
            for supervised in [s for s in alive if s.has_ended()]:
                supervised.collect()
                supervised.state = "stopped"
                alive.remove(supervised)
            self._write_state()

    # --- what others see

    def _all(self) -> list[Supervised]:
        return [supervised for group in self._groups for supervised in group]

    def _write_state(self) -> None:
        parts = [supervised.describe() for supervised in self._all()]
        if (self.ready, parts) == self._written:
            return
        self._written = (self.ready, parts)
        theirs = [PartState(e.name, e.title, "external", e.address) for e in self._externals]
        state.write(
            StackState(
                pid=os.getpid(),
                created_at=state.own_create_time(),
                data_dir=str(self.settings.data_dir),
                api_url=local_api_url(self.settings),
                flower_url=f"http://127.0.0.1:{self.settings.flower_port}",
                flower_user=self.settings.flower_user,
                ready=self.ready,
                parts=parts + theirs,
            )
        )

    def _facts(self) -> dict[str, str]:
        # A service's journal is no place for a password.
        shown = not isinstance(self.reporter, report.PlainReporter)
        password = self.secrets.flower if shown else "see `lathe status`"
        return {
            "API": local_api_url(self.settings),
            "Chat": f"{local_api_url(self.settings)}/chat",
            "Flower": f"http://127.0.0.1:{self.settings.flower_port}  "
            f"user {self.settings.flower_user}, password {password}",
            "Data": str(self.settings.data_dir),
            "Logs": "lathe logs -f",
            "Stop": "lathe down" if isinstance(self.reporter, report.PipeReporter) else "Ctrl-C",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the local stack in the foreground.")
    parser.add_argument("--report-fd", type=int, help="write what happens to this descriptor, as JSON lines")
    options = parser.parse_args()
    signals = Signals()
    child.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.ExitStack() as stack:
        reporter = report.for_terminal()
        if options.report_fd is not None:
            os.set_inheritable(options.report_fd, False)
            reporter = report.PipeReporter(stack.enter_context(os.fdopen(options.report_fd, "w")))
        try:
            settings = load_settings()
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (LatheError, OSError) as error:
            reporter.problem(f"lathe up: {error}")
            sys.exit(1)
        sys.exit(Supervisor(settings, reporter, signals).run())


if __name__ == "__main__":
    main()
