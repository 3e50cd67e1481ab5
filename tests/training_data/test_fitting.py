"""What a training takes, by arithmetic that can be done by hand, and what makes it fit."""

from dataclasses import replace
from typing import Any

import pytest

from training_data.durations import Finished, alike, correction, duration, own_error
from training_data.fitting import Fitting, describe, refusal
from training_data.footprint import NF4_BYTES, device_memory, host_memory, weight_bytes
from training_data.machines import Machine
from training_data.model_shape import ModelShape, read_shape

GB = 10**9
LAYERS, HIDDEN, INNER, VOCABULARY = 32, 4096, 14_336, 128_256
# Llama 3.1 8B, as its config and the headers of its files tell.
CONFIG = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
OF_A_LAYER = {
    "self_attn.q_proj": [4096, 4096], "self_attn.k_proj": [1024, 4096], "self_attn.v_proj": [1024, 4096],
    "self_attn.o_proj": [4096, 4096], "mlp.gate_proj": [INNER, 4096], "mlp.up_proj": [INNER, 4096],
    "mlp.down_proj": [4096, INNER],
}  # fmt: skip
TENSORS = {
    "model.embed_tokens.weight": [VOCABULARY, HIDDEN], "lm_head.weight": [VOCABULARY, HIDDEN],
    "model.norm.weight": [HIDDEN],
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS) for name, shape in OF_A_LAYER.items()
    },
    **{
        f"model.layers.{layer}.{name}.weight": [HIDDEN]
        for layer in range(LAYERS) for name in ("input_layernorm", "post_attention_layernorm")
    },
}  # fmt: skip
CHOSEN: dict[str, Any] = {
    "method": "supervised", "tuning": "lora", "bits": 16, "lora_rank": 16,
    "lora_target_modules": "all-linear",
    "lora_bias": "none", "lora_dropout": 0.0, "batch_size": 4, "gradient_accumulation_steps": 4,
    "max_length": 2048, "gradient_checkpointing": False, "packing": False, "compute_dtype": "bfloat16",
}  # fmt: skip
GPU = Machine("gpu-host", ram_bytes=64 * GB, device="NVIDIA L4", device_bytes=24 * GB)


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return read_shape(CONFIG, TENSORS)


def fitting(shape: ModelShape, machine: Machine = GPU) -> Fitting:
    return Fitting(shape, 2048, {machine: 1.0}, rows=1000)


class TestShape:
    def test_counts_what_the_makers_say(self, llama):
        assert llama.parameters == 8_030_261_248
        # peft's own count for rank 16 on all linear layers of this model.
        assert llama.trainable(CHOSEN) == 41_943_040

    def test_counts_named_modules_and_magnitudes(self, llama):
        named = {**CHOSEN, "lora_target_modules": ["q_proj", "v_proj"]}
        assert llama.trainable(named) == LAYERS * 16 * (4096 + 4096 + 1024 + 4096) == 6_815_744
        assert llama.trainable({**named, "use_dora": True}) == 6_815_744 + LAYERS * (4096 + 1024)
        assert llama.trainable({**CHOSEN, "tuning": "full"}) == llama.parameters


