"""Tables of any columns, and the prompts that are made of their rows."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from db.errors import InvalidInput
from db.params.predict import PredictParams
from training_data.prompts import RowPrompts
from training_data.tables import detect_table, read_table


class TestParquet:
    def test_one_that_is_damaged_amid_its_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        table = pyarrow.table({"input": [f"question {number}" for number in range(4000)]})
        pyarrow.parquet.write_table(table, path, row_group_size=1000, use_dictionary=False)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = b"\xff" * 2000
        path.write_bytes(content)
        damaged = detect_table(path, path.name, param="input_file", whole=True)
        with pytest.raises(InvalidInput, match="cannot be read after row") as refused:
            list(read_table(damaged, param="input_file"))
        assert refused.value.param == "input_file"


class TestPlainText:
    def read(self, path: Path) -> list[dict[str, object]]:
        table = detect_table(
            path, path.name, param="training_file", is_header=lambda names: "question" in names
        )
        return [record.values for record in read_table(table, param="training_file")]

    def test_comes_in_passages_that_make_up_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "book.md"
        text = "# Clay\n\n" + "It is dug, and kept wet.\n\n\n" * 400 + "  The end"
        path.write_text(text)
        passages = self.read(path)
        assert "".join(str(passage["text"]) for passage in passages) == text
        assert len(passages) > 3
        assert [passage["continues"] for passage in passages] == [True] * (len(passages) - 1) + [False]
        assert all(str(passage["text"]).endswith("\n\n") for passage in passages[:-1])

    def test_is_not_what_rows_are_that_only_bear_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_text("question,answer\nWho?,She.\n")
        assert self.read(path) == [{"question": "Who?", "answer": "She."}]
        path.write_text('{"question": "Who?", "answer": "She."}\n')
        assert self.read(path) == [{"question": "Who?", "answer": "She."}]


class TestPrompts:
    def test_bytes_are_no_text(self) -> None:
        params = PredictParams(model="m", input_file="file-1", prompt="{input}")
        with pytest.raises(InvalidInput, match="holds bytes") as refused:
            RowPrompts(params, ["input"]).body({"input": b"\xff"})
        assert refused.value.code == "bad_value"
