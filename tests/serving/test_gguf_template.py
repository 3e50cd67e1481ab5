"""Models without a chat template get one, and what text reaches them by it: told by a real llama-server."""

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from db.params.values import PromptFormatName
from serving.backends.prompt_formats import FORMATS
from serving.gguf_header import read_header
from serving.gguf_template import write_with_chat_template
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf
from training_data.chat_templates import ChatTemplate

FIRST: list[dict[str, Any]] = [{"role": "user", "content": "Who?"}]
LATER: list[dict[str, Any]] = [
    {"role": "system", "content": "Be 'kind'."},
    {"role": "user", "content": "Who?\n{}"},
    {"role": "assistant", "content": 'Say "I".'},
    {"role": "user", "content": "Why?"},
]
SYSTEM_ALONE: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "bare.gguf"
    write_random_gguf(path, template=None)
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("messages", [FIRST, LATER, SYSTEM_ALONE])
def test_a_template_writes_what_its_format_does(
    name: PromptFormatName, messages: list[dict[str, Any]]
) -> None:
    template = ChatTemplate(FORMATS[name].template())
    assert template.render(messages, add_generation_prompt=True) == FORMATS[name].render(messages)


def test_nothing_else_in_the_file_changes(bare: Path, tmp_path: Path) -> None:
    before, target = read_header(bare, "bare"), tmp_path / "told.gguf"
    write_with_chat_template(bare, target, before, "{{ messages }}" + "x" * 1000)
    after = read_header(target, "told")
    assert after.chat_template == "{{ messages }}" + "x" * 1000
    assert {**after.metadata, "tokenizer.chat_template": None}.keys() == {
        **before.metadata, "tokenizer.chat_template": None,
    }.keys()  # fmt: skip
    assert after.special_tokens == before.special_tokens
    was, now = GGUFReader(bare), GGUFReader(target)
    assert [(each.name, each.data.tobytes()) for each in now.tensors] == [
        (each.name, each.data.tobytes()) for each in was.tensors
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_that_text_reaches_the_model(name: PromptFormatName, bare: Path, tmp_path: Path) -> None:
    target = tmp_path / f"{name}.gguf"
    write_with_chat_template(bare, target, read_header(bare, "bare"), FORMATS[name].template())
    process = LlamaProcess(target)
    try:
        for messages in (FIRST, LATER[:2]):
            text = FORMATS[name].render(messages)
            assert process.server.apply_template(messages) == text
            answer = process.server.chat(messages, max_tokens=1)
            assert answer["usage"]["prompt_tokens"] == len(process.server.tokenize(text))
    finally:
        process.stop()
