"""What must not change what is learnt: how a batch is cut up, and how rows are laid beside each other."""

from itertools import pairwise
from typing import Any

import pytest

from tests.worker.steps.fine_tuning import ALL_WEIGHTS, WARNINGS_OF_LIBRARIES, assert_same_weights, measured

pytestmark = WARNINGS_OF_LIBRARIES


class TestBatches:
    @pytest.mark.parametrize("tuning", ["lora", "full"])
    def test_of_eight_are_eight_of_one(self, fine_tune, tuning):
        """Rows of unequal length: a mean of means would weigh the tokens of short rows more. By SGD, whose
        steps are as the gradients are, where Adam's would make much of a rounding; sums in another order
        differ by some 1e-6 of themselves.
        """
        given = {**(ALL_WEIGHTS if tuning == "full" else {"bits": 16, "lora_dropout": 0.0})}
        given |= {"max_steps": 4, "warmup_steps": 0, "learning_rate": 0.1, "training_args": {"optim": "sgd"}}
        runs = [
            fine_tune(batch_size=batch, gradient_accumulation_steps=8 // batch, **given).run()
            for batch in (8, 1)
        ]
        assert measured(runs[0], "loss") == pytest.approx(measured(runs[1], "loss"), rel=1e-4)
        assert_same_weights(*runs, tuning)


class TestPacking:
    def test_mixes_no_rows(self, fine_tune, monkeypatch):
        """The batches that the trainer gives the model: each row's logits are those that it has alone."""
        import torch

        from worker.steps.adapter_trainer import SupervisedTrainer

        differences, rows_in_a_batch = [], []
        plain_step = SupervisedTrainer.training_step

        def compare(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
            ids, positions = inputs["input_ids"], inputs["position_ids"]
            starts = [*(positions[0] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
            model.eval()
            with torch.no_grad():
                packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
                for start, end in pairwise(starts):
                    alone = model(input_ids=ids[:, start:end], use_cache=False).logits[0]
                    differences.append(float((packed[start:end] - alone).abs().max()))
            model.train()
            rows_in_a_batch.append(len(starts) - 1)
            return plain_step(trainer, model, inputs, *args)

        monkeypatch.setattr(SupervisedTrainer, "training_step", compare)
        job = fine_tune(packing=True, bits=16, max_length=128, batch_size=1, epochs=1.0, lora_dropout=0.0)
        ran = job.run()
        assert max(rows_in_a_batch) > 1
        assert sum(rows_in_a_batch) == ran.result["hyperparameters"]["epochs"] * 18
        assert max(differences) < 1e-4
