"""What is known of one job that is followed, and how its changes are told in lines, each once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cli.curve import Curve
from cli.text import duration, moment, size

JSON = dict[str, Any]

ENDED = frozenset({"succeeded", "failed", "cancelled"})
WAITING = frozenset({"pending", "queued", "paused"})

# What of a step's measured values is shown, in this order.
SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda value: f"loss {value:#.4g}"),
    ("eval_loss", lambda value: f"validation loss {value:#.4g}"),
    ("reward", lambda value: f"reward {value:.4g}"),
    ("eval_reward", lambda value: f"validation reward {value:.4g}"),
    ("kl", lambda value: f"KL {value:.3g}"),
    ("tokens_per_second", lambda value: f"{value:,.0f} tokens/s"),
    ("memory_bytes", size),
)


@dataclass
class Track:
    """One job: its JSON, and what its events told.

    A change is in the job's JSON and, with its own time and in its order, among the events: whichever comes
    first is told.
    """

    job: JSON
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)
    _told_steps: set[tuple[str, int, str]] = field(default_factory=set)
    _told_status: str = ""
    _began: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        name = str((self.job.get("params") or {}).get("name") or "")
        return f"{self.job['kind']} {name}".strip()

    def measures(self, step: str) -> str:
        values = self.measured.get(step, {})
        return " · ".join(write(values[name]) for name, write in SHOWN if name in values)

    def measure(self, event: JSON) -> None:
        """Take measured values of a step, such as loss and tokens_per_second."""
        values = event.get("data") or {}
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        self.measured.setdefault(str(event.get("step") or ""), {}).update(numbers)
        self.curve.add(int(event.get("attempt") or 0), numbers)

    def progress(self, step: JSON) -> JSON | None:
        progress = self.job.get("progress")
        if not progress or not progress.get("total") or step["status"] != "running":
            return None
        return progress if progress.get("step") in (None, step["name"]) else None

    def introduction(self) -> Iterator[str]:
        yield f"{self.job['id']} {self.job['status']}"
        if self.job.get("waits_for") and self.job["status"] == "queued":
            yield f"waits for {self.job['waits_for']}"
        elif self.job.get("queue_position"):
            yield place(self.job)

    def take(self, job: JSON) -> Iterator[str]:
        """Take the job's newest JSON, and say what of it is not told yet."""
        before, self.job = self.job, job
        for step in job["steps"]:
            if step["status"] not in ("pending", "queued"):
                took = elapsed(step, step["finished_at"]) if step.get("finished_at") else ""
                yield from self._step(step["name"], step.get("attempt") or 0, step["status"], took)
        if job["status"] not in (before["status"], self._told_status):
            took = elapsed(job, job["finished_at"]) if job.get("finished_at") else ""
            yield job["status"] + (f" in {took}" if took else "")
        if job["status"] != before["status"]:
            self._told_status = job["status"]

    def tell(self, event: JSON) -> list[str] | None:
        """What an event says of the state of a step or the job; None when it says something else."""
        status, at = (event.get("data") or {}).get("status"), event.get("created_at")
        if status is None:
            return None
        step = event.get("step")
        if step is None:
            self._told_status = status
            ended = at and status in ENDED and self.job.get("started_at")
            took = duration(at - self.job["started_at"]) if ended else ""
            # Why it failed is in the event's own words.
            return None if status == "failed" else [status + (f" in {took}" if took else "")]
        if status == "running" and at:
            self._began[step] = at
        took = duration(at - self._began[step]) if status in ENDED and at and step in self._began else ""
        return list(self._step(step, event.get("attempt") or 0, status, took))

    def _step(self, name: str, attempt: int, status: str, took: str) -> Iterator[str]:
        if (name, attempt, status) in self._told_steps:
            return
        self._told_steps.add((name, attempt, status))
        line = f"{name} {status}" + (f" (attempt {attempt})" if attempt > 1 else "")
        if took:
            measures = self.measures(name)
            line += f" in {took}" + (f" · {measures}" if measures else "")
        yield line

    def progress_line(self) -> str | None:
        for step in self.job["steps"]:
            progress = self.progress(step)
            if progress:
                measures = self.measures(step["name"])
                return f"{step['name']} {how_far(progress)}" + (f" · {measures}" if measures else "")
        return None


def elapsed(row: JSON, now: float) -> str:
    """How long a job or step has run, or ran; nothing if it never started.

    Of what waits to go on, as a paused job and its step do, it is what its attempts took, where that is told.
    """
    if not row.get("started_at"):
        return ""
    if row["status"] in WAITING:
        ran = row.get("runtime_seconds", _attempts_took(row))
        return duration(ran) if ran else ""
    return duration((row.get("finished_at") or now) - row["started_at"])


def _attempts_took(step: JSON) -> float:
    ended = [attempt for attempt in step.get("attempts") or [] if attempt["ended_at"]]
    return float(sum(attempt["ended_at"] - attempt["started_at"] for attempt in ended))


def place(job: JSON) -> str:
    """Where a waiting job stands, and when its turn is likely to come."""
    starts = job.get("estimated_start_at")
    return f"place {job['queue_position']} in the line" + (
        f", may start at {moment(starts)}" if starts else ""
    )


def how_far(progress: JSON) -> str:
    is_share = progress.get("unit") == "percent"
    text = f"{progress['done']} %" if is_share else f"{progress['done']:,}/{progress['total']:,}"
    if progress.get("unit") and not is_share:
        text += f" {progress['unit']}"
    if progress.get("eta_seconds"):
        text += f", {duration(progress['eta_seconds'])} left"
    return text
