"""Histories of jobs: whatever API, workers and sweeps may do, in any order, with faults between statements.

What holds is checked after each rule, and at the end of each history every job must come to its end.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.exc import DBAPIError

from db.errors import InvalidInput, LatheError
from db.session import is_passing
from db.states import ENDED_JOB
from tests.worker.histories.faults import BrokenConnection, Death, Died, Fault, Intruder
from tests.worker.histories.invariants import check
from tests.worker.histories.world import FILE_ID, RECEIVER, Actor, Rows, World, said
from worker.claim import Claim
from worker.lease import LeaseLost

ENDINGS = ("done", "done", "done", "lost", "refused", "exhausted", "exhausted_with_a_way", "released")
JOB_ACTIONS = ("cancel", "pause", "resume", "retry", "delete")
INTRUSIONS = (*JOB_ACTIONS, "claim", "lapse", "finish", "report")
DRAIN_ROUNDS = 12
JOBS = 5  # at once, so that a history is about each of them

WHICH = st.integers(0, 5)
LATE = st.sampled_from(["in time", "in time", "in time", "lapsed", "given up", "taken over"])
POINTS = st.integers(1, 20)
FAULTS: Any = st.one_of(
    st.none(),
    st.none(),
    st.builds(Death, POINTS),
    st.builds(BrokenConnection, POINTS),
    st.builds(Intruder, POINTS, st.sampled_from(INTRUSIONS), WHICH),
)


class Histories(RuleBasedStateMachine):
    """The rules. `attempts` are the claims whose workers live, zombies among them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.empty()
        self.rows: Rows = world.rows()
        self.attempts: list[Claim] = []
        self.accepted: set[str] = set()
        self.deleted: set[str] = set()
        self.serial = 0

    # ── how things are done, and go wrong ──

    def do(self, work: Callable[[], object], fault: Fault | None = None) -> object:
        """Do something as `main`.

        Returns:
            what came of it: a value, the error that the caller was told, or the exception that ended it.
        """
        intrude = (lambda: self.intrude(fault)) if isinstance(fault, Intruder) else (lambda: None)
        with self.world.faults.armed(fault, intrude):
            answer = self.told(work)
        assert fault is not None or not isinstance(answer, (Died, DBAPIError)), answer
        return answer

    def intrude(self, fault: Intruder) -> None:
        """Do something as `other`, in the middle of what `main` does; where he finds a lock he goes away."""
        rows, which = self.world.rows(), fault.which
        running = [step["id"] for step in rows.steps if step["status"] == "running"]
        works: dict[str, Callable[[Actor], object]] = {}
        if rows.jobs:
            job_id = rows.jobs[which % len(rows.jobs)]["id"]
            works |= {
                name: lambda other, name=name: self.act_on_job(other, name, job_id) for name in JOB_ACTIONS
            }
        if self.attempts:
            # Its deadline is over, so that it does not wait for a lock either.
            claim = replace(self.attempts[which % len(self.attempts)], deadline=0.0)
            works["report"] = lambda other: self.report_by(other, claim)
            works["finish"] = lambda other: other.finish(claim, "done")
        if running:
            works["lapse"] = lambda other: (other.lapse(running[which % len(running)]), other.sweep())
        works["claim"] = lambda other: self.claim_by(other, rows, which)
        work = works.get(fault.action)
        if work is not None:
            self.told(lambda: work(self.world.other))

    @staticmethod
    def told(work: Callable[[], object]) -> object:
        """Do some work, and give what it gave or the error that it told of."""
        try:
            return work()
        except (Died, LatheError, DBAPIError) as error:
            answer = error
        assert isinstance(answer, (Died, LatheError)) or is_passing(answer), answer
        assert getattr(answer, "code", None) != "illegal_move", answer
        return answer

    def act_on_job(self, actor: Actor, action: str, job_id: str) -> None:
        if action == "delete":
            self.deleted.add(job_id)
        getattr(actor, action)(job_id)

    def claim_by(self, actor: Actor, rows: Rows, which: int) -> Claim | None:
        queues = sorted({step["queue"] for step in rows.steps if step["status"] == "queued"}) or ["cpu"]
        claim = actor.claim(queues[which % len(queues)])
        if claim is not None:
            self.attempts.append(claim)
        return claim

    def report_by(self, actor: Actor, claim: Claim) -> bool:
        """Write what a step said, as its worker does. Whether it was written."""
        self.serial += 1
        return actor.report(claim, said(self.serial))

    def some_attempt(self, which: int, late: str) -> Claim:
        """An attempt whose worker lives; `late`: for whom what it does next comes too late."""
        claim = self.attempts[which % len(self.attempts)]
        if late != "in time":
            self.world.other.lapse(claim.step_id)
            if late != "lapsed":
                self.world.other.sweep()
            if late == "taken over":
                self.world.other.let_backoffs_pass()
                if (newer := self.world.other.claim(claim.queue)) is not None:
                    self.attempts.append(newer)
            self.look()
        return claim

    # ── the rules ──

    @initialize(
        fault=FAULTS,
        kind=st.sampled_from(["pretrain", "fine_tune"]),
        max_attempts=st.integers(1, 3),
        told=st.booleans(),
    )
    def begin(self, fault: Fault | None, kind: str, max_attempts: int, told: bool) -> None:
        self.submit(fault, kind, max_attempts, told)

    @precondition(lambda self: len(self.rows.jobs) < JOBS)
    @rule(
        fault=FAULTS,
        kind=st.sampled_from(["pretrain", "fine_tune"]),
        max_attempts=st.integers(1, 3),
        told=st.booleans(),
    )
    def submit(self, fault: Fault | None, kind: str, max_attempts: int, told: bool) -> None:
        params = (
            {"name": "m", "base_model": "tiny", "training_file": FILE_ID}
            if kind == "fine_tune"
            else {"name": "tiny"}
        )
        request = {"kind": kind, "params": params, "max_attempts": max_attempts}
        request |= {"webhook_url": RECEIVER} if told else {}
        answer = self.do(lambda: self.world.main.submit(request), fault)
        if isinstance(answer, str):
            self.accepted.add(answer)

    @precondition(lambda self: self.rows.jobs)
    @rule(fault=FAULTS, action=st.sampled_from(JOB_ACTIONS), which=WHICH)
    def change(self, fault: Fault | None, action: str, which: int) -> None:
        job = self.rows.jobs[which % len(self.rows.jobs)]
        self.do(lambda: self.act_on_job(self.world.main, action, job["id"]), fault)

    @rule(fault=FAULTS, which=WHICH)
    def claim(self, fault: Fault | None, which: int) -> None:
        could = {step["queue"] for step in self.rows.steps if self.is_claimable(step)}
        queues = sorted(could) or ["train"]
        found = self.do(lambda: self.world.main.claim(queues[which % len(queues)]), fault)
        if isinstance(found, Claim):
            self.attempts.append(found)
        assert fault is not None or isinstance(found, Claim) == bool(could)

    def is_claimable(self, step: dict[str, Any]) -> bool:
        job = self.rows.job(step["job_id"])
        return bool(
            job is not None
            and job["status"] in ("queued", "running")
            and step["status"] == "queued"
            and step["due"]
        )

    @precondition(lambda self: self.attempts)
    @rule(fault=FAULTS, which=WHICH, late=LATE)
    def start(self, fault: Fault | None, which: int, late: str) -> None:
        """Gather an attempt's input, as its worker does before it starts a process."""
        claim = self.some_attempt(which, late)
        answer = self.do(lambda: self.world.main.gather_input(claim), fault)
        if isinstance(answer, Died):
            self.attempts.remove(claim)

    @precondition(lambda self: self.attempts)
    @rule(fault=FAULTS, which=WHICH, late=LATE)
    def report(self, fault: Fault | None, which: int, late: str) -> None:
        claim = self.some_attempt(which, late)
        current = self.rows.is_current(claim)
        answer = self.do(lambda: self.report_by(self.world.main, claim), fault)
        if isinstance(answer, Died):
            self.attempts.remove(claim)
        assert fault is not None or (answer is True) == current, answer

    @precondition(lambda self: self.attempts)
    @rule(fault=FAULTS, which=WHICH, late=LATE)
    def heartbeat(self, fault: Fault | None, which: int, late: str) -> None:
        claim = self.some_attempt(which, late)
        current = self.rows.is_current(claim)
        answer = self.do(lambda: self.world.main.heartbeat(claim), fault)
        if isinstance(answer, (Died, LeaseLost)):
            self.attempts.remove(claim)
        assert fault is not None or isinstance(answer, str) == current, answer

    @precondition(lambda self: self.attempts)
    @rule(fault=FAULTS, which=WHICH, late=LATE, how=st.sampled_from(ENDINGS))
    def finish(self, fault: Fault | None, which: int, late: str, how: str) -> None:
        """An attempt ends, and its worker writes so: also one that has long been given up for dead."""
        claim = self.some_attempt(which, late)
        self.attempts.remove(claim)
        current = self.rows.is_current(claim)
        answer = self.do(lambda: self.world.main.finish(claim, how), fault)
        assert fault is not None or isinstance(answer, LeaseLost) != current, answer

    @precondition(lambda self: self.attempts)
    @rule(which=WHICH)
    def worker_dies(self, which: int) -> None:
        self.attempts.pop(which % len(self.attempts))

    @precondition(lambda self: any(step["status"] == "running" for step in self.rows.steps))
    @rule(fault=FAULTS, which=WHICH)
    def sweep(self, fault: Fault | None, which: int) -> None:
        """A lease has lapsed, and a sweep comes by."""
        running = [step for step in self.rows.steps if step["status"] == "running"]
        self.world.other.lapse(running[which % len(running)]["id"])
        self.do(self.world.main.sweep, fault)

    @precondition(lambda self: any(step["not_before"] for step in self.rows.steps))
    @rule()
    def backoff_passes(self) -> None:
        self.world.other.let_backoffs_pass()

    @precondition(lambda self: any(self.is_claimable(step) for step in self.rows.steps))
    @rule(steps=st.integers(1, 3))
    def undisturbed(self, steps: int) -> None:
        """A worker to whom nothing happens takes some steps to their end."""
        for _ in range(steps):
            if not self.work_one("done"):
                break

    def work_one(self, how: str) -> bool:
        """A worker takes one step to `how`, if there is one. Whether there was."""
        queue = next((step["queue"] for step in self.rows.steps if self.is_claimable(step)), None)
        if queue is None:
            return False
        claim = self.world.main.claim(queue)
        assert claim is not None
        try:
            self.world.main.gather_input(claim)
            self.world.main.finish(claim, how)
        except InvalidInput:
            self.world.main.finish(claim, "refused")
        self.look()
        return True

    # ── what holds ──

    @invariant()
    def look(self) -> None:
        self.rows = self.world.rows()
        check(self.rows)
        there = {job["id"] for job in self.rows.jobs}
        assert self.accepted - self.deleted <= there, "an accepted job is lost"

    def teardown(self) -> None:
        """From wherever the history has led, every job comes to its end."""
        self.attempts.clear()
        goes_on = 6
        for _ in range(DRAIN_ROUNDS):
            for step in self.rows.steps:
                if step["status"] == "running":
                    self.world.other.lapse(step["id"])
            self.world.main.sweep()
            for job in self.rows.jobs:
                if job["status"] == "paused":
                    self.do(lambda job=job: self.world.main.resume(job["id"]))
            self.world.other.let_backoffs_pass()
            self.look()
            # Some go on to the next step; the others end their job at once, or a history's end took longest.
            while self.work_one("done" if goes_on > 0 else "refused"):
                goes_on -= 1
            if all(job["status"] in ENDED_JOB for job in self.rows.jobs):
                return
        raise AssertionError(f"stuck: {[job for job in self.rows.jobs if job['status'] not in ENDED_JOB]}")
