"""What a trainer tells while it trains: progress, metrics, evaluations, and when to stop."""

import math
import time
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from db.errors import InvalidInput
from worker.step import Step
from worker.steps import together
from worker.steps.runtime import peak_memory_bytes
from worker.steps.training_results import measured

SECONDS_BETWEEN_PROGRESS = 0.5


class ProgressReporter(TrainerCallback):
    """Sends progress after steps, and each log line as metrics."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._started = 0.0
        self._sent = 0.0
        self._began_at = 0
        self._tokens_before = 0
        self.tokens = 0
        self.tokens_per_second = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._began_at, self._tokens_before = time.monotonic(), state.global_step, self.tokens
        self._step.progress(state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.monotonic()
        if now - self._sent < SECONDS_BETWEEN_PROGRESS and state.global_step < state.max_steps:
            return
        self._sent = now
        done = state.global_step - self._began_at
        remaining = (now - self._started) / done * (state.max_steps - state.global_step)
        self._step.progress(state.global_step, state.max_steps, eta_seconds=remaining)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        import torch

        logs = logs or {}
        # trl counts from nought again in each process.
        if "num_tokens" in logs:
            self.tokens = self._tokens_before + int(logs["num_tokens"])
        if "loss" not in logs:  # the trainer's own summary, or an evaluation
            return
        if not math.isfinite(float(logs["loss"])):
            raise InvalidInput(
                f"The training diverged by step {state.global_step}: learning_rate {args.learning_rate} is "
                "too high for this model and these rows, lower it.",
                param="learning_rate",
            )
        seconds = max(1e-6, time.monotonic() - self._started)
        self.tokens_per_second = (self.tokens - self._tokens_before) / seconds
        self._step.metrics(
            step=state.global_step,
            epoch=float(logs.get("epoch", 0)),
            learning_rate=float(logs.get("learning_rate", 0)),
            grad_norm=float(logs.get("grad_norm", 0)),
            tokens_per_second=self.tokens_per_second,
            memory_bytes=peak_memory_bytes(torch),
            **measured(logs),
        )


class SavesInTime(TrainerCallback):
    """Saves when so many minutes have passed, and when the step is asked to stop, which it then does."""

    def __init__(self, step: Step, minutes: float | None) -> None:
        self._step = step
        self._every_seconds = 60 * minutes if minutes else math.inf
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        late = time.monotonic() - self._saved >= self._every_seconds
        stop, late = together.agreed(self._step.stop_asked, late)
        if stop:
            self._step.stop_asked = True
            control.should_save = control.should_training_stop = True
        elif late:
            control.should_save = True
        if control.should_save:
            control.should_log = True  # so that the loss at each checkpoint is known

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.monotonic()


class BestByEvalLoss(TrainerCallback):
    """Keeps the best evaluation in mind: it is saved at once, and patience counts from it.

    Args:
        patience: evaluations without a better loss after which training stops; None: never.
        by: what is better when it is lower; a reward is held as a loss with its sign turned.
    """

    def __init__(self, step: Step, patience: int | None, by: Literal["loss", "reward"] = "loss") -> None:
        self._step = step
        self.by = by
        self._patience = patience
        self._worse = 0
        self.best_loss: float | None = None
        self.best_step = 0
        self.last_step = 0  # that was evaluated
        self.stopped_early = False

    def state(self) -> dict[str, Any]:
        """What a later attempt has to know, for a checkpoint."""
        names = ("best_loss", "best_step", "last_step", "stopped_early")
        return {name: getattr(self, name) for name in names} | {"worse": self._worse}

    def figures(self) -> dict[str, float | None]:
        """The best evaluation, as a training's result has it."""
        if self.by == "loss" or self.best_loss is None:
            return {"eval_loss": self.best_loss}
        return {"eval_loss": None, "eval_reward": -self.best_loss}

    def restore(self, state: dict[str, Any]) -> None:
        self._worse = state["worse"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.last_step, self.stopped_early = state["last_step"], state["stopped_early"]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = float((metrics or {})["eval_loss"])
        self.last_step = state.global_step
        # trl only logs its own figures.
        told = {**measured(state.log_history[-1]), "eval_loss": loss}
        self._step.metrics(step=state.global_step, **told)
        if self.by == "reward":
            loss = -told["eval_reward"]
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self._worse = loss, state.global_step, 0
            control.should_save = True
            return
        self._worse += 1
        if self._patience is not None and self._worse >= self._patience and not self.stopped_early:
            self.stopped_early = True
            control.should_training_stop = True
            self._step.event(
                f"Stopped early at step {state.global_step}: {self._worse} evaluations without a {self.by} "
                f"{'below' if self.by == 'loss' else 'above'} {self.figures()[f'eval_{self.by}']} "
                f"(step {self.best_step}).",
                best_step=self.best_step,
                best=self.figures(),
            )