class TestMemory:
    def test_takes_half_a_byte_and_scales_for_a_weight_in_nf4(self, llama):
        assert pytest.approx(0.5159, abs=1e-4) == NF4_BYTES  # 4.127 bits: arXiv:2305.14314
        linear = llama.linear_parameters
        outside = 2 * (llama.parameters - linear)
        unpacked = 2 * HIDDEN * INNER
        assert weight_bytes(llama, {**CHOSEN, "bits": 4}) == int(linear * NF4_BYTES + outside + unpacked)

    def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(self, llama):
        kept = device_memory(llama, CHOSEN, 2048).parts["activations"]
        again = device_memory(llama, {**CHOSEN, "gradient_checkpointing": True}, 2048).parts["activations"]
        trainable = 2 * llama.trainable(CHOSEN)  # autocast's copies stay
        inputs = 2 * HIDDEN * LAYERS * 4 * 2048
        assert again - trainable - inputs == pytest.approx((kept - trainable) / LAYERS)

    def test_grows_with_the_rows_that_are_there(self, llama):
        assert device_memory(llama, CHOSEN, 100).total < device_memory(llama, CHOSEN, 2000).total
        packed = {**CHOSEN, "packing": True}
        assert device_memory(llama, packed, 100).total == device_memory(llama, packed, 2000).total

    def test_a_pair_is_two_conversations(self, llama):
        alone, pair = (
            device_memory(llama, {**CHOSEN, "method": method}, 100).parts for method in ("supervised", "dpo")
        )
        trainable = 2 * llama.trainable(CHOSEN)
        assert pair["activations"] - trainable == 2 * (alone["activations"] - trainable)

    def test_adam_takes_twelve_bytes_more_for_each_weight_that_learns(self, llama):
        full = device_memory(llama, {**CHOSEN, "tuning": "full", "bits": 16}, 64).parts
        parts = [full[name] for name in ("weights", "gradients", "optimizer")]
        assert parts == [4 * llama.parameters, 4 * llama.parameters, 8 * llama.parameters]

    def test_needs_little_of_the_hosts_memory_with_a_gpu(self, llama):
        assert host_memory(llama, CHOSEN, 2048, gpu=True).total < 10 * GB
        assert host_memory(llama, CHOSEN, 2048, gpu=False).total > 2 * llama.parameters


class TestFitting:
    def test_names_changes_that_each_make_it_fit(self, llama):
        fit = fitting(llama)
        need = fit.best(CHOSEN)
        assert need.cannot_fit
        changes = fit.changes(CHOSEN)
        assert changes
        for change in changes:
            assert fit.best({**CHOSEN, **change}).fits
        assert describe(changes[0]) in refusal(need, changes)
        assert "24.0 GB" in refusal(need, changes)

    def test_takes_the_least_change(self, llama):
        """One row fewer in the batch would not have been enough."""
        fit = fitting(llama, replace(GPU, device_bytes=40 * GB))
        [batch] = [change for change in fit.changes({**CHOSEN, "bits": 4}) if "batch_size" in change]
        smaller = batch["batch_size"]
        assert batch["gradient_accumulation_steps"] * smaller == 16
        larger = next(rows for rows in range(smaller + 1, 5) if 16 % rows == 0)
        assert not fit.best({**CHOSEN, "bits": 4, "batch_size": larger}).fits

    def test_turns_several_knobs_where_one_is_not_enough(self, llama):
        small = replace(GPU, device_bytes=10 * GB)
        fit = fitting(llama, small)
        [change] = fit.changes(CHOSEN)
        assert len(change) > 1
        assert fit.best({**CHOSEN, **change}).fits
        for name in change:
            rest = {other: value for other, value in change.items() if other != name}
            assert name == "gradient_accumulation_steps" or not fit.best({**CHOSEN, **rest}).fits

    def test_leaves_kto_the_two_rows_that_it_needs(self, llama):
        fit = fitting(llama, replace(GPU, device_bytes=40 * GB))
        changes = fit.changes({**CHOSEN, "method": "kto", "bits": 4, "batch_size": 8})
        assert changes
        assert all(change.get("batch_size", 2) > 1 for change in changes)

    def test_says_so_when_nothing_helps(self, llama):
        hopeless = fitting(llama, replace(GPU, device_bytes=2 * GB))
        assert hopeless.changes(CHOSEN) == []
        assert "smaller base_model" in refusal(hopeless.best(CHOSEN), [])

    def test_refuses_nothing_on_a_machine_that_tells_nothing(self, llama):
        need = fitting(llama, Machine("somewhere")).best(CHOSEN)
        assert need.fits
        assert not need.cannot_fit

    def test_a_batch_has_no_more_rows_than_there_are(self, llama):
        few = replace(fitting(llama), rows=4)
        assert few.best({**CHOSEN, "batch_size": 4096}).peak_bytes == few.best(CHOSEN).peak_bytes

    def test_takes_the_machine_with_the_most_room(self, llama):
        large = replace(GPU, host="large", device_bytes=80 * GB)
        assert Fitting(llama, 2048, {GPU: 1.0, large: 1.0}, rows=1000).best(CHOSEN).machine is large

    def test_is_corrected_by_what_finished_trainings_took(self, llama):
        plain, learnt = fitting(llama).best(CHOSEN), Fitting(llama, 2048, {GPU: 0.5}, rows=1000).best(CHOSEN)
        assert learnt.peak_bytes == pytest.approx(plain.peak_bytes / 2, rel=1e-6)


