"""Files of conversations: what is taken from them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.conversation import Conversation, read_parameter
from db.errors import InvalidInput

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def loaded(folder: Path, document: Any) -> Conversation:
    path = folder / "talk.json"
    path.write_text(json.dumps(document))
    conversation = Conversation("m")
    conversation.load(path)
    return conversation


@pytest.mark.parametrize(
    "document",
    [
        [USER, ASSISTANT],
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"title": "T", "model": "x", "messages": [USER, {**ASSISTANT, "citations": []}]}]},
    ],
)
def test_reads_what_others_write(tmp_path: Path, document: Any) -> None:
    conversation = loaded(tmp_path, document)
    assert (conversation.model, conversation.system) == ("m", None)
    assert conversation.turns == [USER, ASSISTANT]


def test_reads_what_it_writes(tmp_path: Path) -> None:
    asked = {"temperature": 0.5, "stop": "x", "seed": 7}
    written = Conversation("m", "be brief", asked, ["office"], True, [USER, ASSISTANT])
    written.save(tmp_path / "a.json")
    read = Conversation("m")
    read.load(tmp_path / "a.json")
    assert read == written
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"x": 1}, "no `messages`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "not a text of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not a text of"),
        ({"messages": ["x"]}, "not a text of"),
        ({"messages": [], "temperature": "hot"}, "temperature takes a number from 0"),
        ({"conversations": [{}, {}]}, "2 conversations"),
        ("text", "no `messages`"),
    ],
)
def test_says_what_is_wrong_and_keeps_what_it_has(tmp_path: Path, document: Any, said: str) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(document))
    conversation = Conversation("m", "s", turns=[USER])
    with pytest.raises(InvalidInput, match=said):
        conversation.load(tmp_path / "talk.json")
    assert conversation == Conversation("m", "s", turns=[USER])


def test_says_which_file_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none.json cannot be read: No such file"):
        Conversation("m").load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"bad.json is no JSON"):
        Conversation("m").load(tmp_path / "bad.json")
    with pytest.raises(InvalidInput, match="cannot be written"):
        Conversation("m").save(tmp_path / "no" / "where.json")


def test_a_retry_forgets_the_last_question_with_its_answer() -> None:
    conversation = Conversation("m", turns=[USER, ASSISTANT, {"role": "user", "content": "More"}])
    assert conversation.forget_last() == "More"
    assert conversation.forget_last() == "Hi"
    assert conversation.forget_last() is None


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "warm", "", "1e999"])
def test_a_temperature_is_a_number_that_can_be(text: str) -> None:
    with pytest.raises(InvalidInput, match="temperature takes a number from 0"):
        read_parameter("temperature", text)


def test_parameters_have_ollamas_names_too() -> None:
    assert read_parameter("num_predict", "12") == ("max_tokens", 12)
    assert read_parameter("TEMPERATURE", "default") == ("temperature", None)
