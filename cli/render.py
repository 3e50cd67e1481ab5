"""A job as it runs, drawn for a person.

`JobView` is fed with the JSON of `GET /v1/jobs/{id}` and of its events. On a terminal it redraws steps,
bar, loss, speed, time left and the curve of the loss in place, with events scrolling by above; elsewhere
it prints one plain line for each change. A job may wait for another (the weights of `tiny`, say): feed
that one too.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.text import harmless, moment
from cli.track import ENDED, WAITING, Track, elapsed, how_far, place

JSON = dict[str, Any]

STYLES = {
    "pending": "dim",
    "queued": "dim",
    "running": "bold cyan",
    "pausing": "yellow",
    "paused": "yellow",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
}
MARKS = {"running": "▸", "succeeded": "✔", "failed": "✘", "cancelled": "■"}
ASCII_MARKS = {"running": ">", "succeeded": "+", "failed": "x", "cancelled": "-"}
LEVEL_STYLES = {"info": "", "warn": "yellow", "error": "red"}


CURVE_LINES, CURVE_COLUMNS = 12, 100


class JobView:
    """Show jobs on `console` while they run. Use as a context manager.

    Args:
        console: where to draw; whether it is a terminal decides how.
        clock: the time in Unix seconds.
        line_seconds: how often, at most, a plain line tells of mere progress.
    """

    def __init__(
        self, console: Console, *, clock: Callable[[], float] = time.time, line_seconds: float = 5.0
    ) -> None:
        self.console = console
        self._clock = clock
        self._line_seconds = line_seconds
        self._last_line = clock()
        self._tracks: dict[str, Track] = {}
        self._marks = ASCII_MARKS if console.options.ascii_only else MARKS
        self._live: Live | None = None
        if console.is_interactive:
            self._live = Live(
                get_renderable=self._draw, console=console, refresh_per_second=4, redirect_stderr=False
            )

    def __enter__(self) -> "JobView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, job: JSON) -> None:
        """Take a job's newest state. The first job given is the one that is followed."""
        track = self._tracks.get(job["id"])
        if track is None:
            self._tracks[job["id"]] = track = Track(job)
            changes = list(track.introduction())
        else:
            changes = list(track.take(job))
        if self._live:
            self._live.refresh()
            return
        if not changes and self._clock() - self._last_line >= self._line_seconds:
            changes = [line for line in (track.progress_line(),) if line]
        for line in changes:
            self._say(f"{track.title}: {line}", self._clock())

    def event(self, job_id: str, event: JSON) -> None:
        """Take one of a job's events: measured values are kept, anything else is told."""
        track = self._tracks.get(job_id)
        if event.get("type") == "metrics":
            if track is not None:
                track.measure(event)
            return
        told_at = event.get("created_at") or self._clock()
        if self._live:
            self._print_event(job_id, event, told_at)
            return
        # Elsewhere the table of steps is not there to show what has become of them.
        lines = track.tell(event) if track is not None else None
        if lines is None:
            level = str(event.get("level") or "info")
            step = f"{event['step']}: " if event.get("step") else ""
            lines = [f"{step}{'' if level == 'info' else f'{level}: '}{_message_of(event)}"]
        for line in lines:
            self._say(f"{self._name_of(job_id)}: {line}", told_at)

    def _print_event(self, job_id: str, event: JSON, told_at: float) -> None:
        step = f"{event['step']}: " if event.get("step") else ""
        if len(self._tracks) > 1:
            step = f"{self._name_of(job_id)}: {step}"
        style = LEVEL_STYLES.get(str(event.get("level") or "info"), "")
        self.console.print(
            Text.assemble((f"{moment(told_at)}  ", "dim"), (step, "dim"), (_message_of(event), style))
        )

    def _say(self, line: str, told_at: float) -> None:
        self._last_line = self._clock()
        text = " ".join(harmless(line).splitlines())
        self.console.print(Text(f"{moment(told_at)} {text}"), soft_wrap=True, highlight=False)

    def _draw(self) -> RenderableType:
        # What is waited for was fed later, and is drawn first.
        tracks = list(reversed(self._tracks.values()))
        parts = [part for track in tracks for part in self._draw_track(track)]
        taken = sum(2 + 2 * len(track.job["steps"]) for track in tracks)
        lines = 0 if self.console.options.ascii_only else min(CURVE_LINES, self.console.height - taken)
        # One curve: that of the job at work, or of the one that is followed.
        at_work = [track for track in tracks if track.job["status"] == "running"] or tracks[-1:]
        for track in at_work[:1]:
            curve = track.curve.draw(min(CURVE_COLUMNS, self.console.width - 1), lines)
            parts += [curve] if curve else []
        return Group(*parts)

    def _draw_track(self, track: Track) -> Iterator[RenderableType]:
        job, now = track.job, self._clock()
        status = job["status"]
        header = Text.assemble(
            (track.title, "bold"), ("  ", ""), (job["id"], "dim"), ("  ", ""), (status, STYLES[status])
        )
        since = elapsed(job, now)
        if since:
            word = " in" if status in ENDED else " after" if status in WAITING else ""
            header.append(f"{word} {since}")
        header.no_wrap, header.overflow = True, "ellipsis"
        yield header
        awaited = job.get("waits_for")
        if awaited and status == "queued":
            yield Text(f"  waits for {self._name_of(awaited)}", "dim")
        elif job.get("queue_position"):
            yield Text(f"  {place(job)}", "dim")
        if status != "queued" or not awaited:
            yield self._draw_steps(track, now)

    def _name_of(self, job_id: str) -> str:
        track = self._tracks.get(job_id)
        return track.title if track else job_id

    def _draw_steps(self, track: Track, now: float) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=3, justify="right")
        table.add_column()
        table.add_column(justify="right", min_width=6)
        table.add_column(no_wrap=True)
        for step in track.job["steps"]:
            status, style = step["status"], STYLES[step["status"]]
            mark = Text(self._marks.get(status, "·" if self._marks is MARKS else "."), style)
            name = Text(step["name"], "" if status in ("running", "succeeded") else style)
            for row, part in enumerate(self._draw_step_details(track, step)):
                first = row == 0
                table.add_row(
                    mark if first else "", name if first else "", elapsed(step, now) if first else "", part
                )
        return table

    def _draw_step_details(self, track: Track, step: JSON) -> list[RenderableType]:
        parts: list[RenderableType] = []
        progress = track.progress(step)
        if progress:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(
                    total=progress["total"],
                    completed=progress["done"],
                    width=max(8, min(32, self.console.width - 52)),
                ),
                how_far(progress),
            )
            parts.append(bar)
        measures = track.measures(step["name"])
        if measures:
            parts.append(Text(measures, "dim" if step["status"] == "succeeded" else ""))
        if (step.get("attempt") or 0) > 1:
            parts.append(Text(f"attempt {step['attempt']}", "yellow"))
        return parts or [Text("")]


def _message_of(event: JSON) -> str:
    return harmless(str(event.get("message", ""))).rstrip()
