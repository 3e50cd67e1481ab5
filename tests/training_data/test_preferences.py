"""Preference pairs in OpenAI's form and in TRL's: read, and refused by line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from training_data.formats import RowReader, check_file, check_method, detect_format
from training_data.rows import Row

USER = {"role": "user", "content": "Who?"}
SHE, HE = ({"role": "assistant", "content": answer} for answer in ("She.", "He."))
MESSAGES = [USER, SHE]


def read(path: Path, *records: Any) -> list[Row]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(RowReader(detect_format(path, path.name)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


class TestForms:
    @pytest.mark.parametrize(
        "record",
        [
            {"input": {"messages": [USER]}, "preferred_output": [SHE], "non_preferred_output": [HE]},
            {"prompt": "Who?", "chosen": "She.", "rejected": "He."},
            {"prompt": [USER], "chosen": [SHE], "rejected": [HE]},
            {"prompt": "Who?", "chosen": [USER, SHE], "rejected": [USER, HE]},
            {"chosen": [USER, SHE], "rejected": [USER, HE]},
            {"instruction": "Who?", "input": "", "chosen": "She.", "rejected": "He."},
            {
                "conversations": [{"from": "human", "value": "Who?"}],
                "chosen": {"from": "gpt", "value": "She."},
                "rejected": {"from": "gpt", "value": "He."},
            },
        ],
    )
    def test_become_a_conversation_and_the_other_answer(self, file: Path, record: Any) -> None:
        assert read(file, record) == [Row(1, MESSAGES, "He.")]

    def test_a_csv_whose_cells_are_messages(self, tmp_path: Path) -> None:
        """As datasets write them; they must not be learnt as if somebody had said so."""
        path = tmp_path / "pairs.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [["chosen", "rejected"], [json.dumps([USER, SHE]), json.dumps([USER, HE])]]
            )
        assert list(RowReader(detect_format(path, path.name))) == [Row(2, MESSAGES, "He.")]

    def test_a_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.csv"
        path.write_text("id,prompt,chosen,rejected\n7,Who?,She.,He.\n")
        check_file(path, path.name, method="dpo")
        detected = detect_format(path, path.name)
        assert (detected.columns, detected.ignored_columns) == ("chosen,rejected,prompt", ("id",))
        assert list(RowReader(detected)) == [Row(2, MESSAGES, "He.")]

    def test_a_system_message_and_earlier_turns_stay(self, file: Path) -> None:
        system = {"role": "system", "content": "Be brief."}
        before = [system, USER, HE, {"role": "user", "content": "Who else?"}]
        [row] = read(file, {"prompt": before, "chosen": "She.", "rejected": "Nobody."})
        assert row.messages == [*before, SHE]

    def test_what_is_not_used_is_known(self, file: Path) -> None:
        given = {"messages": [USER], "tools": [], "parallel_tool_calls": True}
        read(file, {"input": given, "preferred_output": [SHE], "non_preferred_output": [HE], "id": 1})
        reader = RowReader(detect_format(file, file.name))
        list(reader)
        assert reader.unused == {"id", "input.tools", "input.parallel_tool_calls"}


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"prompt": [HE]}, "must end with the user"),
            ({"prompt": [], "chosen": "She."}, "must end with the user"),
            ({"prompt": [USER, {"role": "system", "content": "x"}, USER]}, "can only come first"),
            ({"chosen": [SHE, HE]}, "chosen must be one message"),
            ({"rejected": [USER]}, "rejected must be one message"),
            ({"rejected": ""}, "rejected is empty"),
            ({"chosen": [{"role": "assistant", "content": None}]}, "chosen, message 1: content is missing"),
            ({"chosen": [{**SHE, "weight": 1}]}, "a weight means nothing here"),
            ({"rejected": " She. "}, "both answers are the same"),
        ],
    )
    def test_names_line_and_key(self, file: Path, changes: dict[str, Any], words: str) -> None:
        good = {"prompt": [USER], "chosen": "She.", "rejected": "He."}
        with pytest.raises(InvalidInput, match=f"Line 2.*{words}"):
            read(file, good, good | changes)

    def test_a_line_that_holds_no_pair(self, file: Path) -> None:
        with pytest.raises(InvalidInput, match="Line 2 has the columns 'messages', and not chosen,rejected"):
            read(file, {"prompt": "Who?", "chosen": "She.", "rejected": "He."}, {"messages": MESSAGES})

    def test_answers_that_follow_different_conversations(self, file: Path) -> None:
        other = {"role": "user", "content": "Why?"}
        with pytest.raises(InvalidInput, match="the same conversation"):
            read(file, {"chosen": [USER, SHE], "rejected": [other, HE]})

    @pytest.mark.parametrize(
        ("record", "method", "words"),
        [
            ({"messages": MESSAGES}, "dpo", "dpo learns from pairs of answers"),
            ({"chosen": MESSAGES, "rejected": [USER, HE]}, "supervised", 'train by the method "dpo"'),
        ],
    )
    def test_what_the_method_does_not_learn_from(
        self, file: Path, record: Any, method: str, words: str
    ) -> None:
        read(file, record)
        with pytest.raises(InvalidInput, match=words):
            check_method(detect_format(file, file.name), method, file.name)
