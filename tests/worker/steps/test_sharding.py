"""Weights divided between two processes on a CPU, by gloo: they learn what one learns that has them all."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.worker.steps.fine_tuning import (
    ALL_WEIGHTS,
    PAIRS,
    PARAMS,
    WARNINGS_OF_LIBRARIES,
    FineTune,
    adapter,
    as_lines,
    assert_same_weights,
    measured,
    preferring,
    weights_of,
)
from tests.worker.steps.test_grpo import PARAMS as BY_REWARDS
from tests.worker.steps.test_grpo import QUESTIONS
from tests.worker.steps.test_training_together import (
    ALONE,
    BY_ADAM,
    BY_GRADIENTS,
    TOGETHER,
    kill_when_saved,
    run,
    stop_soon,
)
from tests.worker.steps.test_tunings import proven
from training_data.division import Division
from training_data.json_files import read_json, write_json
from worker.checkpoints import list_checkpoints, verify
from worker.step import RankFailed, Stopped
from worker.steps.base_model import count_parameters
from worker.steps.parallel import settle_parallel

pytestmark = WARNINGS_OF_LIBRARIES

DIVIDED = {"sharding": "full"}


@pytest.fixture
def fine_tune(steps, micro_model, tmp_path):
    data = tmp_path / "rows.csv"
    return lambda **params: FineTune(steps, micro_model, data, **{**params, **DIVIDED})


class TestShares:
    def test_learn_what_one_process_learns(self, fine_tune):
        job = fine_tune(**BY_GRADIENTS)
        alone, together = run(job, ALONE), run(job, TOGETHER)
        assert (alone.result["parallel"], together.result["parallel"]) == (None, "fsdp")
        assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
        assert together.result["eval_loss"] == pytest.approx(alone.result["eval_loss"], rel=1e-4)
        assert_same_weights(alone, together)
        assert together.result["hyperparameters"] == alone.result["hyperparameters"]
        assert (
            "Each of them has a share of every layer's weights, 1 of 2, in 16 bits (FSDP)."
        ) in together.events()
        assert "One process trains: it has all the weights, and none are divided." in alone.events("warn")
        [*_, first] = list_checkpoints(together.folder)
        verify(first)
        assert_same_weights(alone, run(job, ALONE, resume_from=[first]))

    @pytest.mark.slow
    @pytest.mark.parametrize("tuning", ["lora", "full"])
    @pytest.mark.parametrize("going_on", [ALONE, TOGETHER])
    def test_write_what_any_number_goes_on_with(self, fine_tune, tuning, going_on):
        job = fine_tune(**{**BY_ADAM, **(ALL_WEIGHTS if tuning == "full" else {})})
        alone, together = run(job, ALONE), run(job, TOGETHER)
        assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
        assert_same_weights(alone, together, tuning)
        [*_, first] = list_checkpoints(together.folder)
        verify(first)
        assert_same_weights(alone, run(job, going_on, resume_from=[first]), tuning)

    @pytest.mark.slow
    @pytest.mark.parametrize("tuning", ["lora", "full"])
    def test_go_on_after_one_was_killed_from_what_it_has_saved(self, fine_tune, tuning):
        job = fine_tune(**{**BY_ADAM, **(ALL_WEIGHTS if tuning == "full" else {})})
        job.steps.settings = TOGETHER
        checkpoints = job.interrupted(kill_when_saved, RankFailed)
        assert_same_weights(run(job, ALONE), run(job, TOGETHER, resume_from=checkpoints), tuning)

    @pytest.mark.slow
    def test_save_when_asked_to_stop_and_go_on_bit_identical(self, fine_tune):
        job = fine_tune(save_steps=100, lora_dropout=0.1)
        job.steps.settings = TOGETHER
        checkpoints = job.interrupted(stop_soon, Stopped)
        assert len(checkpoints) == 1
        assert adapter(job.run(resume_from=checkpoints)) == adapter(job.run())

    @pytest.mark.slow
    def test_take_the_best_weights_again(self, fine_tune):
        """A rate that spoils what was learnt."""
        given = {**BY_ADAM, **ALL_WEIGHTS, "learning_rate": 0.05, "max_steps": 8, "eval_steps": 1}
        job = fine_tune(**given, early_stopping_patience=2)
        alone, together = run(job, ALONE), run(job, TOGETHER)
        assert any(event.startswith("Took the weights of step") for event in together.events())
        assert together.result["best_checkpoint"] == alone.result["best_checkpoint"]
        assert_same_weights(alone, together, "full")

    @pytest.mark.slow
    def test_leave_an_adapter_that_is_served_as_it_was_trained(self, fine_tune, tmp_path):
        job = fine_tune(**{**BY_ADAM, "max_steps": 8}, quantizations=["Q8_0"])
        [figures] = proven(tmp_path, job.prepared, run(job, TOGETHER), job.given["base"])
        assert figures["top1_agreement"] >= 0.98


def assert_learns_what_one_does(job: Any) -> Any:
    """Two processes with shares against one that has all, which goes on with their checkpoint; gives what the
    two ran.
    """
    alone, together = run(job, ALONE), run(job, TOGETHER)
    assert (alone.result["parallel"], together.result["parallel"]) == (None, "fsdp")
    assert measured(together, "loss") == pytest.approx(measured(alone, "loss"), rel=1e-4)
    assert_same_weights(alone, together)
    [*_, first] = list_checkpoints(together.folder)
    verify(first)
    assert_same_weights(alone, run(job, ALONE, resume_from=[first]))
    return together


class TestWhatIsMadeBesideThem:
    """An adapter's own beginnings ask for whole weights: a head that no file has, the lengths of rows."""

    @pytest.fixture
    def preferences(self, steps, micro_model, tmp_path):
        def preferences(method: str, **given: Any) -> FineTune:
            rows = None
            if method == "kto":
                rows = [
                    {"prompt": question, "completion": [better, worse][n % 2], "label": n % 2 == 0}
                    for n, (question, better, worse) in enumerate(PAIRS)
                ]
            params = {**BY_GRADIENTS, **DIVIDED, "epochs": 1.0, "method": method, **given}
            return preferring(steps, micro_model, tmp_path / "rows.jsonl", rows, **params)

        return preferences

    def test_a_reward_model_by_dora_learns_what_one_process_learns(self, preferences):
        together = assert_learns_what_one_does(preferences(method="reward", use_dora=True))
        names = weights_of(together.folder / "adapter", "adapter_model.safetensors")
        assert any("score" in name for name in names)
        assert any("lora_magnitude_vector" in name for name in names)

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [4, 16])
    @pytest.mark.parametrize("method", ["reward", "dpo", "orpo", "kto"])
    def test_preferences_learn_it_too(self, preferences, method, bits):
        assert_learns_what_one_does(preferences(method=method, bits=bits))

    @pytest.mark.slow
    @pytest.mark.parametrize("given", [{"use_dora": True}, {"bits": 4}])
    def test_an_adapter_is_served_as_it_was_trained(self, fine_tune, tmp_path, given):
        job = fine_tune(**{**BY_ADAM, "max_steps": 8, **given}, quantizations=["Q8_0"])
        together = assert_learns_what_one_does(job)
        [figures] = proven(tmp_path, job.prepared, together, job.given["base"])
        assert figures["top1_agreement"] >= 0.98

    @pytest.mark.slow
    @pytest.mark.parametrize("given", [{"use_dora": True}, {"bits": 4}])
    def test_one_that_was_killed_goes_on(self, fine_tune, given):
        job = fine_tune(**{**BY_ADAM, **given})
        job.steps.settings = TOGETHER
        checkpoints = job.interrupted(kill_when_saved, RankFailed)
        assert_same_weights(run(job, ALONE), run(job, TOGETHER, resume_from=checkpoints))


