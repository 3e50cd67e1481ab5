import json
import tracemalloc
from pathlib import Path

import pytest

from db.errors import InvalidInput
from training_data.formats import DetectedFormat, Reading, RowReader, check_file, detect_format
from training_data.rows import Row

FAQ = "question,answer\nWhat?,That.\nWho?,She.\n"


@pytest.fixture
def file(tmp_path: Path):
    def write(content: str | bytes, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows_of(path: Path, reading: Reading | None = None) -> list[Row]:
    reading = reading or Reading()
    return list(RowReader(detect_format(path, path.name, reading=reading), reading))


def checked(path: Path) -> DetectedFormat:
    """What a file is, once a submit would have taken it."""
    check_file(path, path.name, method="supervised")
    return detect_format(path, path.name)


def refusal(path: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        rows_of(path)
    assert caught.value.param == "training_file"
    return caught.value


class TestCsv:
    def test_reads_questions_and_answers_with_their_lines(self, file):
        rows = rows_of(file('question,answer\n"What,\nthen?",That.\n\nWho?,She.\n'))
        assert [row.line for row in rows] == [2, 5]
        assert rows[0].messages == [
            {"role": "user", "content": "What,\nthen?"},
            {"role": "assistant", "content": "That."},
        ]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_finds_the_delimiter(self, file, delimiter):
        path = file(f"Prompt{delimiter}Completion\na{delimiter}b\n")
        detected = checked(path)
        assert (detected.columns, detected.table.delimiter) == ("Prompt,Completion", delimiter)

    def test_takes_the_system_column_where_it_is_filled(self, file):
        rows = rows_of(file("input,output,system\na,b,Be brief.\nc,d,\n"))
        assert [len(row.messages) for row in rows] == [3, 2]
        assert rows[0].messages[0] == {"role": "system", "content": "Be brief."}

    def test_takes_conversations_in_one_column(self, file):
        turns = '[{"role": "user", "content": "Who?"}, {"content": "She.", "role": "assistant"}]'
        cell = '"{}"'.format(turns.replace('"', '""'))
        path = file(f"id,Messages\n1,{cell}\n")
        assert checked(path).ignored_columns == ("id",)
        assert rows_of(path) == rows_of(file("question,answer\nWho?,She.\n", "other.csv"))

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ("Who?", "Line 2: messages is no JSON"),
            ("[]", "Line 2: messages is not a list with turns"),
            ('"[{""role"": ""user"", ""content"": ""Who?""}]"', "the last message must be the assistant's"),
        ],
    )
    def test_refuses_what_is_no_conversation(self, file, cell, message):
        assert message in refusal(file(f"messages\n{cell}\n")).message

    def test_names_columns_it_does_not_use(self, file):
        path = file("id,question,answer\n1,a,b\n")
        assert checked(path).ignored_columns == ("id",)

    def test_refuses_a_column_that_is_there_twice(self, file):
        message = refusal(file("question,answer,Answer\na,b,c\n")).message
        assert "2 columns called 'answer'" in message

    def test_shows_the_header_when_no_columns_fit(self, file):
        message = refusal(file("frage,antwort\na,b\n")).message
        assert "'frage', 'antwort'" in message
        assert "question,answer[,system] | input,output[,system] | prompt,completion" in message

    def test_names_the_line_with_too_many_fields(self, file):
        message = refusal(file("question,answer\na,b\nc,d,e\n")).message
        assert message == "Line 3 has 3 fields, the header 2: put fields that hold ',' in double quotes."

    def test_names_the_line_with_too_few_fields(self, file):
        message = refusal(file("question,answer\na,b\nc\n")).message
        assert message.startswith("Line 3 has 1 field, the header 2: give it one for each name")

    def test_names_the_line_of_an_empty_answer(self, file):
        assert refusal(file("question,answer\na,b\nc,\n")).message == (
            "Line 3: answer is empty: fill it in, or leave the row out."
        )

    def test_names_the_line_where_a_quote_opens_and_never_ends(self, file):
        assert refusal(file('question,answer\na,b\n"c,d\ne,f\n')).message.startswith("Line 3 is no CSV")


