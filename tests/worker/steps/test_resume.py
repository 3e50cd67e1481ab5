"""Training that is interrupted and goes on ends as if nothing had happened, to the last bit."""

import contextlib
import errno
import math
from typing import Any

import pytest

from db.errors import Exhausted
from tests.worker.limits import small_disk
from tests.worker.steps.conftest import StepRunner
from tests.worker.steps.fine_tuning import (
    WARNINGS_OF_LIBRARIES,
    FineTune,
    Interrupted,
    adapter,
    interrupt_at,
    stop_at,
)
from worker.checkpoints import list_checkpoints, number_of, verify
from worker.step import Message, Step, Stopped
from worker.steps import pretrain, trainer_arguments
from worker.steps.memory_ladder import halved

MICRO = {"vocab_size": 320, "context_length": 64, "layers": 1, "heads": 2, "batch_size": 4, "steps": 6}

pytestmark = WARNINGS_OF_LIBRARIES


class TestFineTune:
    @pytest.mark.parametrize("bits", [4, 16])
    def test_ends_bit_identical(self, fine_tune, bits):
        """Eight steps, four an epoch: in the middle of the first, and of the second."""
        job = fine_tune(bits=bits, train_size=0.9)
        undisturbed = job.run()
        for moment in (3, 7):
            resumed = job.resumed(interrupt_at(moment))
            assert any("Going on from the checkpoint of step" in event for event in resumed.events())
            assert resumed.of_type("progress")[0]["done"] > 0
            assert adapter(resumed) == adapter(undisturbed)
            assert resumed.result["trained_tokens"] == undisturbed.result["trained_tokens"]
            assert resumed.result["eval_loss"] == undisturbed.result["eval_loss"]

    def test_saves_when_asked_to_stop_and_goes_on(self, fine_tune):
        job = fine_tune(save_steps=100)
        checkpoints = job.interrupted(stop_at(3), Stopped)
        assert [path.name for path in checkpoints] == ["checkpoint-3"]
        assert adapter(job.run(resume_from=checkpoints)) == adapter(job.run())

    def test_passes_over_what_is_broken_and_says_so(self, fine_tune):
        job = fine_tune()
        newest, older = job.interrupted(interrupt_at(5))
        with (newest / "optimizer.pt").open("r+b") as file:
            file.truncate(100)
        resumed = job.run(resume_from=[newest, older])
        [warning] = resumed.events("warn")
        assert warning.startswith(
            "The checkpoint of step 4 is not whole and is passed over: optimizer.pt has"
        )
        assert "Going on from the checkpoint of step 2." in resumed.events()
        assert adapter(resumed) == adapter(job.run())

    def test_trains_no_further_than_the_last_step(self, fine_tune):
        job = fine_tune(max_steps=3)
        undisturbed = job.run()
        checkpoints = list_checkpoints(undisturbed.folder)
        resumed = job.run(resume_from=checkpoints)
        assert resumed.result["steps"] == 3
        assert adapter(resumed) == adapter(undisturbed)

    def test_knows_the_loss_at_each_checkpoint(self, fine_tune, monkeypatch):
        monkeypatch.setattr(trainer_arguments, "LOGS_PER_RUN", 1)
        ran = fine_tune(max_steps=5).run()
        saved = {message["step_number"]: message["metrics"] for message in ran.of_type("checkpoint")}
        assert set(saved) == {2, 4, 5}
        assert all(math.isfinite(metrics["loss"]) for metrics in saved.values())

    def test_saves_by_minutes_too_and_keeps_as_many_as_asked(self, fine_tune):
        ran = fine_tune(save_steps=100, save_minutes=1e-9, keep_checkpoints=3, max_steps=5).run()
        assert [path.name for path in list_checkpoints(ran.folder)] == [
            "checkpoint-5", "checkpoint-4", "checkpoint-3",
        ]  # fmt: skip
        assert [message["path"] for message in ran.of_type("checkpoint_removed")] == [
            "checkpoints/checkpoint-1", "checkpoints/checkpoint-2",
        ]  # fmt: skip


