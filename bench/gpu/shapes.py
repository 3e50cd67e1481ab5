"""Shapes of open models with random weights, and what GPUs can do at most."""

from bench.random_llama import Shape

SHAPES = {
    "micro": Shape(hidden=64, layers=2, intermediate=128, heads=4),  # to see that the script runs
    "1B": Shape(2048, 16, 8192, 32, vocabulary=128_256, key_value_heads=8),
    "4B": Shape(2560, 36, 9728, 32, vocabulary=151_936, key_value_heads=8),
    "8B": Shape(4096, 32, 14_336, 32, vocabulary=128_256, key_value_heads=8),
}
# Of 16 bits, dense, by name of the device; their makers' figures.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71}


def matrix_parameters(shape: Shape) -> int:
    """Weights that every token is multiplied with: the layers' matrices and the output layer's."""
    shared = (shape.key_value_heads or shape.heads // 2) / shape.heads
    attention = (2 + 2 * shared) * shape.hidden**2
    return round(
        shape.layers * (attention + 3 * shape.hidden * shape.intermediate) + shape.vocabulary * shape.hidden
    )


def lora_mfu(shape: Shape, tokens_a_second: float, peak_tflops: float) -> float:
    """The share of what the GPU can do that an adapter's training takes: 4 operations for each weight and
    token,
    as frozen weights have no gradients. What is computed twice, and attention itself, count for nothing."""
    return 4 * matrix_parameters(shape) * tokens_a_second / (peak_tflops * 1e12)
