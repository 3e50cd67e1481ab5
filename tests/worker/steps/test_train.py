import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from db.errors import Exhausted, InvalidInput
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES, FineTune, as_csv, measured, weights_of
from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import IGNORED, labelled
from worker.steps.runtime import memory_errors_explained, require_disk

ROWS = [(f"Where is pot {n}?", f"Pot {n} stands in the kiln.") for n in range(10)]
PARAMS = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "lora_rank": 4, "batch_size": 4,
    "epochs": 2.0, "learning_rate": 5e-3, "gradient_accumulation_steps": 1,
}  # fmt: skip
ADAPTER = "adapter_model.safetensors"

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def trained(steps, micro_model, tmp_path):
    def run(*, rows: str | None = None, base: Path = micro_model, **params: Any):
        content = rows or as_csv(ROWS)
        return FineTune(steps, base, tmp_path / "rows.csv", content=content, defaults=PARAMS, **params).run()

    return run


class TestAdapter:
    @pytest.mark.parametrize("bits", [4, 8, 16])
    def test_is_a_folder_that_peft_loads(self, trained, micro_model, bits):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        ran = trained(bits=bits)
        base = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, ran.folder / "adapter")
        assert model.peft_config["default"].r == 4
        weights = weights_of(ran.folder / "adapter", ADAPTER)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)

    def test_names_its_base_and_brings_its_tokenizer(self, trained, micro_model):
        adapter = trained().folder / "adapter"
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "micro"
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert (adapter / name).read_bytes() == (micro_model / name).read_bytes()

    def test_is_offered_as_artifacts(self, trained):
        names = [message["name"] for message in trained().of_type("artifact")]
        assert names == [
            "adapter_model.safetensors", "adapter_config.json", "step_metrics.csv", "README.md",
            "recipe.json",
        ]  # fmt: skip

    def test_has_what_was_measured_as_a_file_of_its_own(self, trained):
        ran = trained(train_size=0.5, max_steps=4, eval_steps=2)
        [message] = [each for each in ran.of_type("artifact") if each["purpose"] is not None]
        assert (message["name"], message["purpose"]) == ("step_metrics.csv", "fine-tune-results")
        rows = list(csv.DictReader((ran.folder / message["path"]).open(newline="")))
        assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
        losses = measured(ran, "loss")
        assert [float(row["train_loss"]) for row in rows] == pytest.approx(losses)
        assert all(0 <= float(row["train_accuracy"]) <= 1 for row in rows)
        [*_, evaluated] = [each["values"] for each in ran.of_type("metrics") if "eval_loss" in each["values"]]
        assert [row["step"] for row in rows if row["valid_loss"]] == ["2", "4"]
        assert float(rows[-1]["valid_loss"]) == pytest.approx(evaluated["eval_loss"])
        assert float(rows[-1]["valid_mean_token_accuracy"]) == evaluated["eval_token_accuracy"]

    def test_covers_the_named_modules_only(self, trained):
        ran = trained(lora_target_modules=["q_proj"], max_steps=1)
        config = json.loads((ran.folder / "adapter" / "adapter_config.json").read_text())
        assert config["target_modules"] == ["q_proj"]
        assert ran.result["steps"] == 1

    def test_refuses_a_module_that_the_model_does_not_have(self, trained):
        """peft itself is content when one of the names fits."""
        for name in ("q_prj", "lm_head"):
            with pytest.raises(InvalidInput, match=f"'{name}'.*q_proj") as caught:
                trained(lora_target_modules=["q_proj", name])
            assert caught.value.param == "lora_target_modules"

    @pytest.mark.parametrize("bits", [4, 16])
    def test_trains_biases_of_a_model_that_has_them(self, trained, micro_model, tmp_path, bits):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        biased = Path(shutil.copytree(micro_model, tmp_path / "biased"))
        Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
                tie_word_embeddings=False,
            )
        ).save_pretrained(biased)  # fmt: skip
        ran = trained(base=biased, bits=bits, lora_bias="all")
        weights = weights_of(ran.folder / "adapter", ADAPTER)
        biases = [tensor for name, tensor in weights.items() if name.endswith("q_proj.base_layer.bias")]
        assert len(biases) == 1
        assert biases[0].abs().max() > 0