class TestEncodings:
    @pytest.mark.parametrize(
        ("encoding", "found"),
        [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-32", "utf-32"),
         ("cp1252", "cp1252")],
    )  # fmt: skip
    def test_reads_what_editors_and_spreadsheets_write(self, file, encoding, found):
        path = file("question,answer\r\nWo?,Köln – natürlich\r\n".encode(encoding))
        assert checked(path).encoding == found
        assert rows_of(path)[0].messages[1]["content"] == "Köln – natürlich"

    def test_looks_beyond_the_first_block_before_it_settles(self, file):
        path = file(b"question,answer\n" + b"a,b\n" * 300_000 + "Wo?,Köln\n".encode("cp1252"))
        *_, last = rows_of(path)
        assert last.messages[1]["content"] == "Köln"


class TestJsonl:
    def test_reads_messages(self, file):
        row = {"messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]}  # fmt: skip
        path = file(json.dumps(row) + "\n\n", "rows.jsonl")
        assert checked(path).columns == "messages"
        assert [m["role"] + m["content"] for m in rows_of(path)[0].messages] == [
            "systems", "userq", "assistanta",
        ]  # fmt: skip

    def test_reads_the_column_sets_as_keys(self, file):
        path = file('{"prompt": "a", "completion": "b"}\n', "rows.jsonl")
        assert checked(path).columns == "prompt,completion"

    def test_names_keys_it_does_not_use(self, file):
        messages = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
        path = file(f'{{"messages": {messages}, "tools": []}}\n', "rows.jsonl")
        assert checked(path).ignored_columns == ("tools",)
        path = file('{"input": "a", "output": "b", "system": "c", "id": 1}\n', "rows.jsonl")
        assert checked(path).ignored_columns == ("id",)

    def test_leaves_out_an_empty_system_message(self, file):
        roles = ("system", "user", "assistant")
        row = {"messages": [{"role": r, "content": "" if r == "system" else r} for r in roles]}
        [read] = rows_of(file(json.dumps(row), "rows.jsonl"))
        assert [message["role"] for message in read.messages] == ["user", "assistant"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (
                r'{"prompt": "half \ud83d", "completion": "b"}',
                r"Line 2: prompt holds half of a character (\ud83d)",
            ),
            ('{"messages": [{"role": "system", "content": ""}]}', "Line 2: the last message"),
            ("{", "Line 2 is no JSON"),
            ("[]", "Line 2 is no JSON object"),
            ('{"messages": []}', "Line 2: messages is not a list with turns"),
            ('{"messages": [{"role": "robot", "content": "a"}]}', "Line 2, message 1: the role 'robot'"),
            ('{"messages": [{"role": "user", "content": "a"}]}', "Line 2: the last message"),
            ('{"messages": [{"role": "user", "content": ""}]}', "Line 2, message 1: content is empty"),
            ('{"text": "a"}', "Line 2 has the columns 'text', and not messages[,system]"),
            (
                '{"messages": [{"role": "assistant", "content": "b", "weight": 2}]}',
                "Line 2, message 1: a weight is 0 or 1",
            ),
            (
                '{"messages": [{"role": "user", "content": "a", "weight": 0}]}',
                "Line 2, message 1: a weight is 0 or 1, and the assistant's",
            ),
            (
                '{"messages": [{"role": "assistant", "content": "b", "weight": 0}]}',
                "Line 2: every answer has weight 0",
            ),
        ],
    )
    def test_names_the_line_that_does_not_parse(self, file, line, message):
        good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        assert refusal(file(good + line + "\n", "rows.jsonl")).message.startswith(message)


class TestCheckFile:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"\xef\xbb\xbf \r\n\n", "is empty"),
            (b"question,answer\n", "has no rows"),
            (b"PK\x03\x04rest", "spreadsheet"),
            (b"\x7fELF\x00\x00\x01", "is no text file"),
        ],
    )
    def test_refuses_what_cannot_be_rows(self, file, content, message):
        path = file(content)
        with pytest.raises(InvalidInput, match=message):
            check_file(path, "rows.csv", method="supervised")

    def test_costs_the_same_however_large_the_file(self, file):
        path = file(FAQ)
        with path.open("ab") as large:
            large.truncate(2 * 1024**3)  # a hole: 2 GiB of NUL that must never be read
        tracemalloc.start()
        check_file_of_first_rows(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 * 1024**2

    def test_refuses_a_line_without_end(self, file):
        path = file("question,answer\n" + "x" * (9 * 1024**2))
        with pytest.raises(InvalidInput, match="Line 2 is longer than"):
            check_file(path, path.name, method="supervised")


def check_file_of_first_rows(path: Path) -> None:
    """Put enough good rows in front that the check ends before the hole."""
    rows = b"question,answer\n" + b"a,b\n" * 300_000
    with path.open("r+b") as file:
        file.write(rows)
    check_file(path, path.name, method="supervised")
