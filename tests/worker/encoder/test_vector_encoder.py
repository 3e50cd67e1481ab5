"""Every byte is ggml's: on rows of each kind, and on what hypothesis makes of thirty-two bits."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.encoder.proof import difference, distributions
from worker.encoder.vector_encoder import BLOCKS, VectorEncoder
from worker.steps.one_pass.encoding import GgmlEncoder, NotEncodable, Rows

INFINITE, QUIET, SIGNALLING = 0x7F800000, 0x7FC00000, 0x7F800001
SMALLEST, LARGEST_SUBNORMAL, LARGEST = 1, 0x007FFFFF, 0x7F7FFFFF
SIGN = 0x80000000

magnitudes = st.one_of(
    st.integers(0, LARGEST),
    st.sampled_from([0, SMALLEST, LARGEST_SUBNORMAL, LARGEST_SUBNORMAL + 1, LARGEST]),
    # What GGUF rounds to halves: around the largest and the smallest of them.
    *(st.integers(middle - 3, middle + 3) for middle in (0x477FE000, 0x33000000, 0x38800000)),
)
unusual = st.sampled_from([INFINITE, QUIET, SIGNALLING, QUIET + 12345, LARGEST | QUIET])
bits = st.builds(lambda negative, magnitude: negative | magnitude, st.sampled_from([0, SIGN]), magnitudes)


@st.composite
def sub_blocks(draw: st.DrawFn) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """32 floats: of few values or many, in one range or anywhere, with ties; perhaps one is no number."""
    dice = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["few", "ties", "near", "any"]))
    if kind == "few":
        values = dice.choice(np.array(draw(st.lists(bits, min_size=1, max_size=4)), np.uint32), 32)
    elif kind == "ties":  # halves between levels, at any power of two
        steps = dice.integers(-64, 65, 32) / 2 * 2.0 ** draw(st.integers(-140, 120))
        values = steps.astype(np.float32).view(np.uint32)
    elif kind == "near":  # of one magnitude, give or take a few bits
        middle = draw(st.integers(1 << 10, LARGEST - (1 << 10)))
        values = (middle + dice.integers(-1024, 1024, 32)).astype(np.uint32) | dice.choice([0, SIGN], 32)
    else:
        values = dice.integers(0, INFINITE, 32, np.uint32) | dice.choice([0, SIGN], 32)
    values = np.array(values, np.uint32)
    if draw(st.integers(0, 15)) == 0:
        values[dice.integers(32)] = draw(unusual)
    return values


rows = st.lists(sub_blocks(), min_size=8, max_size=8).map(
    lambda parts: np.concatenate(parts).view(np.float32).reshape(1, -1)
)


def encoded_alike(vectors: VectorEncoder, ggml: GgmlEncoder, rows: Rows) -> None:
    for name in BLOCKS:
        ours, theirs = vectors.encode_unchecked(rows, name), ggml.encode_unchecked(rows, name)
        assert ours.tobytes() == theirs.tobytes(), name


class TestBytes:
    def test_are_ggmls_on_rows_of_every_kind(self, vectors: VectorEncoder, ggml: GgmlEncoder) -> None:
        assert difference(vectors, ggml, seed=1) is None

    @settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=rows)
    def test_are_ggmls_on_any_bits(self, vectors: VectorEncoder, ggml: GgmlEncoder, rows: Rows) -> None:
        encoded_alike(vectors, ggml, rows)

    @pytest.mark.slow
    @settings(deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
    @given(rows=rows)
    def test_are_ggmls_on_any_bits_at_length(
        self, vectors: VectorEncoder, ggml: GgmlEncoder, rows: Rows
    ) -> None:
        encoded_alike(vectors, ggml, rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(20))
    def test_are_ggmls_on_many_rows_of_every_kind(
        self, vectors: VectorEncoder, ggml: GgmlEncoder, seed: int
    ) -> None:
        for _, rows in distributions(np.random.default_rng(1000 + seed), 1001):
            encoded_alike(vectors, ggml, rows)

    def test_are_the_same_from_many_threads(self, vectors: VectorEncoder) -> None:
        rows = np.random.default_rng(2).standard_normal((64, 512), np.float32)
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: vectors.encode(rows, "Q6_K").tobytes(), range(16)))
        assert set(made) == {vectors.encode(rows, "Q6_K").tobytes()}

    @pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "F16", "BF16"])
    def test_of_other_types_are_ggmls_own(self, vectors: VectorEncoder, ggml: GgmlEncoder, name: str) -> None:
        rows = np.random.default_rng(3).standard_normal((2, 256), np.float32)
        assert vectors.encode(rows, name).tobytes() == ggml.encode(rows, name).tobytes()

    @pytest.mark.parametrize("name", BLOCKS)
    def test_with_an_importance_matrix_are_ggmls_own(
        self, vectors: VectorEncoder, ggml: GgmlEncoder, name: str
    ) -> None:
        rows = np.random.default_rng(4).standard_normal((3, 512), np.float32)
        matrix = np.linspace(1e-3, 1, 512, dtype=np.float32)
        assert vectors.encode(rows, name, matrix).tobytes() == ggml.encode(rows, name, matrix).tobytes()

    def test_do_not_hang_on_how_the_rows_lie_in_memory(self, vectors: VectorEncoder) -> None:
        rows = np.random.default_rng(5).standard_normal((512, 4), np.float32).T
        assert (vectors.encode(rows, "Q4_K") == vectors.encode(rows.copy(order="C"), "Q4_K")).all()


class TestRefusals:
    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
    def test_are_ggmls(self, vectors: VectorEncoder, ggml: GgmlEncoder, name: str, value: float) -> None:
        rows = np.full((1, 256), 0.5, np.float32)
        rows[0, 31] = value
        said = []
        for encoder in (vectors, ggml):
            try:
                said.append(encoder.encode(rows, name).tobytes())
            except NotEncodable as error:
                said.append(str(error).encode())
        assert said[0] == said[1]

    def test_of_columns_that_are_no_whole_blocks(self, vectors: VectorEncoder) -> None:
        with pytest.raises(NotEncodable, match="128 columns"):
            vectors.encode(np.zeros((1, 128), np.float32), "Q4_K")
