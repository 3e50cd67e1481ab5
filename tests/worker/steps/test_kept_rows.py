"""Rows that were read once are taken by the next job as reading again would make them, to the byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.source_files import ENTRY_FILE
from tests.worker.steps.conftest import Ran
from training_data.encoded_rows import encoded_rows, tokens_of
from training_data.tokens import ChatTokenizer
from worker.steps import estimate, inspect_data, prepare
from worker.steps.parts import NAMES

TAKEN = "The same files were read before in the same way: their 12 rows and tokens are taken from then."
DAMAGED = "What was kept of these rows is damaged: they are read again."
ROWS = "".join(f"Where is pot {n % 11}?,Pot {n} stands in the kiln.,x\n" for n in range(11))
PARAMS = {"base_model": "micro", "training_file": "file-1", "name": "x", "train_size": 0.6, "dedupe": True}

Prepared = Callable[..., Ran]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,id\n" + ROWS + "Where is pot 3?,nan,x\n")
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


@pytest.fixture
def prepared(steps: Any, micro_model: Path, data: Path, kept: Path) -> Prepared:
    def run(
        *, file: Path = data, kept: Path | None = kept, base: Path = micro_model, step: Any = prepare,
        kind: str = "fine_tune", **params: Any,
    ) -> Ran:  # fmt: skip
        given = {name: value for name, value in {**PARAMS, **params}.items() if value is not None}
        name = {"fine_tune": "prepare"}.get(kind, kind)
        ran: Ran = steps.run(
            step.run, kind, name, params=given, files={"file-1": file}, base=base, prepared=kept
        )
        return ran

    return run


def left(ran: Ran) -> dict[str, bytes]:
    """All files of a step's folder; of the report not the estimate, which is of the machine just then."""
    paths = [path for path in ran.folder.rglob("*") if path.is_file()]
    found = {str(path.relative_to(ran.folder)): path.read_bytes() for path in paths}
    report = json.loads(found["report.json"])
    return {**found, "report.json": json.dumps(without_estimate(report)).encode()}


def without_estimate(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "estimate"}


def entries(kept: Path) -> list[Path]:
    return sorted(kept.iterdir()) if kept.exists() else []


class TestTaken:
    def test_by_the_next_job_with_all_that_reading_tells(self, prepared: Prepared, kept: Path) -> None:
        alone, first, second = prepared(kept=None), prepared(), prepared()
        assert left(second) == left(first) == left(alone)
        assert without_estimate(second.result) == without_estimate(alone.result)
        assert {f"{name}.tokens" for name in NAMES} <= set(left(second))
        said = second.events() + second.events("warn")
        assert TAKEN in said
        assert TAKEN not in first.events()
        # Of each level, since what is read is told of as it comes.
        for level in ("info", "warn"):
            of_rows = [each for each in alone.events(level) if "memory" not in each]
            assert [
                each for each in second.events(level) if each != TAKEN and "memory" not in each
            ] == of_rows
        assert any("These columns are not used: id." in each for each in second.events("warn"))
        assert any("a word for nothing" in each for each in second.events("warn"))
        [entry] = entries(kept)
        assert {path.name for path in entry.iterdir()} == {
            "rows.jsonl", "rows.tokens", "figures.bin", "told.json", ENTRY_FILE,
        }  # fmt: skip

    def test_whatever_the_seed_the_split_and_the_hyperparameters(
        self, prepared: Prepared, kept: Path
    ) -> None:
        prepared()
        for params in ({"seed": 7}, {"train_size": 0.5}, {"dedupe": False}, {"learning_rate": 1e-3}):
            ran = prepared(**params)
            assert TAKEN in ran.events(), params
            assert left(ran) == left(prepared(kept=None, **params)), params
        assert len(entries(kept)) == 1

    def test_by_a_training_of_what_was_looked_at_and_estimated_before(self, prepared: Prepared) -> None:
        shown = prepared(step=inspect_data, kind="inspect", name=None)
        assert TAKEN not in shown.events()
        assert TAKEN in prepared(step=estimate, kind="estimate").events()
        assert TAKEN in prepared().events()
        again = prepared(step=inspect_data, kind="inspect", name=None)
        assert TAKEN in again.events()
        assert again.result == shown.result


