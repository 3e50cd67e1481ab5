"""The curve of a training's loss, or of what its answers are rewarded with, drawn in a terminal."""

import math

from rich.text import Text

# As plotext calls each colour, as rich does, and what is written beside it.
LOSSES = {"loss": ("cyan", "cyan", "loss"), "eval_loss": ("orange", "yellow", "validation loss")}
# Of a training by GRPO, whose loss says nothing: it is about 0, however good the answers are.
REWARDS = {"reward": ("cyan", "cyan", "reward"), "eval_reward": ("orange", "yellow", "validation reward")}
NAMES = {**LOSSES, **REWARDS}
INDENT = 5
LEAST_POINTS, LEAST_LINES, LEAST_COLUMNS = 3, 6, 40


class Curve:
    """Loss and validation loss, or rewards, by training step, as the newest attempt measured them."""

    def __init__(self) -> None:
        self._points: dict[str, dict[int, float]] = {name: {} for name in NAMES}
        self._attempt = 0
        self._drawn: tuple[object, Text] | None = None

    def add(self, attempt: int, values: dict[str, float]) -> None:
        """Take what was measured at one training step.

        A later attempt may measure steps again: what an earlier one measured from there on is forgotten.
        """
        if "step" not in values:
            return
        number = int(values["step"])
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            self._attempt = attempt
            for name, points in self._points.items():
                self._points[name] = {step: value for step, value in points.items() if step < number}
        for name, points in self._points.items():
            if name in values and math.isfinite(values[name]):
                points[number] = values[name]
        self._drawn = None

    def draw(self, columns: int, lines: int) -> Text | None:
        """The curve in so many columns and lines; None when there is too little of either, or to show."""
        measured = max(len(self._points["loss"]), len(self._points["reward"]))
        if lines < LEAST_LINES or columns < LEAST_COLUMNS or measured < LEAST_POINTS:
            return None
        if self._drawn is None or self._drawn[0] != (columns, lines):
            self._drawn = (columns, lines), self._plot(columns, lines)
        return self._drawn[1]

    def _plot(self, columns: int, lines: int) -> Text:
        import plotext  # 0.15 s, which only who watches a training shall wait for

        plotext.clear_figure()
        plotext.limit_size(False, False)
        plotext.plot_size(columns, lines - 1)
        plotext.theme("clear")
        # Its own legend lies over the upper left corner, where a loss begins.
        legend = Text(" " * INDENT)
        main, shown = ("reward", REWARDS) if self._points["reward"] else ("loss", LOSSES)
        for name, (colour, style, label) in shown.items():
            points = sorted(self._points[name].items())
            if points:
                plotext.plot(*zip(*points, strict=True), marker="braille", color=colour)
                legend.append("⠒⠒", style).append(f" {label}   ")
        first, last = min(self._points[main]), max(self._points[main])
        plotext.xticks(sorted({round(first + (last - first) * part / 4) for part in range(5)}))
        legend.rstrip()
        return Text.assemble(legend, "\n", Text.from_ansi(plotext.build()))
