"""What is not proven is not used: a library that rounds once more than ggml, or that dies, is found out."""

import shutil
from pathlib import Path

import pytest

from db.settings import Settings
from serving.llama_cpp import require_tools
from worker.encoder import compiling
from worker.encoder.choosing import choose_encoder, doubt


@pytest.fixture
def altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The encoder's source, as a copy that is compiled in its place."""
    for name in compiling.SOURCES:
        shutil.copy(compiling.HERE / name, tmp_path / name)
    monkeypatch.setattr(compiling, "HERE", tmp_path)
    return tmp_path


def alter(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


class TestChoosing:
    def test_vectors_are_taken_once_they_are_proven(self, tmp_path: Path) -> None:
        tools = require_tools(Settings())
        chosen = choose_encoder(tools.bin, tmp_path)
        assert chosen is not None
        assert chosen.encoder.name == "vectors", chosen.said
        assert "proven on this machine" in chosen.said
        assert len(list(tmp_path.rglob("proof-*.json"))) == 1

    def test_other_operations_of_the_same_sum_are_found_out(
        self, altered: Path, ggml_path: Path, tmp_path: Path
    ) -> None:
        alter(
            altered / "search.hpp",
            "weight[e] * (difference * difference)",
            "weight[e] * difference * difference",
        )
        library = compiling.compiled(tmp_path)
        reason = doubt(library, ggml_path)
        assert reason is not None
        assert "differ from ggml's" in reason
        assert doubt(library, ggml_path) == reason  # kept

    def test_a_library_that_dies_ends_nothing_but_its_proof(
        self, altered: Path, ggml_path: Path, tmp_path: Path
    ) -> None:
        alter(altered / "blocks.cpp", "int lanes() { return LANES; }", "int lanes() { __builtin_trap(); }")
        chosen = choose_encoder(require_tools(Settings()).bin, tmp_path)
        assert chosen is not None
        assert chosen.encoder is chosen.ggml
        assert "ended by signal 4" in chosen.said

    def test_without_a_compiler_it_is_ggmls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tools = require_tools(Settings())
        monkeypatch.setenv("PATH", str(tmp_path))
        chosen = choose_encoder(tools.bin, tmp_path)
        assert chosen is not None
        assert chosen.encoder is chosen.ggml
        assert "there is no C++ compiler" in chosen.said

    def test_a_compiler_that_fails_is_told(self, altered: Path, tmp_path: Path) -> None:
        alter(altered / "blocks.cpp", "int lanes() { return LANES; }", "int lanes() { return lanez; }")
        with pytest.raises(compiling.CannotCompile, match="lanez"):
            compiling.compiled(tmp_path)
        assert not list(tmp_path.rglob("*.so"))