def finished(**changes: Any) -> Finished:
    usual = Finished(
        device=GPU.device,
        parameters=8_030_261_248,
        hyperparameters=CHOSEN,
        tokens=1_000_000,
        tokens_per_second=2_000.0,
        peak_bytes=20 * GB,
        seconds={"prepare": 5, "train": 530, "export": 100, "verify": 60, "publish": 5},
        foretold={"seconds": 1_000.0, "arithmetic_bytes": 25 * GB, "peak_bytes": 24 * GB},
    )
    return replace(usual, **changes)


class TestLearning:
    def test_goes_by_the_rate_of_a_finished_job(self, llama):
        asked: dict[str, Any] = {"tokens": 4_000_000.0, "machine": GPU, "threads": 2}
        takes = duration(llama, CHOSEN, finished=[finished()], **asked)
        # 530 s were 500 of training at 2,000 a second, and 30 of all else.
        assert takes.seconds["train"] == pytest.approx(2_000 + 30)
        assert takes.total == pytest.approx(2_030 + 170)
        assert takes.jobs == 1
        half = replace(llama, parameters=llama.parameters // 2)
        assert duration(half, CHOSEN, finished=[finished()], **asked).seconds["train"] == pytest.approx(1_030)
        again = {**CHOSEN, "gradient_checkpointing": True}
        assert duration(llama, again, finished=[finished()], **asked).seconds["train"] == pytest.approx(3_030)

    def test_learns_nothing_from_another_device(self, llama):
        other = finished(device=None)
        takes = duration(llama, CHOSEN, tokens=1.0, machine=GPU, threads=2, finished=[other])
        assert takes.jobs == 0
        assert correction(alike([other], GPU)) == 1.0

    def test_prefers_jobs_of_its_own_kind(self, llama):
        unlike = finished(hyperparameters={**CHOSEN, "bits": 4}, tokens_per_second=1.0)
        asked: dict[str, Any] = {"tokens": 1e6, "machine": GPU, "threads": 2}
        takes = duration(llama, CHOSEN, finished=[unlike, finished()], **asked)
        assert takes.seconds["train"] == pytest.approx(530)

    def test_corrects_memory_by_the_middle_of_what_came_out(self):
        jobs = [finished(peak_bytes=peak * GB) for peak in (10, 20, 30)]
        assert correction(alike(jobs, GPU)) == pytest.approx(20 / 25)
        assert correction(alike([finished(peak_bytes=1)], GPU)) == 0.5  # no arithmetic is as wrong as that

    def test_reports_its_own_error(self):
        jobs = [
            finished(),
            finished(foretold={"seconds": 500.0, "peak_bytes": 20 * GB, "arithmetic_bytes": 1}),
        ]
        told = own_error(jobs)
        assert told["jobs"] == 2
        assert told["time"] == {"lowest": 0.7, "highest": 1.4}
        assert "The last 2 jobs took 0.7–1.4 times what was estimated" in told["text"]
        assert own_error([])["jobs"] == 0
