"""How a training is spread over several GPUs, what each of them then takes, and how long it takes."""

from dataclasses import replace
from typing import Any

import pytest

from tests.training_data.test_fitting import CHOSEN, CONFIG, GB, TENSORS
from training_data.durations import Finished, duration
from training_data.fitting import Fitting, Need, refusal
from training_data.footprint import device_memory
from training_data.machines import Machine
from training_data.model_shape import ModelShape, read_shape
from training_data.placement import Placing, gain

PARAMS = {"training_args": {}, "use_dora": False, "lora_bias": "none", "sharding": "auto"}
AUTO_4 = {**CHOSEN, "bits": 4, "auto_bits": 4}


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return read_shape(CONFIG, TENSORS)


def gpus(number: int, gigabytes: int) -> Machine:
    return Machine("h", 512 * GB, "RTX", gigabytes * GB, number)


def need(shape: ModelShape, machine: Machine, chosen: dict[str, Any], **placing: Any) -> Need:
    params = {**PARAMS, **placing.get("params", {})}
    return Fitting(shape, 2048, {machine: 1.0}, 10_000, Placing(**{**placing, "params": params})).best(chosen)


def test_each_has_a_copy_where_the_smallest_has_room_and_its_part_of_the_rows(llama: ModelShape) -> None:
    alone, both = (need(llama, gpus(number, 80), CHOSEN) for number in (1, 2))
    division = both.placement.division
    assert (division.ranks, division.batch_size, division.accumulation) == (2, 4, 2)
    assert (division.parallel, both.placement.devices) == ("ddp", 2)
    assert both.device is not None
    assert alone.device is not None
    # As many rows at once as alone; beside them, the buckets that gradients are sent in.
    assert both.device.parts["averaging"] == both.device.parts["gradients"]
    assert both.device.parts["activations"] == alone.device.parts["activations"]
    assert both.ram.total == 2 * alone.ram.total
    fewer = need(llama, gpus(8, 80), CHOSEN)  # of its 16 rows each takes 2
    assert (fewer.placement.division.batch_size, fewer.placement.division.accumulation) == (2, 1)
    assert fewer.device is not None
    assert fewer.device.parts["activations"] < alone.device.parts["activations"]


def test_rows_that_cannot_be_divided_leave_gpus_idle(llama: ModelShape) -> None:
    odd = {**CHOSEN, "batch_size": 13, "gradient_accumulation_steps": 1}
    found = need(llama, gpus(2, 80), odd).placement
    assert (found.division.ranks, found.division.batch_size) == (1, 13)


def test_each_has_a_share_where_a_copy_has_no_room(llama: ModelShape) -> None:
    eight = need(llama, gpus(8, 8), AUTO_4)  # not even in 4 bits: 0.55 / 0.4 × 8 GB
    assert (eight.placement.division.parallel, eight.placement.division.ranks) == ("fsdp", 8)
    assert eight.device is not None
    assert eight.device.parts["weights"] == pytest.approx(2 * llama.parameters / 8, rel=0.01)  # in 16 bits
    assert eight.device.parts["gathered"] > 2 * 2 * llama.linear_parameters / 32
    two = need(llama, gpus(2, 10), AUTO_4)  # 16 bits have no room even so: 2 / 0.7 × 8 GB of each
    assert two.placement.division.sharded
    assert two.device is not None
    assert two.device.parts["weights"] < 0.8 * llama.parameters / 2
    full = {**CHOSEN, "tuning": "full", "bits": 16, "learnt_in_bytes": 2}
    shared = need(llama, gpus(8, 80), full)
    assert shared.placement.division.sharded
    assert shared.device is not None
    whole = device_memory(llama, {**full, "batch_size": 2, "learnt_in_bytes": 4}, 2048)
    for name in ("weights", "gradients", "optimizer"):  # in float32 there, for its share has room
        assert shared.device.parts[name] == whole.parts[name] // 8


@pytest.mark.parametrize(
    "reason",
    [
        {"params": {"use_dora": True}},
        {"deepspeed": True},
        {"divisible": False},
        {"params": {"sharding": "none"}},
    ],
)
def test_one_process_spreads_its_layers_where_there_can_be_no_shares(
    llama: ModelShape, reason: dict[str, Any]
) -> None:
    found = need(llama, gpus(2, 10), AUTO_4, **reason)
    assert (found.placement.division.ranks, found.placement.spread) == (1, 2)
    assert found.device is not None
    alone = device_memory(llama, AUTO_4, 2048)
    assert found.device.parts["weights"] == alone.parts["weights"] // 2
    assert found.device.parts["logits"] == alone.parts["logits"]
    assert found.placement.gain == 1.0


def test_processes_without_a_gpu_share_the_hosts_memory(llama: ModelShape) -> None:
    alone, both = (
        need(llama, Machine("h", 512 * GB), {**CHOSEN, "compute_dtype": "float32"}, processes=number)
        for number in (1, 2)
    )
    assert both.placement.division.parallel == "ddp"
    assert both.ram.total > 2 * alone.ram.total
    assert both.placement.gain == 1.0


def test_what_cannot_fit_says_so_of_each_gpu(llama: ModelShape) -> None:
    machine = gpus(2, 24)
    chosen = {**CHOSEN, "tuning": "full", "bits": 16, "learnt_in_bytes": 2}
    fitting = Fitting(llama, 2048, {machine: 1.0}, 10_000, Placing(PARAMS))
    found = fitting.best(chosen)
    assert found.cannot_fit
    told = refusal(found, fitting.changes(chosen))
    assert "Of each GPU, this training needs about" in told
    assert "the smallest of 2 × RTX on h has 24.0 GB. It would fit with" in told


class TestTime:
    def finished(self, **changes: Any) -> Finished:
        job = Finished(
            device="RTX", parameters=8_030_261_248, hyperparameters=CHOSEN, tokens=1_000_000,
            tokens_per_second=1_000.0, peak_bytes=GB, seconds={"train": 1_000.0}, foretold={},
        )  # fmt: skip
        return replace(job, **changes)

    def train_seconds(self, llama: ModelShape, jobs: list[Finished], **given: Any) -> float:
        machine = gpus(2, 80)
        takes = duration(llama, CHOSEN, tokens=1_000_000, machine=machine, threads=2, finished=jobs, **given)
        return takes.seconds["train"]

    def test_is_learnt_from_one_gpu_by_what_the_second_is_guessed_to_add(self, llama: ModelShape) -> None:
        assert gain(2, "ddp") == pytest.approx(1.9)
        assert gain(2, None) == gain(1, "ddp") == 1.0
        seconds = self.train_seconds(llama, [self.finished()], gain=gain(2, "ddp"))
        assert seconds == pytest.approx(1_000 / 1.9)

    def test_and_then_from_two_as_they_were(self, llama: ModelShape) -> None:
        two = self.finished(gain=gain(2, "ddp"), tokens_per_second=1_500.0, seconds={"train": 700.0})
        seconds = self.train_seconds(llama, [self.finished(), two], gain=gain(2, "ddp"))
        assert seconds == pytest.approx(1_000_000 / 1_500 + 700 - 1_000_000 / 1_500)
