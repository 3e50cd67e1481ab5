"""Hold the compiled encoder's bytes against ggml's: `python -m worker.encoder.proof ENCODER LIBGGML-BASE`

It is a process of its own, so that a library which this CPU cannot run ends nothing but the proof. Exit
status 0: not a byte differs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from worker.encoder.vector_encoder import BLOCKS, VectorEncoder
from worker.steps.one_pass.encoding import GgmlEncoder, Rows

COLUMNS = 512
# Of each kind; more of what weights look like, where a rounding may show in one block of thousands only.
ROWS, ROWS_OF_WEIGHTS = 33, 1025  # odd, for the blocks are taken two by two


def distributions(dice: np.random.Generator, rows: int, columns: int = COLUMNS) -> Iterator[tuple[str, Rows]]:
    """Rows of each kind that might be rounded in a way of its own, `rows` of each."""
    shape = (rows, columns)
    normal = dice.standard_normal(shape)
    per_sub_block = np.repeat(10 ** dice.uniform(-9, 4, (rows, columns // 32)), 32, axis=1)
    kinds = {
        "normal": normal / 50,
        "uniform": dice.uniform(-1, 1, shape),
        "heavy tails": dice.standard_t(1, shape),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "far from zero": 100 + normal / 1000,
        "ties": dice.integers(-40, 40, shape) / 16,
        "few levels": dice.integers(-8, 8, shape),
        "sparse": normal * (dice.random(shape) < 0.03),
        "constant": np.repeat(normal[:, ::32], 32, axis=1),
        "zeros": np.zeros(shape),
        "negative zeros": -np.zeros(shape),
        "scales apart": normal * per_sub_block,
        "all magnitudes": np.sign(normal) * 10 ** dice.uniform(-44, 38, shape),
        "subnormal": normal * 1e-39,
        "tiny": normal * 1e-16,
        "large": normal * 1e6,
        "huge": normal * 1e37,
        "bf16": _rounded_to_bf16((normal / 50).astype(np.float32)),
    }
    for name, values in kinds.items():
        yield name, np.ascontiguousarray(values, np.float32)
    yield "any bits", dice.integers(0, 2**32, shape, np.uint32).view(np.float32)
    yield "sums that overflow", np.copysign(np.finfo(np.float32).max, normal, dtype=np.float32)


def _rounded_to_bf16(values: Rows) -> Rows:
    bits = values.view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def difference(vectors: VectorEncoder, ggml: GgmlEncoder, seed: int = 0) -> str | None:
    """Encode rows of every kind into every type by both; tell the first that differs, None: none does."""
    dice = np.random.default_rng(seed)
    weights = dice.standard_normal((ROWS_OF_WEIGHTS, COLUMNS), np.float32)
    for name, rows in [*distributions(dice, ROWS), ("weights", weights)]:
        for type_name in BLOCKS:
            ours, theirs = vectors.encode_unchecked(rows, type_name), ggml.encode_unchecked(rows, type_name)
            count = int((ours != theirs).sum())
            if count:
                return (
                    f"{count} of {ours.size} bytes of {type_name} differ from ggml's on rows of kind {name!r}"
                )
    return None


def main(library: str, ggml_library: str) -> int:
    ggml = GgmlEncoder(Path(ggml_library))
    told = difference(VectorEncoder(Path(library), ggml), ggml)
    if told is not None:
        sys.stderr.write(f"{told}\n")
    return 0 if told is None else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
