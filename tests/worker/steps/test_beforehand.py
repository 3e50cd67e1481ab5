"""What a training would refuse, or could make no use of, is known before a step of it is run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES
from worker.steps import prepare

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def prepared(steps, micro_model, tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("question,answer\n" + "".join(f"Where is pot {n}?,In kiln {n}.\n" for n in range(10)))

    def run(*, base: Path = micro_model, **params: Any):
        given = {"base_model": "micro", "training_file": "file-1", "name": "x", **params}
        return steps.run(prepare.run, "fine_tune", "prepare", params=given, files={"file-1": data}, base=base)

    return run


class TestRefuses:
    @pytest.mark.parametrize("name", ["q_prj", "lm_head"])
    def test_layers_that_the_base_does_not_have(self, prepared, name):
        with pytest.raises(InvalidInput, match=f"'{name}'.*q_proj") as caught:
            prepared(lora_target_modules=["q_proj", name])
        assert caught.value.param == "lora_target_modules"

    @pytest.mark.parametrize(
        "given",
        [
            {"lr_scheduler_type": "cosine_with_min_lr"},
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            {"lr_scheduler_kwargs": {"no": 1}},
            {"optim_args": "often"},
        ],
    )
    def test_training_args_that_do_not_go_together(self, prepared, given):
        with pytest.raises(InvalidInput, match="training_args do not go together") as caught:
            prepared(training_args=given)
        assert caught.value.param == "training_args"

    def test_a_max_length_within_which_no_answer_begins(self, prepared):
        with pytest.raises(InvalidInput, match="No row has a token to learn within max_length 8: raise it"):
            prepared(max_length=8)

    def test_a_template_by_which_no_answer_ends(self, prepared, micro_model, tmp_path):
        base = Path(shutil.copytree(micro_model, tmp_path / "endless"))
        endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        (base / "chat_template.jinja").write_text(endless)
        with pytest.raises(InvalidInput, match="writes no token that ends an answer") as caught:
            prepared(base=base)
        assert caught.value.param == "base_model"


class TestTells:
    def test_nothing_of_what_has_its_effect(self, prepared):
        ran = prepared(
            lora_target_modules=["q_proj"], lora_rank=4, max_steps=20, warmup_steps=2, train_size=0.8,
            early_stopping_patience=2,
            training_args={"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0}},
        )  # fmt: skip
        assert ran.events("warn") == []

    def test_a_warm_up_that_does_not_end(self, prepared):
        ran = prepared(max_steps=5, warmup_steps=5)
        assert any("warmup_steps 5 are no fewer than the 5 steps" in event for event in ran.events("warn"))

    def test_a_patience_that_cannot_run_out(self, prepared):
        ran = prepared(max_steps=6, eval_steps=3, train_size=0.8, early_stopping_patience=2)
        assert any("there are 2 evaluations in 6 steps" in event for event in ran.events("warn"))

    def test_a_rank_beyond_every_layer(self, prepared):
        ran = prepared(lora_rank=1024)
        assert any("lora_rank 1024 is more than the" in event for event in ran.events("warn"))
