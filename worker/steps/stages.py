"""Progress of a step that does one thing after another, each of which counts for itself."""

from worker.step import Message, Step


class Stages:
    """A step's progress in percent, of which each of `count` stages has an equal share."""

    def __init__(self, step: Step, count: int) -> None:
        self._step, self._count, self._begun = step, count, 0

    def next(self) -> Step:
        """The step as the next stage tells its progress to."""
        before, self._begun = self._begun, self._begun + 1

        def send(message: Message) -> None:
            if message["type"] == "progress":
                share = min(1.0, message["done"] / max(1, message["total"]))
                done = int(100 * min(before + share, self._count) / self._count)
                message = {**message, "done": done, "total": 100, "unit": "percent", "eta_seconds": None}
            self._step.relay(message)

        stage = Step(self._step.input, send)
        stage.progress(0, 1)
        return stage