@pytest.mark.slow
class TestAnswers:
    """Processes draw answers of their own, so that two with shares are held against two with copies."""

    @pytest.mark.parametrize(
        ("tuning", "given"),
        [("lora", {}), ("lora", {"bits": 4}), ("full", {"tuning": "full", "lora_rank": "auto"})],
    )
    def test_are_written_and_learnt_of_as_with_copies(self, steps, micro_model, tmp_path, tuning, given):
        params = {
            **BY_REWARDS, "rewards": ["brevity"], "max_steps": 3, "beta": 0.1, "train_size": 0.7,
            "save_steps": 2, "learning_rate": 1e-3, **given,
        }  # fmt: skip
        ran = {}
        for sharding in ("none", "full"):
            job = FineTune(
                steps,
                micro_model,
                tmp_path / "rows.jsonl",
                content=as_lines(QUESTIONS),
                rewards=[{"name": "brevity"}],
                defaults={**params, "sharding": sharding},
            )
            ran[sharding] = run(job, TOGETHER)
        copies, shares = ran["none"], ran["full"]
        assert (copies.result["parallel"], shares.result["parallel"]) == ("ddp", "fsdp")
        assert measured(shares, "reward") == measured(copies, "reward")
        assert measured(shares, "kl") == pytest.approx(measured(copies, "kl"), rel=1e-3, abs=1e-6)
        assert shares.result["eval_reward"] == pytest.approx(copies.result["eval_reward"])
        assert_same_weights(copies, shares, tuning)
        [*_, first] = list_checkpoints(shares.folder)
        verify(first)
        assert_same_weights(shares, run(job, TOGETHER, resume_from=[first]), tuning)


