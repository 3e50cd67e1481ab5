"""Two processes that train by DeepSpeed on a CPU, by gloo: they learn what one does, and go on so.

Their first training waits for what DeepSpeed compiles.
"""

import pytest

from tests.worker.steps.fine_tuning import (
    ALL_WEIGHTS,
    WARNINGS_OF_LIBRARIES,
    FineTune,
    assert_same_weights,
    measured,
)
from tests.worker.steps.test_training_together import ALONE, BY_ADAM, TOGETHER, run
from training_data.deepspeed_settings import SETTLED
from worker.checkpoints import list_checkpoints, verify

pytestmark = [pytest.mark.slow, pytest.mark.deepspeed, WARNINGS_OF_LIBRARIES]


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
    assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
    assert_same_weights(alone, together, tuning)
    [*_, first] = list_checkpoints(together.folder)
    verify(first)
    assert_same_weights(together, run(job, settings, resume_from=[first], **zero), tuning)
