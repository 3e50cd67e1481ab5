"""Two processes on a CPU, by gloo: they learn what one learns of the same rows, and one goes on with it."""

import os
import signal
from typing import Any

import psutil
import pytest

from tests.worker.steps.fine_tuning import (
    ALL_WEIGHTS,
    WARNINGS_OF_LIBRARIES,
    FineTune,
    Interrupted,
    adapter,
    assert_same_weights,
    measured,
)
from worker.checkpoints import list_checkpoints, verify
from worker.step import Message, RankFailed, Step, Stopped

pytestmark = WARNINGS_OF_LIBRARIES

# Of 16 rows each epoch has whole batches. Steps of SGD are as the gradients are; Adam magnifies roundings.
ROWS_OF_18 = {"train_size": 16 / 18}
BY_GRADIENTS = {
    "bits": 16, "lora_dropout": 0.0, "batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4,
    "warmup_steps": 0, "learning_rate": 0.1, "training_args": {"optim": "sgd"}, "save_steps": 2, **ROWS_OF_18,
}  # fmt: skip
# Micro-batches whose gradients are added up before they are averaged, and Adam's moments, divided as well.
BY_ADAM: dict[str, Any] = {
    **BY_GRADIENTS, "batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-3,
    "training_args": {},
}  # fmt: skip
TOGETHER = {"train_processes": 2}
ALONE = {"train_processes": 1}


def interrupt_when_saved(step: Step, message: Message) -> None:
    if message["type"] == "checkpoint":
        raise Interrupted


def kill_when_saved(step: Step, message: Message) -> None:
    if message["type"] == "checkpoint":
        ranks = [each for each in psutil.Process().children() if "worker.run_rank" in each.cmdline()]
        os.kill(ranks[1].pid, signal.SIGKILL)


def stop_soon(step: Step, message: Message) -> None:
    step.stop_asked = step.stop_asked or message["type"] == "progress"


def run(job: FineTune, settings: dict[str, Any], **options: Any) -> Any:
    job.steps.settings = settings
    return job.run(**options)


class TestTwoProcesses:
    def test_learn_what_one_learns(self, fine_tune):
        job = fine_tune(**BY_GRADIENTS)
        alone, together = run(job, ALONE), run(job, TOGETHER)
        assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
        assert_same_weights(alone, together)
        assert together.result["eval_loss"] == pytest.approx(alone.result["eval_loss"], rel=1e-4)
        assert together.result["trained_tokens"] == alone.result["trained_tokens"]
        assert (alone.result["processes"], together.result["processes"]) == (1, 2)
        assert (alone.result["parallel"], together.result["parallel"]) == (None, "ddp")
        assert together.result["hyperparameters"] == alone.result["hyperparameters"]
        assert (
            "2 processes train together: of the 8 rows of a step of the optimizer each takes 4, in "
            "micro-batches of 4."
        ) in together.events()
        for path in list_checkpoints(together.folder):
            verify(path)
        resumed = run(job, ALONE, resume_from=list_checkpoints(together.folder)[-1:])
        assert any("Going on from the checkpoint of step" in event for event in resumed.events())
        assert_same_weights(alone, resumed)

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", [ALONE, TOGETHER])
    def test_go_on_from_what_one_has_saved(self, fine_tune, settings):
        job = fine_tune(**BY_GRADIENTS)
        job.steps.settings = settings
        checkpoints = job.interrupted(interrupt_when_saved)
        assert len(checkpoints) == 1
        assert_same_weights(run(job, ALONE), run(job, TOGETHER, resume_from=checkpoints))

    @pytest.mark.slow
    def test_save_when_asked_to_stop_and_go_on_bit_identical(self, fine_tune):
        job = fine_tune(save_steps=100, bits=4)
        job.steps.settings = TOGETHER
        checkpoints = job.interrupted(stop_soon, Stopped)
        assert len(checkpoints) == 1
        assert adapter(job.run(resume_from=checkpoints)) == adapter(job.run())

    @pytest.mark.slow
    def test_one_that_is_killed_ends_the_step_which_goes_on(self, fine_tune):
        job = fine_tune(**BY_GRADIENTS)

        job.steps.settings = TOGETHER
        checkpoints = job.interrupted(kill_when_saved, RankFailed)
        assert_same_weights(run(job, ALONE), run(job, TOGETHER, resume_from=checkpoints))

    @pytest.mark.slow
    def test_train_all_weights(self, fine_tune):
        job = fine_tune(**{**BY_GRADIENTS, **ALL_WEIGHTS})
        alone, together = run(job, ALONE), run(job, TOGETHER)
        assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
        assert_same_weights(alone, together, "full")

    @pytest.mark.slow
    def test_none_but_one_trains_what_cannot_be_divided(self, fine_tune):
        job = fine_tune(batch_size=3, gradient_accumulation_steps=1, max_steps=1)
        ran = run(job, TOGETHER)
        [warning] = ran.events("warn")
        assert warning.startswith(
            "2 processes could train together, but 3 rows a step of the optimizer cannot"
        )
        assert ran.result["processes"] == 1
