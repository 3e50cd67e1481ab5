"""What quantising takes, of a model of 8 B weights on the machines that people have."""

import pytest

from tests.training_data.test_fitting import CONFIG, HIDDEN, LAYERS, TENSORS
from training_data.gptq_cost import (
    Calibrated,
    FinishedQuantization,
    best_need,
    fewer_rows,
    operations,
    quantized_size,
    quantizing_seconds,
)
from training_data.machines import Machine
from training_data.model_shape import ModelShape, read_shape

GB = 10**9
COUNTED = Calibrated(rows=1024, tokens=1024 * 2048, longest=2048)


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_shape(CONFIG, TENSORS)


def test_the_host_holds_the_model_and_the_gpu_one_layer(shape: ModelShape) -> None:
    need = best_need(shape, COUNTED, [Machine("h", 64 * GB, "RTX", 80 * GB)], [])
    assert need.device is not None
    assert need.ram.parts["weights"] == 2 * shape.parameters
    assert need.device.parts["layer"] == 2 * shape.linear_parameters / LAYERS
    assert need.device.parts["tokens"] == 2 * 2 * COUNTED.tokens * HIDDEN  # in 16 bits, before and after
    assert need.fits
    alone = best_need(shape, COUNTED, [Machine("h", 64 * GB)], [])
    assert alone.device is None
    assert alone.ram.total > need.ram.total + need.device.parts["tokens"] - 3 * GB


def test_fewer_rows_make_it_fit_a_smaller_gpu_and_nothing_less_memory_than_the_model(
    shape: ModelShape,
) -> None:
    need = best_need(shape, COUNTED, [Machine("h", 64 * GB, "RTX", 24 * GB)], [])
    assert need.cannot_fit
    [change] = fewer_rows(shape, COUNTED, need)
    rows = change["max_rows"]
    assert rows in (512, 256, 128, 64, 32)
    fewer = Calibrated(rows, rows * 2048, 2048)
    assert best_need(shape, fewer, [need.machine], []).fits
    assert not best_need(shape, Calibrated(2 * rows, 2 * rows * 2048, 2048), [need.machine], []).fits
    small = best_need(shape, COUNTED, [Machine("h", 12 * GB, "RTX", 80 * GB)], [])
    assert small.cannot_fit
    assert fewer_rows(shape, COUNTED, small) == []


def test_the_files_are_packed_weights_scales_zeros_and_what_is_no_linear_layer(shape: ModelShape) -> None:
    rest = 2 * (shape.parameters - shape.linear_parameters)
    packed = quantized_size(shape, bits=4, group_size=128) - rest
    assert packed / shape.linear_parameters == pytest.approx(0.5 + (2 + 0.5) / 128, rel=1e-6)
    packed = quantized_size(shape, bits=8, group_size=32) - rest
    assert packed / shape.linear_parameters == pytest.approx(1 + (2 + 1) / 32, rel=1e-6)


def test_time_is_learnt_by_operations_from_a_smaller_one(shape: ModelShape) -> None:
    few = Calibrated(rows=128, tokens=128 * 512, longest=512)
    done = FinishedQuantization(
        device="RTX", parameters=shape.parameters, operations=operations(shape, few), peak_bytes=1,
        seconds={"quantize": 225.0, "verify": 35.0, "publish": 4.0}, foretold={},
    )  # fmt: skip
    seconds = quantizing_seconds(shape, operations(shape, few), rate=1.0, finished=[done])
    assert seconds == pytest.approx({"quantize": 225.0, "verify": 35.0, "publish": 4.0})
    more = quantizing_seconds(shape, operations(shape, COUNTED), rate=1.0, finished=[done])
    assert 1000 < more["quantize"] < 32 * 225  # what is solved does not grow with the tokens
