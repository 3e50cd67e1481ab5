"""Every shape of a row in every kind of file, found by its columns or mapped by name."""

import csv
import json
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest

from db.errors import InvalidInput
from db.params.data import ColumnKey, Format
from db.params.fine_tune import FineTuneParams
from training_data.formats import Reading, RowReader, check_file, detect_format
from training_data.rows import Row, read_prepared, write_rows
from training_data.shapes import BY_NAME, KEYS, LEARNS_FROM, SHAPES

USER, SHE = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}
HE = {"role": "assistant", "content": "He."}
BRIEF = {"role": "system", "content": "Be brief."}
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "She."}]

# By shape: a row, and what is read of it.
EXAMPLES: dict[str, tuple[dict[str, Any], Row]] = {
    "messages": ({"messages": [BRIEF, USER, SHE]}, Row(1, [BRIEF, USER, SHE])),
    "sharegpt": ({"conversations": SHAREGPT, "system": "Be brief."}, Row(1, [BRIEF, USER, SHE])),
    "alpaca": (
        {"instruction": "Who?", "input": "Of the two.", "output": "She."},
        Row(1, [{"role": "user", "content": "Who?\n\nOf the two."}, SHE]),
    ),
    "question_answer": ({"question": "Who?", "answer": "She."}, Row(1, [USER, SHE])),
    "input_output": (
        {"input": "Who?", "output": "She.", "system": "Be brief."},
        Row(1, [BRIEF, USER, SHE]),
    ),
    "prompt_completion": ({"prompt": "Who?", "completion": "She."}, Row(1, [USER, SHE])),
    "preference": ({"prompt": "Who?", "chosen": "She.", "rejected": "He."}, Row(1, [USER, SHE], "He.")),
    "alpaca_preference": (
        {"instruction": "Who?", "input": "Of the two.", "chosen": "She.", "rejected": "He."},
        Row(1, [{"role": "user", "content": "Who?\n\nOf the two."}, SHE], "He."),
    ),
    "sharegpt_preference": (
        {"conversations": SHAREGPT[:1], "chosen": "She.", "rejected": "He.", "system": "Be brief."},
        Row(1, [BRIEF, USER, SHE], "He."),
    ),
    "openai_preference": (
        {"input": "Who?", "preferred_output": "She.", "non_preferred_output": "He."},
        Row(1, [USER, SHE], "He."),
    ),
    "kto": ({"prompt": "Who?", "completion": "He.", "label": False}, Row(1, [USER, HE], label=False)),
    "alpaca_kto": (
        {"instruction": "Who?", "input": "Of the two.", "output": "She.", "kto_tag": True},
        Row(1, [{"role": "user", "content": "Who?\n\nOf the two."}, SHE], label=True),
    ),
    "sharegpt_kto": (
        {"conversations": SHAREGPT, "kto_tag": False, "system": "Be brief."},
        Row(1, [BRIEF, USER, SHE], label=False),
    ),
    "messages_kto": (
        {"messages": [BRIEF, USER, SHE], "kto_tag": True},
        Row(1, [BRIEF, USER, SHE], label=True),
    ),
    "text": (
        {"text": " It was she.\n", "continues": True},
        Row(1, [], text=" It was she.\n", continues=True),
    ),
    "prompt": ({"prompt": "Who?"}, Row(1, [USER])),
}


def write(path: Path, record: dict[str, Any]) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text(json.dumps(record) + "\n")
        case ".json":
            path.write_text(json.dumps([record], indent=2))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
        case _:
            cells = [json.dumps(cell) if isinstance(cell, list) else cell for cell in record.values()]
            with path.open("w", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                writer.writerows([record, cells])
    return path


def rows_of(path: Path, reading: Reading | None = None) -> list[Row]:
    reading = reading or Reading()
    return list(RowReader(detect_format(path, path.name, reading=reading), reading))


class TestEveryShape:
    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
    @pytest.mark.parametrize("name", EXAMPLES)
    def test_is_found_in_every_kind_of_file(self, tmp_path: Path, name: str, suffix: str) -> None:
        record, expected = EXAMPLES[name]
        path = write(tmp_path / f"rows{suffix}", record)
        method = next(method for method, learns in LEARNS_FROM.items() if BY_NAME[name].teaches in learns)
        check_file(path, path.name, method=method)
        assert detect_format(path, path.name).shape.name == name
        [row] = rows_of(path)
        assert (row.messages, row.rejected, row.label, row.text) == (
            expected.messages, expected.rejected, expected.label, expected.text
        )  # fmt: skip

    @pytest.mark.parametrize("name", EXAMPLES)
    def test_comes_back_from_the_prepared_rows(self, tmp_path: Path, name: str) -> None:
        _, row = EXAMPLES[name]
        write_rows(tmp_path / "train.jsonl", [row])
        assert list(read_prepared(tmp_path / "train.jsonl")) == [row]

    def test_has_an_example_and_a_name_in_the_params(self) -> None:
        assert set(EXAMPLES) == set(BY_NAME) == set(get_args(Format))
        assert set(get_args(ColumnKey)) == KEYS

    def test_of_every_method_there_are_some(self) -> None:
        taught = {shape.teaches for shape in SHAPES}
        assert all(taught & set(learns) for learns in LEARNS_FROM.values())
        assert set(get_args(FineTuneParams.model_fields["method"].annotation)) <= set(LEARNS_FROM)


class TestMapped:
    def test_by_the_files_own_names(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.csv", {"Frage": "Who?", "Antwort": "She.", "question": "no"})
        reading = Reading(columns={"question": "Frage", "answer": "Antwort"})
        assert rows_of(path, reading) == [Row(2, [USER, SHE])]
        assert detect_format(path, path.name, reading=reading).ignored_columns == ("question",)

    def test_a_format_that_would_not_be_found(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", {"instruction": "Who?", "input": "no", "output": "She."})
        reading = Reading("input_output", {"input": "instruction"})
        assert rows_of(path, reading) == [Row(1, [USER, SHE])]

    @pytest.mark.parametrize(
        ("reading", "words"),
        [
            (
                Reading(columns={"answer": "Antwort"}),
                "no column 'Antwort' for answer. It has the columns 'prompt'",
            ),
            (Reading("alpaca"), "the format alpaca needs instruction,output.*which of yours is instruction"),
        ],
    )
    def test_refuses_what_is_not_there(self, tmp_path: Path, reading: Reading, words: str) -> None:
        path = write(tmp_path / "rows.jsonl", {"prompt": "Who?", "completion": "She."})
        with pytest.raises(InvalidInput, match=words):
            rows_of(path, reading)

    def test_keeps_the_other_columns_for_reward_functions(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", {"prompt": "2 + 2?", "solution": 4, "level": "easy"})
        detected = detect_format(path, path.name)
        [row] = RowReader(detected, keep_fields=True)
        assert row.fields == {"solution": 4, "level": "easy"}


class TestUnused:
    def test_is_told_of_later_rows_and_of_turns(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        lines = [{"messages": [USER, {**SHE, "name": "x"}]}, {"messages": [USER, SHE], "source": "wiki"}]
        path.write_text("\n".join(map(json.dumps, lines)))
        reader = RowReader(detect_format(path, path.name))
        assert len(list(reader)) == 2
        assert reader.unused == {"messages.name", "source"}
