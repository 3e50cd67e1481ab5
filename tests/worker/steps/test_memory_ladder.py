"""What is tried with less memory, rung by rung."""

from typing import Any

from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES, interrupt_at
from worker.steps.memory_ladder import halved, with_less

pytestmark = WARNINGS_OF_LIBRARIES

CHOSEN: dict[str, Any] = {
    "method": "supervised", "batch_size": 4, "gradient_accumulation_steps": 1, "bits": 16,
    "gradient_checkpointing": False,
}  # fmt: skip


def rungs(chosen: dict[str, Any], *free: str) -> list[dict[str, int]]:
    found = []
    while (less := with_less(chosen, set(free))) is not None:
        found.append(less)
        chosen = {**chosen, **less}
    return found


class TestRungs:
    def test_end_at_four_bits_where_these_were_auto(self):
        assert rungs(CHOSEN, "bits", "gradient_checkpointing") == [
            {"batch_size": 2, "gradient_accumulation_steps": 2},
            {"batch_size": 1, "gradient_accumulation_steps": 4},
            {"gradient_checkpointing": True, "selective_checkpointing": False},
            {"bits": 4},
        ]

    def test_leave_what_was_asked_for(self):
        assert rungs({**CHOSEN, "batch_size": 1}) == []
        assert rungs({**CHOSEN, "batch_size": 1}, "bits") == [{"bits": 4}]

    def test_shorten_packs_as_far_as_the_longest_row(self):
        packed = {**CHOSEN, "batch_size": 1, "packed_length": 1000, "longest_row": 300}
        assert rungs(packed) == [{"packed_length": 500}, {"packed_length": 300}]

    def test_compute_attention_twice_before_bits_go(self):
        selective = {
            **CHOSEN, "batch_size": 1, "gradient_checkpointing": True, "selective_checkpointing": True
        }  # fmt: skip
        assert [list(each) for each in rungs(selective, "bits")] == [
            ["gradient_checkpointing", "selective_checkpointing"], ["bits"],
        ]  # fmt: skip

    def test_keep_the_effective_batch(self):
        assert halved(6, 2) == {"batch_size": 3, "gradient_accumulation_steps": 4}
        assert halved(1, 8) is None


class TestFineTune:
    def test_goes_on_in_four_bits_from_a_checkpoint_of_sixteen(self, fine_tune):
        job = fine_tune(batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True, epochs=1.0)
        checkpoints = job.interrupted(interrupt_at(3), adjustments={"bits": 16})
        [*_, last] = [message for message in job.steps.said if message["type"] == "fallback"]
        assert last["adjustments"] == {"bits": 4}
        ran = job.run(resume_from=checkpoints, adjustments=last["adjustments"])
        assert ran.result["hyperparameters"]["bits"] == 4
        assert ran.of_type("progress")[0]["done"] == 2
        assert "The base is loaded in 4 bits: with 16, memory ran out." in ran.events("warn")
        assert ran.of_type("fallback")[-1]["adjustments"] is None