class TestFullDisk:
    """Where nothing may be mounted, the error that a full disk makes is raised in its place."""

    def test_leaves_whole_checkpoints_to_go_on_from(self, steps, micro_model, tmp_path):
        undisturbed = FineTune(steps, micro_model, tmp_path / "rows.csv").run()
        with small_disk(tmp_path / "disk", 32 * 2**20) as disk:
            job = FineTune(StepRunner(disk or tmp_path), micro_model, tmp_path / "rows.csv")
            ballast = (disk or tmp_path) / "ballast"

            def fill(step: Step, message: Message) -> None:
                if message["type"] != "progress" or message["done"] != 5:
                    return
                if disk is None:
                    raise OSError(errno.ENOSPC, "No space left on device")
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass

            checkpoints = job.interrupted(fill, Exhausted)
            assert [number_of(path) for path in checkpoints] == [4, 2]
            for path in checkpoints:
                verify(path)
            assert not (job.steps.folder / "adapter").exists()
            ballast.unlink(missing_ok=True)
            assert adapter(job.run(resume_from=checkpoints)) == adapter(undisturbed)


class TestLessMemory:
    def test_the_effective_batch_stays(self):
        for batch in range(2, 40):
            for accumulation in (1, 2, 3):
                less = halved(batch, accumulation)
                assert less is not None
                assert less["batch_size"] <= batch / 2
                assert math.prod(less.values()) == batch * accumulation

    def test_says_beforehand_and_goes_on_in_smaller_batches(self, fine_tune):
        job = fine_tune()
        checkpoints = job.interrupted(interrupt_at(5))
        less = {"batch_size": 1, "gradient_accumulation_steps": 4}
        assert {"type": "fallback", "adjustments": less}.items() <= next(
            message for message in job.steps.said if message["type"] == "fallback"
        ).items()
        ran = job.run(resume_from=checkpoints, adjustments=less)
        assert ran.result["adjustments"] == less
        assert less.items() <= ran.result["hyperparameters"].items()
        assert ran.result["steps"] == 10
        assert ran.of_type("fallback")[0]["adjustments"] == {
            **less, "gradient_checkpointing": True, "selective_checkpointing": False
        }  # fmt: skip


class TestPretrain:
    @pytest.fixture
    def run(self, steps, potters_text):
        params = {"name": "a", "training_file": "file-1", "sample_every": 50, "save_steps": 2, **MICRO}

        def run(**options: Any) -> Any:
            # Otherwise the cache would answer.
            steps.root = steps.root / "again"
            steps.root.mkdir()
            return steps.run(
                pretrain.run, "pretrain", "train", params=params | options.pop("params", {}),
                files={"file-1": potters_text}, **options,
            )  # fmt: skip

        return run

    def test_ends_bit_identical(self, run, steps):
        undisturbed = run()
        for hear, ends_by, left in ((interrupt_at(5), Interrupted, [4, 2]), (stop_at(3), Stopped, [3, 2])):
            with pytest.raises(ends_by):
                run(hear=hear)
            checkpoints = list_checkpoints(steps.folder)
            assert [number_of(path) for path in checkpoints] == left
            resumed = run(resume_from=checkpoints)
            weights = [
                (ran.folder / "model" / "model.safetensors").read_bytes() for ran in (resumed, undisturbed)
            ]
            assert weights[0] == weights[1]
            assert resumed.result["loss"] == undisturbed.result["loss"]

    def test_takes_the_seed_that_was_drawn(self, run, steps):
        with pytest.raises(Interrupted):
            run(hear=interrupt_at(5), params={"seed": -1})
        drawn = next(m["data"]["seed"] for m in steps.said if "Drew the seed" in m.get("message", ""))
        ran = run(resume_from=list_checkpoints(steps.folder), params={"seed": -1})
        assert ran.result["seed"] == drawn

    def test_learns_the_same_in_smaller_batches(self, run):
        """Accumulated batches sum to one of all rows: up to the order of float32 sums."""
        whole, parts = run(), run(adjustments={"gradient_accumulation_steps": 4})
        assert parts.result["loss"] == pytest.approx(whole.result["loss"], rel=1e-2)
        assert parts.of_type("fallback")[0]["adjustments"] is None