class TestProgress:
    def test_tells_loss_speed_and_memory(self, trained):
        ran = trained(epochs=8.0)
        metrics = [message["values"] for message in ran.of_type("metrics")]
        assert metrics[-1]["loss"] < metrics[0]["loss"]
        assert {"learning_rate", "tokens_per_second", "memory_bytes"} <= metrics[-1].keys()
        last = ran.of_type("progress")[-1]
        assert (last["done"], last["total"], last["eta_seconds"]) == (24, 24, 0)
        assert ran.result["tokens_per_second"] > 0
        assert ran.result["trained_tokens"] > 0
        assert ran.result["device"].startswith(("cpu", "cuda"))

    def test_registers_at_least_one_whole_checkpoint(self, trained):
        ran = trained()
        [checkpoint] = ran.of_type("checkpoint")
        folder = ran.folder / checkpoint["path"]
        assert checkpoint["step_number"] == ran.result["steps"] == 6
        assert (folder / "adapter_model.safetensors").is_file()
        assert (folder / "trainer_state.json").is_file()
        assert not (ran.folder / "checkpoints" / ".writing").exists()
        assert ran.result["best_checkpoint"] == checkpoint["path"]

    def test_keeps_the_last_checkpoints_only(self, trained):
        ran = trained(save_steps=1, epochs=2.0)
        assert len(ran.of_type("checkpoint")) == 6
        assert sorted(path.name for path in (ran.folder / "checkpoints").iterdir()) == [
            "checkpoint-5", "checkpoint-6",
        ]  # fmt: skip