class TestReadAgain:
    def test_when_anything_that_rows_depend_on_is_another(
        self, prepared: Prepared, kept: Path, data: Path, micro_model: Path, tmp_path: Path
    ) -> None:
        prepared()
        changed = tmp_path / "other" / data.name
        changed.parent.mkdir()
        changed.write_text(data.read_text().replace("kiln", "yard"))
        base = tmp_path / "templated"
        base.mkdir()
        for path in micro_model.iterdir():
            (base / path.name).symlink_to(path)
        template = (base / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").unlink()
        (base / "chat_template.jinja").write_text(template + "{# of mine #}")
        others: list[dict[str, Any]] = [
            {"file": changed}, {"base": base}, {"system_prompt": "Be brief."}, {"assistant_only_loss": False},
            {"columns": {"question": "id"}}, {"format": "question_answer"},
        ]  # fmt: skip
        for count, other in enumerate(others, start=2):
            assert TAKEN not in prepared(**other).events(), other
            assert len(entries(kept)) == count, other

    def test_for_another_project(self, prepared: Prepared, kept: Path, tmp_path: Path) -> None:
        prepared()
        assert TAKEN not in prepared(kept=tmp_path / "prepared-of-others").events()

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.tokens", "figures.bin", "told.json"])
    def test_when_it_is_damaged(self, prepared: Prepared, kept: Path, name: str) -> None:
        first = prepared()
        [entry] = entries(kept)
        content = bytearray((entry / name).read_bytes())
        content[len(content) // 2] ^= 0x55
        (entry / name).write_bytes(content)
        ran = prepared()
        assert DAMAGED in ran.events("warn")
        assert left(ran) == left(first)
        assert TAKEN in prepared().events()

    def test_when_what_proves_it_is_damaged(self, prepared: Prepared, kept: Path) -> None:
        first = prepared()
        [entry] = entries(kept)
        (entry / ENTRY_FILE).write_bytes((entry / ENTRY_FILE).read_bytes()[:-9])
        ran = prepared()
        assert DAMAGED in ran.events("warn")
        assert left(ran) == left(first)

    def test_when_it_goes_while_it_is_taken(self, prepared: Prepared, kept: Path) -> None:
        """As when its time is over at that moment: nothing of half an entry stays."""
        first = prepared()
        [entry] = entries(kept)
        (entry / "rows.tokens").unlink()
        assert left(prepared()) == left(first)

    def test_of_rows_that_are_refused_nothing_is_kept(
        self, prepared: Prepared, kept: Path, tmp_path: Path
    ) -> None:
        wrong = tmp_path / "wrong.csv"
        wrong.write_text("question,answer\nWhere?,\n")
        with pytest.raises(Exception, match="Line 2"):
            prepared(file=wrong)
        assert entries(kept) == []


class TestNotKept:
    def test_where_there_is_no_room_the_job_goes_on(self, prepared: Prepared, tmp_path: Path) -> None:
        in_the_way = tmp_path / "a-file"
        in_the_way.write_text("")
        ran = prepared(kept=in_the_way / "prepared")
        assert any("cannot be kept for later jobs" in each for each in ran.events("warn"))
        assert left(ran) == left(prepared(kept=None))


class TestEncodedRows:
    def test_are_what_encoding_the_rows_makes(self, prepared: Prepared) -> None:
        folder = prepared().folder
        tokenizer = ChatTokenizer(folder / "tokenizer")
        path = folder / "train.jsonl"
        kept = list(encoded_rows(path, tokenizer))
        tokens_of(path).unlink()
        encoded = list(encoded_rows(path, tokenizer))
        assert len(encoded) == len(kept) > 0
        for (row, [chat]), (other, [encoded_now]) in zip(kept, encoded, strict=True):
            assert row == other
            assert (chat.ids, chat.answer_mask) == (encoded_now.ids, encoded_now.answer_mask)
            assert any(chat.answer_mask)

    def test_a_file_that_is_cut_off_is_not_taken_for_shorter(self, prepared: Prepared) -> None:
        folder = prepared().folder
        path = tokens_of(folder / "train.jsonl")
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(ValueError, match="ends within a row"):
            list(encoded_rows(folder / "train.jsonl", ChatTokenizer(folder / "tokenizer")))
