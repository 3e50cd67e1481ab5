from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from db.errors import Unavailable
from db.settings import Settings
from serving.llama_cpp import require_tools
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    base_weights,
    step_of,
    step_settings,
    write_rows,
)
from training_data.tokens import ChatTokenizer
from worker.steps import export, importance
from worker.steps.importance import importance_matrix, write_text

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_a_quantization_is_weighed_by_the_training_rows(
    models: TrainedModels, exported: Exported, tmp_path: Path
) -> None:
    step, said = step_of(
        tmp_path / "export",
        step_settings(tmp_path / "served"),
        params={"name": "faq", "quantizations": ["Q4_K_M"], "imatrix": True},
        base=base_weights(models.base),
        step_folders={name: exported.folders[name] for name in ("prepare", "train")},
    )
    [file] = export.run(step)["files"]
    weighed = GGUFReader(tmp_path / "export" / file["path"])
    plain = {tensor.name: tensor for tensor in GGUFReader(exported.file("Q4_K_M")).tensors}
    assert any((tensor.data != plain[tensor.name].data).any() for tensor in weighed.tensors)
    assert file["imatrix"]["rows"] == len(models.rows)
    told = [message for message in said if message["type"] == "event" and "Importance" in message["message"]]
    assert told[0]["data"]["tokens"] == file["imatrix"]["tokens"]
    # The file goes to others: it tells neither where it was made nor from what text.
    for field in ("quantize.imatrix.file", "quantize.imatrix.dataset"):
        name = weighed.get_field(field)
        assert name is not None
        assert name.contents() in (importance.TEXT, importance.MATRIX)
    assert not (tmp_path / "export" / importance.TEXT).exists()
    assert importance.MATRIX in [message["name"] for message in said if message["type"] == "artifact"]


def test_too_little_text_is_told_and_nothing_is_weighed(models: TrainedModels, tmp_path: Path) -> None:
    (tmp_path / "prepare").mkdir()
    write_rows(tmp_path / "prepare" / "train.jsonl", models.rows[:1])
    step, said = step_of(
        tmp_path / "export",
        step_settings(tmp_path / "served"),
        step_folders={"prepare": tmp_path / "prepare"},
    )
    tools, tokenizer = require_tools(step.input.settings), ChatTokenizer(models.adapter)
    assert importance_matrix(step, tools, tmp_path / "none.gguf", tokenizer, 256) is None
    [event] = said
    assert event["level"] == "warn"
    assert "64 are needed" in event["message"]


def test_a_llama_cpp_without_the_program_is_told(models: TrainedModels, tmp_path: Path) -> None:
    tools = replace(require_tools(Settings()), bin=tmp_path)
    step, _ = step_of(tmp_path / "export", step_settings(tmp_path / "served"))
    with pytest.raises(Unavailable, match="has no llama-imatrix"):
        importance_matrix(step, tools, tmp_path / "none.gguf", ChatTokenizer(models.adapter), 256)


def test_text_ends_where_it_is_enough(
    models: TrainedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "MOST_TOKENS", 30)
    tokenizer = ChatTokenizer(models.adapter)
    text = "Lima is the capital of Peru."
    each = len(tokenizer.encode_text(text))
    rows, tokens = write_text(iter([text] * 100), tokenizer, tmp_path / "text")
    assert (rows - 1) * each < 30 <= rows * each == tokens
    assert (tmp_path / "text").read_text() == f"{text}\n" * rows
