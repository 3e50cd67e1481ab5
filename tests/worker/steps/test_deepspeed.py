"""Two processes that train by DeepSpeed on a CPU, by gloo: they learn what one does, and go on so.

Their first training waits for what DeepSpeed compiles.
"""

from typing import Any

import pytest

from tests.worker.steps.test_resume import FineTune
from tests.worker.steps.test_training_together import (
    ALONE,
    BY_GRADIENTS,
    TOGETHER,
    assert_same_weights,
    losses,
    run,
)
from tests.worker.steps.test_tunings import ALL_WEIGHTS
from training_data.deepspeed_settings import SETTLED
from worker.checkpoints import list_checkpoints, verify

# Theirs, none of which a caller can do anything about.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.deepspeed,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BY_ADAM: dict[str, Any] = {
    **BY_GRADIENTS, "batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-3,
    "training_args": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return {**TOGETHER, "cache_dir": tmp_path_factory.mktemp("compiled")}


@pytest.mark.parametrize(("stage", "tuning"), [(2, "lora"), (1, "full")])
def test_two_learn_what_one_learns_and_go_on(steps, micro_model, settings, stage, tuning):
    params = {**BY_ADAM, **({**ALL_WEIGHTS, "bits": "auto"} if tuning == "full" else {})}
    job = FineTune(steps, micro_model, steps.root / "rows.csv", **params)
    alone = run(job, ALONE)
    job.given["params"]["deepspeed"] = "zero"
    zero = {"deepspeed": {"zero_optimization": {"stage": stage}, **SETTLED}}
    together = run(job, settings, **zero)
    assert together.result["parallel"] == "deepspeed"
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
    assert_same_weights(alone, together, tuning)
    [*_, first] = list_checkpoints(together.folder)
    verify(first)
    assert_same_weights(together, run(job, settings, resume_from=[first], **zero), tuning)
