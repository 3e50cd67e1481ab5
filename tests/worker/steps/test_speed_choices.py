"""What is chosen for speed, and that nothing else comes of it than without."""

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from db.errors import InvalidInput
from tests.training_data.test_fitting import CHOSEN as OF_8B
from tests.training_data.test_fitting import CONFIG, TENSORS
from tests.worker.steps.fine_tuning import (
    WARNINGS_OF_LIBRARIES,
    adapter,
    interrupt_at,
    measured,
    weights_of,
)
from tests.worker.steps.test_row_attention import SIZES, model_of
from training_data.division import Division
from training_data.model_shape import read_shape
from worker.steps.speed_choices import _settle_checkpointing, compile_pays, keep_attention, packs

pytestmark = WARNINGS_OF_LIBRARIES

ADAPTER = "adapter_model.safetensors"
IN_ORDER = {"training_args": {"train_sampling_strategy": "sequential", "optim": "sgd"}}


class TestBatches:
    def test_without_padding_learn_what_padded_ones_do(self, fine_tune):
        given = {"bits": 16, "max_steps": 3, "lora_dropout": 0.0, "warmup_steps": 0, "learning_rate": 0.1}
        chosen, padded = (fine_tune(**given, **IN_ORDER, **each).run() for each in ({}, {"packing": False}))
        assert chosen.result["hyperparameters"]["batching"] == "padding_free"
        assert padded.result["hyperparameters"]["batching"] == "grouped"
        assert any("nothing is padded" in event for event in chosen.events())
        # Sums in another order, of float32.
        assert measured(chosen, "loss") == pytest.approx(measured(padded, "loss"), rel=1e-4)
        assert chosen.result["trained_tokens"] == padded.result["trained_tokens"]

    def test_are_packed_when_that_is_asked_for(self, fine_tune):
        ran = fine_tune(packing=True, max_length=128, batch_size=1, max_steps=1).run()
        assert ran.result["hyperparameters"]["attention"] == "rows"
        assert any(event.startswith("Rows are packed whole into sequences of 128") for event in ran.events())

    def test_say_why_a_model_keeps_its_own_attention(self, fine_tune, monkeypatch):
        monkeypatch.setattr("worker.steps.row_attention.PROOF_SHARE", 0)
        ran = fine_tune(max_steps=1).run()
        assert ran.result["hyperparameters"]["batching"] == "grouped"
        assert any("keeps its own attention: its logits differ" in event for event in ran.events())


class TestCompiling:
    GIVEN: ClassVar = {"bits": 16, "max_steps": 3, "warmup_steps": 0, "learning_rate": 0.1, "save_steps": 2}

    def test_learns_what_is_learnt_without(self, fine_tune):
        """By the backend that traces and compiles nothing: inductor takes a minute (see below)."""
        import torch

        asked = {**IN_ORDER["training_args"], "torch_compile_backend": "aot_eager"}
        given = {**self.GIVEN, "lora_dropout": 0.0, "gradient_checkpointing": True, "train_size": 0.9}
        plain = fine_tune(**given, **IN_ORDER).run()
        torch._dynamo.utils.counters.clear()
        compiled = fine_tune(**given, training_args=asked).run()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert [ran.result["hyperparameters"]["compiled"] for ran in (plain, compiled)] == [False, True]
        assert compiled.result["hyperparameters"]["batching"] == "padding_free"
        assert any(event.startswith("Without torch.compile: on a CPU") for event in plain.events())
        assert any("layers are compiled by torch.compile" in event for event in compiled.events())
        assert measured(compiled, "loss") == pytest.approx(measured(plain, "loss"), rel=1e-4)
        names = [weights_of(ran.folder / "adapter", ADAPTER).keys() for ran in (compiled, plain)]
        assert names[0] == names[1]

    @pytest.mark.slow
    @pytest.mark.parametrize(("bits", "backend"), [(4, "inductor"), (16, "inductor"), (16, "aot_eager")])
    def test_goes_on_bit_identical(self, fine_tune, bits, backend):
        given = {**self.GIVEN, "bits": bits, "lora_dropout": 0.1, "train_size": 0.9}
        job = fine_tune(**given, training_args={"torch_compile_backend": backend})
        compiled = job.run()
        assert adapter(job.resumed(interrupt_at(3))) == adapter(compiled)

    def test_that_cannot_be_is_refused(self, fine_tune, monkeypatch):
        job = fine_tune(max_steps=1, training_args={"torch_compile_backend": "no_such"})
        with pytest.raises(InvalidInput, match=r"torch\.compile refuses: Invalid backend") as refused:
            job.run()
        assert refused.value.param == "training_args"
        monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
        with pytest.raises(InvalidInput, match="needs a C\\+\\+ compiler") as refused:
            fine_tune(max_steps=1, training_args={"torch_compile": True}).run()
        assert refused.value.code == "compiler_missing"

    @pytest.mark.parametrize(
        ("hours", "bits", "method", "gpu", "pays"),
        [
            (4, 16, "supervised", True, True),
            (3, 16, "supervised", True, False),
            (40, 4, "supervised", True, False),
            (40, 16, "grpo", True, False),
            (400, 16, "supervised", False, False),
        ],
    )
    def test_pays_in_long_trainings_on_a_gpu(self, hours, bits, method, gpu, pays):
        assert compile_pays({"bits": bits, "method": method}, hours * 3600, gpu=gpu) == pays


