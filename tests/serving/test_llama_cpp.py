import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from db.errors import InvalidInput, Unavailable
from db.settings import Settings
from serving import llama_cpp
from serving.convert_driver import QWEN2_SPLIT, splits_like_qwen2
from serving.embedding_weights import weights_folder
from tests.serving.llama_process import LlamaProcess, embedding_process


@dataclass(frozen=True)
class Where:
    cache_dir: Path
    llama_cpp_dir: Path | None = None
    llama_backend: str = "cpu"


def programs(folder: Path, *, help_text: str = "--models-dir PATH --models-preset PATH") -> Path:
    folder.mkdir(parents=True)
    for name in ("llama-server", "llama-quantize"):
        (folder / name).write_text(f"#!/bin/sh\necho '{help_text}'\n")
        (folder / name).chmod(0o755)
    return folder


class TestFindTools:
    @pytest.mark.parametrize("inside", ["", "bin", "build/bin"])
    def test_setting_names_a_folder_in_any_usual_layout(self, tmp_path: Path, inside: str) -> None:
        bin_folder = programs(tmp_path / "llama" / inside)
        tools = llama_cpp.find_tools(Where(tmp_path / "cache", tmp_path / "llama"))
        assert tools is not None
        assert (tools.bin, tools.source, tools.convert) == (bin_folder, "setting", None)

    def test_setting_that_holds_nothing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="LATHE_LLAMA_CPP_DIR"):
            llama_cpp.find_tools(Where(tmp_path, tmp_path))

    def test_setting_with_an_old_server_is_an_error(self, tmp_path: Path) -> None:
        programs(tmp_path / "old", help_text="no such thing")
        with pytest.raises(InvalidInput, match="too old"):
            llama_cpp.find_tools(Where(tmp_path, tmp_path / "old"))

    def test_path_comes_before_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = Where(tmp_path / "cache")
        programs(llama_cpp.cached_folder(settings) / "bin")
        found = llama_cpp.find_tools(settings)
        assert found is not None
        assert found.source == "cache"
        monkeypatch.setenv("PATH", str(programs(tmp_path / "bin")), prepend=":")
        found = llama_cpp.find_tools(settings)
        assert found is not None
        assert found.source == "path"

    def test_old_server_on_path_is_passed_by(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(programs(tmp_path / "bin", help_text="old")), prepend=":")
        assert llama_cpp.find_tools(Where(tmp_path / "cache")) is None

    def test_none_says_how_to_get_one(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"build\.py") as missing:
            llama_cpp.require_tools(Where(tmp_path))
        assert missing.value.code == "llama_cpp_missing"

    def test_fetched_converters_serve_tools_without_their_own(self, tmp_path: Path) -> None:
        settings = Where(tmp_path / "cache", tmp_path / "llama")
        programs(tmp_path / "llama")
        folder = llama_cpp.converters_folder(settings)
        (folder / "convert").mkdir(parents=True)
        (folder / "convert" / "convert_hf_to_gguf.py").write_text("")
        tools = llama_cpp.find_tools(settings)
        assert tools is not None
        assert (tools.convert, tools.python) == (folder / "convert", folder / "python")

    def test_unknown_backend_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="LATHE_LLAMA_BACKEND"):
            llama_cpp.resolve_backend(Where(tmp_path, llama_backend="metal"))


class TestArgv:
    def test_key_is_never_in_an_argv(self, tmp_path: Path) -> None:
        tools = llama_cpp.require_tools(Settings())
        argv = llama_cpp.chat_server_argv(tools, Settings(data_dir=tmp_path, chat_server_key="hush"))
        assert "hush" not in " ".join(argv)
        assert llama_cpp.child_environment("hush")["LLAMA_API_KEY"] == "hush"

    def test_settings_of_serving_reach_the_server(self, tmp_path: Path) -> None:
        tools = llama_cpp.require_tools(Settings())
        settings = Settings(data_dir=tmp_path, n_gpu_layers=7, context_size=2048, threads=3)
        line = " ".join(llama_cpp.chat_server_argv(tools, settings))
        assert "--n-gpu-layers 7" in line
        assert "--ctx-size 2048" in line
        assert "--threads 3" in line
        assert "--host 127.0.0.1" in line


SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class TestSplitsLikeQwen2:
    def described(self, *parts: dict[str, object]) -> dict[str, object]:
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}

    def test_knows_its_own(self) -> None:
        assert splits_like_qwen2(self.described(SPLIT, BYTES))

    def test_refuses_all_others(self) -> None:
        other = {**SPLIT, "pattern": {"Regex": r"\w+"}}
        assert not splits_like_qwen2(self.described(other, BYTES))
        assert not splits_like_qwen2(self.described(SPLIT, {**BYTES, "add_prefix_space": True}))
        assert not splits_like_qwen2(self.described(BYTES))
        assert not splits_like_qwen2({"pre_tokenizer": {"type": "ByteLevel"}})
        assert not splits_like_qwen2({})

    def test_is_the_pattern_of_the_tokenizers_made_here(self) -> None:
        from worker.steps.pretrain_text import PRE_TOKENIZER_PATTERN, train_tokenizer

        assert PRE_TOKENIZER_PATTERN == QWEN2_SPLIT
        made = train_tokenizer(["a few words of text, and 12 more"], 300)
        assert splits_like_qwen2(json.loads(made.to_str()))


@pytest.fixture(scope="module")
def embedding_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaProcess]:
    process = embedding_process(tmp_path_factory.mktemp("embeddings"))
    yield process
    process.stop()


def embed(server: LlamaProcess, texts: list[str]) -> list[list[float]]:
    answer = httpx.post(
        f"{server.url}/v1/embeddings", json={"input": texts, "model": "default"}, timeout=60, trust_env=False
    )
    answer.raise_for_status()
    return [row["embedding"] for row in answer.json()["data"]]


TEXTS = [
    "A lathe turns a workpiece against a cutting tool.",
    "Postgres keeps rows.",
    "Grüße aus Köln, 12 °C",
    "word " * 120,
]


def original_vectors(texts: list[str]) -> list[list[float]]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModel.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=-1).tolist()
    return vectors


class TestEmbeddingServer:
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
    def test_vectors_are_those_of_the_original(self, embedding_server: LlamaProcess) -> None:
        """f16 weights against fp32 ones, mean over tokens, normalised: cosine above 0.99999."""
        for ours, theirs in zip(embed(embedding_server, TEXTS), original_vectors(TEXTS), strict=True):
            assert sum(a * b for a, b in zip(ours, theirs, strict=True)) > 0.99999

    def test_takes_many_texts_and_long_ones_at_once(self, embedding_server: LlamaProcess) -> None:
        texts = ["word " * 500] * 4 + ["short"] * 60
        vectors = embed(embedding_server, texts)
        assert len(vectors) == 64
        assert {len(vector) for vector in vectors} == {384}