class TestEvaluation:
    def test_stops_early_and_takes_the_best(self, trained):
        # At this rate it diverges at once, so the first evaluation stays the best.
        ran = trained(
            train_size=0.6, eval_steps=1, early_stopping_patience=2, learning_rate=1.0, epochs=20.0,
            warmup_steps=0,
        )  # fmt: skip
        losses = measured(ran, "eval_loss")
        assert ran.result["stopped_early"] is True
        assert ran.result["eval_loss"] == min(losses)
        assert len(losses) < 20
        best = weights_of(ran.folder / ran.result["best_checkpoint"], ADAPTER)
        final = weights_of(ran.folder / "adapter", ADAPTER)
        assert all((final[name] == tensor).all() for name, tensor in best.items())

    def test_judges_the_last_weights_too(self, trained):
        ran = trained(train_size=0.6, eval_steps=50, max_steps=3)
        [evaluation] = [m["values"] for m in ran.of_type("metrics") if "eval_loss" in m["values"]]
        assert evaluation["step"] == 3
        assert ran.result["eval_loss"] == evaluation["eval_loss"]
        assert ran.result["best_checkpoint"] == "checkpoints/checkpoint-3"

    def test_never_takes_a_loss_that_is_no_number_for_the_best(self, steps):
        from worker.steps.training_progress import BestByEvalLoss

        best = BestByEvalLoss(SimpleNamespace(metrics=lambda **values: None), patience=None)
        control = SimpleNamespace()
        for number, loss in enumerate((float("nan"), 2.0, 3.0), start=1):
            best.on_evaluate(
                None, SimpleNamespace(global_step=number, log_history=[{}]), control, {"eval_loss": loss}
            )
        assert (best.best_loss, best.best_step) == (2.0, 2)

    def test_refuses_a_rate_at_which_the_loss_is_no_number(self, trained, micro_model, tmp_path):
        from safetensors.torch import save_file

        broken = Path(shutil.copytree(micro_model, tmp_path / "broken"))
        weights = weights_of(broken)
        save_file(
            {name: tensor * float("nan") for name, tensor in weights.items()},
            broken / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(InvalidInput, match="diverged by step") as caught:
            trained(base=broken)
        assert caught.value.param == "learning_rate"

    @pytest.mark.parametrize(("rate", "told"), [(0.1, True), (5e-3, False)])
    def test_says_when_the_rate_was_too_high(self, trained, rate, told):
        ran = trained(learning_rate=rate, lora_rank=64, max_steps=20, warmup_steps=0, bits=16)
        assert any("is likely too high" in each for each in ran.events("warn")) == told


class TestWhatIsLearnt:
    def test_is_the_answer_only_unless_asked(self, trained, micro_model):
        tokenizer = ChatTokenizer(micro_model)
        chat = tokenizer.encode_chat(
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        )
        answers = labelled([chat], {"max_length": 100, "assistant_only_loss": True})
        assert [label for label in answers["labels"] if label != IGNORED] == [
            token for token, mine in zip(chat.ids, chat.answer_mask, strict=True) if mine
        ]
        whole = labelled([chat], {"max_length": 100, "assistant_only_loss": False})
        assert whole["labels"].tolist() == chat.ids

    def test_leaves_out_rows_without_an_answer_within_max_length(self, trained):
        long = f"question,answer\n{'clay ' * 60},lost\nWho?,She.\n"
        ran = trained(rows=long, max_length=32, batch_size=1)
        assert any("1 rows of train.jsonl have no answer left" in event for event in ran.events("warn"))

    def test_refuses_when_no_answer_is_left(self, trained):
        with pytest.raises(InvalidInput, match="raise it") as caught:
            trained(rows=f"question,answer\n{'clay ' * 60},lost\n", max_length=8, batch_size=1)
        assert caught.value.param == "max_length"

    def test_is_the_same_for_one_batch_of_four_and_four_of_one(self, trained):
        """Accumulated batches sum to one of all rows: up to the order of float32 sums (some 1e-5)."""
        one = trained(batch_size=4, gradient_accumulation_steps=1, max_steps=3)
        four = trained(batch_size=1, gradient_accumulation_steps=4, max_steps=3)
        assert measured(one, "loss") == pytest.approx(measured(four, "loss"), rel=1e-3)

    def test_packs_rows_and_checkpoints_activations(self, trained):
        ran = trained(packing=True, gradient_checkpointing=True, max_length=128, batch_size=1, epochs=1.0)
        assert 1 <= ran.result["steps"] < 10
        chosen = ran.result["hyperparameters"]
        assert chosen["total_steps"] == ran.result["steps"]
        assert chosen["warmup_steps"] <= chosen["total_steps"]

    def test_evaluates_ten_times_when_packed_too(self, trained):
        ran = trained(packing=True, max_length=128, batch_size=1, epochs=10.0, train_size=0.8)
        assert len(measured(ran, "eval_loss")) >= 10


class TestMemoryErrors:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (MemoryError(), "out_of_memory"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
            (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
            (OSError(28, "No space left on device"), "disk_full"),
        ],
    )
    def test_become_exhausted_with_advice(self, error, code):
        with pytest.raises(Exhausted) as caught, memory_errors_explained("Lower batch_size."):
            raise error
        assert caught.value.code == code

    def test_a_full_disk_is_known_in_torchs_words(self):
        """It raises no OSError. Only what writes in place may be shown this device: others replace it."""
        import torch

        with pytest.raises(Exhausted) as caught, memory_errors_explained("Lower batch_size."):
            torch.save({"a": torch.ones(1_000_000)}, "/dev/full")
        assert caught.value.code == "disk_full"

    def test_a_full_disk_is_known_in_safetensors_words(self):
        from safetensors import SafetensorError

        said = "Error while serializing: I/O error: No space left on device (os error 28)"
        with pytest.raises(Exhausted) as caught, memory_errors_explained("Lower batch_size."):
            raise SafetensorError(said)
        assert caught.value.code == "disk_full"

    def test_work_that_cannot_fit_is_refused_beforehand(self, tmp_path):
        require_disk(tmp_path, 1, "This training")
        with pytest.raises(Exhausted, match=r"This training needs about 1000000000.0 GB of disk") as caught:
            require_disk(tmp_path, 10**18, "This training")
        assert caught.value.code == "disk_full"

    def test_leave_other_errors_alone(self):
        with pytest.raises(RuntimeError, match="shapes"), memory_errors_explained(""):
            raise RuntimeError("shapes do not match")


class TestFolder:
    def test_holds_nothing_but_what_is_named(self, trained):
        folder: Path = trained(max_steps=1).folder
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "adapter",
            "checkpoints",
            "recipe.json",
            "step_metrics.csv",
        ]