class TestLoss:
    def test_in_tiles_is_that_of_whole_logits(self):
        """Of a vocabulary of two tiles, with all weights learning."""
        import torch
        from trl.trainer.utils import add_fused_lm_head

        model = model_of("Llama", vocab_size=40_000).train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        ids = torch.randint(40_000, (2, 20))
        labels = ids.masked_fill(torch.arange(20) < 5, -100)
        found = []
        for more in ({}, {"fused_lm_head": True}):
            model.zero_grad()
            loss = model(input_ids=ids, labels=labels, use_cache=False, **more).loss
            loss.backward()
            found.append((loss, [parameter.grad.clone() for parameter in model.parameters()]))
        (whole, expected), (tiles, gradients) = found
        assert torch.allclose(whole, tiles, rtol=1e-6)
        for one, other in zip(expected, gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


class TestPacks:
    LENGTHS = (60,) * 90 + (500,) * 10  # 104 on average

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_hold_as_many_rows_a_step_as_without(self, ranks):
        packed, length = packs(Division(ranks, 4, 4), self.LENGTHS)
        assert length * packed.effective_batch == pytest.approx(16 * ranks * 104, rel=0.05)
        assert (packed.ranks, packed.batch_size) == (ranks, 1)

    def test_have_no_more_tokens_than_a_padded_batch(self):
        packed, length = packs(Division(1, 2, 32), self.LENGTHS)
        assert length == 2 * 500
        assert packed.accumulation == 7  # of 64 rows, some 6,656 tokens

    def test_hold_the_longest_row(self):
        assert packs(Division(1, 1, 1), self.LENGTHS) == (Division(1, 1, 1), 500)
        assert packs(Division(1, 4, 4), self.LENGTHS, at_most=64)[1] == 500

    def test_are_shorter_since_memory_ran_out(self):
        assert packs(Division(1, 4, 4), self.LENGTHS, at_most=832) == (Division(1, 1, 2), 832)


class TestCheckpointing:
    @pytest.mark.parametrize(
        ("gigabytes", "params", "expected"),
        [
            (140, {}, (False, False)),
            (40, {}, (True, True)),
            (24, {}, (True, False)),
            (140, {"gradient_checkpointing": True}, (True, True)),
            (24, {"gradient_checkpointing": False}, (False, False)),
            (None, {}, (False, False)),
        ],
    )
    def test_computes_twice_what_does_not_fit(self, gigabytes, params, expected):
        """An 8 B in 16 bits, four rows of 2,048: 58 GB with nothing twice, 24 GB with all."""
        said: list[str] = []
        step: Any = SimpleNamespace(
            input=SimpleNamespace(params=params, adjustments={}),
            event=lambda message, **data: said.append(message),
        )
        chosen = {**OF_8B, "training_args": {}, "gradient_checkpointing": bool(expected[0])}
        memory = gigabytes and gigabytes * 10**9
        _settle_checkpointing(step, read_shape(CONFIG, TENSORS), chosen, 2048, memory)
        assert (chosen["gradient_checkpointing"], chosen["selective_checkpointing"]) == expected
        assert len(said) == (memory is not None and params.get("gradient_checkpointing") is not False)

    def test_all_but_attention_has_the_same_gradients_and_attends_once(self, monkeypatch):
        import torch
        from torch.profiler import profile

        def step(*, kept: bool) -> tuple[int, Any]:
            with monkeypatch.context() as patch:
                if not kept:
                    patch.setattr("worker.steps.speed_choices.ATTENTION_OPERATIONS", ())
                model = model_of("Llama").train()
                keep_attention(model)
            model.activation_checkpointing_enable()
            ids = torch.arange(20)[None]
            with profile() as seen:
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            name = "aten::_scaled_dot_product_flash_attention_for_cpu"
            attended = sum(event.count for event in seen.key_averages() if event.key == name)
            return attended, model.model.layers[0].self_attn.q_proj.weight.grad

        (kept, gradient), (again, expected) = step(kept=True), step(kept=False)
        assert again - kept == SIZES["num_hidden_layers"]  # each layer asks again, and is given what is kept
        assert torch.allclose(gradient, expected, atol=1e-7)
