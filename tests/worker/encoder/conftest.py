from pathlib import Path

import pytest

from db.settings import Settings
from serving.llama_cpp import require_tools
from worker.encoder.compiling import compiled
from worker.encoder.vector_encoder import VectorEncoder
from worker.steps.one_pass.encoding import GgmlEncoder, ggml_library


@pytest.fixture(scope="session")
def ggml_path() -> Path:
    library = ggml_library(require_tools(Settings()).bin)
    assert library is not None
    return library


@pytest.fixture(scope="session")
def ggml(ggml_path: Path) -> GgmlEncoder:
    return GgmlEncoder(ggml_path)


@pytest.fixture(scope="session")
def vectors(ggml: GgmlEncoder) -> VectorEncoder:
    return VectorEncoder(compiled(Settings().cache_dir), ggml)
