from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from db.settings import Settings
from serving.llama_cpp import require_tools
from worker.steps.one_pass.encoding import GgmlEncoder, NotEncodable, find_encoder, ggml_library


@pytest.fixture(scope="module")
def ggml() -> GgmlEncoder:
    encoder = find_encoder(require_tools(Settings()).bin)
    assert encoder is not None
    return encoder


def random_rows(rows: int = 3, columns: int = 512) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.random.default_rng(1).standard_normal((rows, columns), np.float32)


class TestGgmlEncoder:
    @pytest.mark.parametrize(("type_name", "error"), [("Q4_K", 0.2), ("Q6_K", 0.06), ("Q8_0", 0.02)])
    def test_blocks_hold_the_rows_within_the_types_error(
        self, ggml: GgmlEncoder, type_name: str, error: float
    ) -> None:
        rows = random_rows()
        encoded = ggml.encode(rows, type_name)
        back = quants.dequantize(encoded, GGMLQuantizationType[type_name])
        assert back.shape == rows.shape
        assert float(np.abs(back - rows).max()) < error

    def test_rows_are_encoded_each_by_itself(self, ggml: GgmlEncoder) -> None:
        rows = random_rows()
        assert (ggml.encode(rows, "Q5_K")[1:] == ggml.encode(rows[1:], "Q5_K")).all()

    def test_an_importance_matrix_changes_what_is_kept(self, ggml: GgmlEncoder) -> None:
        rows = random_rows()
        weights = np.linspace(1e-3, 1, rows.shape[1], dtype=np.float32)
        assert (ggml.encode(rows, "Q4_K", weights) != ggml.encode(rows, "Q4_K")).any()

    def test_refuses_a_type_that_needs_an_importance_matrix(self, ggml: GgmlEncoder) -> None:
        with pytest.raises(NotEncodable, match="IQ2_XXS needs an importance matrix"):
            ggml.encode(random_rows(), "IQ2_XXS")

    def test_refuses_columns_that_are_no_whole_blocks(self, ggml: GgmlEncoder) -> None:
        with pytest.raises(NotEncodable, match="128 columns"):
            ggml.encode(random_rows(columns=128), "Q4_K")

    def test_refuses_scales_that_are_infinite(self, ggml: GgmlEncoder) -> None:
        with pytest.raises(NotEncodable, match="NaN or infinite"):
            ggml.encode(random_rows() * 1e30, "Q8_0")

    def test_refuses_a_type_that_is_not_there(self, ggml: GgmlEncoder) -> None:
        with pytest.raises(NotEncodable, match="no type 'Q9_K'"):
            ggml.encode(random_rows(), "Q9_K")


def test_programs_that_bring_no_library_have_no_encoder(tmp_path: Path) -> None:
    assert ggml_library(tmp_path) is None