class TestChoice:
    """On GPUs that are not there: what they could hold is reckoned from the memory that they tell of."""

    CHOSEN: ClassVar[dict[str, Any]] = {
        "method": "supervised", "tuning": "lora", "bits": "auto", "use_dora": False, "batch_size": 4,
        "gradient_accumulation_steps": 4, "training_args": {},
    }  # fmt: skip

    @pytest.fixture
    def settle(self, steps, micro_model, monkeypatch):
        def settle(
            gpus: int, bytes_a_parameter: float, base: Path = micro_model, **given: Any
        ) -> tuple[str | None, int, str]:
            """By what they train together, in how many processes, and what was said of it."""
            import torch

            memory = SimpleNamespace(total_memory=int(bytes_a_parameter * count_parameters(micro_model)))
            params = {**PARAMS, "lora_rank": "auto", "lora_dropout": "auto", **given}
            chosen = {**self.CHOSEN, **{name: given[name] for name in self.CHOSEN if name in given}}

            def choose(step: Any) -> dict[str, Any]:
                with monkeypatch.context() as patched:
                    patched.setattr(torch.cuda, "is_available", lambda: True)
                    patched.setattr(torch.cuda, "device_count", lambda: gpus)
                    patched.setattr(torch.cuda, "get_device_properties", lambda number: memory)
                    division = settle_parallel(step, base, chosen, Division(gpus, 4, 1))
                return {"parallel": division.parallel, "ranks": division.ranks, "bits": chosen["bits"]}

            ran = steps.run(choose, "fine_tune", "train", params=params, base=base)
            assert ran.result["bits"] == chosen["bits"] != "auto"
            return ran.result["parallel"], ran.result["ranks"], " ".join([*ran.events(), *ran.events("warn")])

        return settle

    def test_is_a_copy_where_there_is_room_for_one(self, settle):
        assert settle(4, 6.0)[:2] == ("ddp", 4)
        assert settle(4, 1.5)[:2] == ("ddp", 4)  # in 4 bits
        assert settle(4, 30.0, tuning="full")[:2] == ("ddp", 4)

    def test_is_a_share_where_a_copy_has_no_room(self, settle):
        parallel, ranks, said = settle(4, 1.0)
        assert (parallel, ranks) == ("fsdp", 4)
        assert "and the smallest has 0.0 GB: the weights are divided among them." in said
        assert settle(2, 2.0, bits=16)[:2] == ("fsdp", 2)
        assert settle(2, 12.0, tuning="full")[:2] == ("fsdp", 2)
        assert "in 16 bits" in settle(4, 1.0)[2]

    def test_is_a_share_in_4_bits_where_16_have_no_room(self, settle):
        parallel, ranks, said = settle(2, 1.0)
        assert (parallel, ranks) == ("fsdp", 2)
        assert "1 of 2, in 4 bits (FSDP)." in said

    def test_is_one_process_where_neither_has_room(self, settle):
        parallel, ranks, said = settle(2, 0.3)
        assert (parallel, ranks) == (None, 1)
        assert (
            "for a share takes 0.0 GB: one process trains, with the layers spread over all of them." in said
        )

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"sharding": "none"}, 'sharding is "none"'),
            ({"bits": 8}, "weights of 8 bits (LLM.int8) are not divided"),
            ({"use_dora": True}, "DoRA needs its matrices in 16 bits there"),
        ],
    )
    def test_is_one_process_where_weights_cannot_be_divided(self, settle, given, why):
        parallel, ranks, said = settle(4, 0.4, **given)
        assert (parallel, ranks) == (None, 1)
        assert f"they are not divided, for {why}" in said

    def test_is_what_was_asked_for(self, settle):
        assert settle(4, 50.0, sharding="full")[:2] == ("fsdp", 4)

    def test_is_refused_of_a_base_that_is_stored_quantised(self, settle, micro_model, tmp_path):
        base = Path(shutil.copytree(micro_model, tmp_path / "quantised"))
        config = read_json(base / "config.json")
        write_json(
            base / "config.json", {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
        )
        with pytest.raises(
            InvalidInput, match="cannot be divided among GPUs: the base is stored quantised"
        ) as e:
            settle(4, 50.0, base, sharding="full")
        assert e.value.param == "sharding"

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"bits": 8}, 'bits does not go with sharding "full": weights of 8 bits'),
            ({"use_dora": True, "bits": 4}, "use_dora does not go"),
            ({"lora_bias": "all"}, "lora_bias does not go"),
            ({"tuning": "full", "method": "dpo"}, 'dpo with the tuning "full" needs whole weights'),
            ({"tuning": "full", "training_args": {"optim": "paged_adamw_8bit"}}, "training_args does not go"),
            ({"deepspeed": "zero2"}, 'sharding "full" does not go with deepspeed'),
            ({"cluster": "lab"}, 'sharding "full" does not go with cluster'),
        ],
    )
    def test_is_refused_of_what_cannot_be_divided(self, given, said):
        with pytest.raises(ValueError, match=said):
            FineTuneParams.model_validate(
                {"base_model": "m", "training_file": "file-1", "name": "x", **DIVIDED, **given}
            )
