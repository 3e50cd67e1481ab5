"""What becomes of rows between their files and the training: several files, doubles, leaks."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, InvalidLines
from db.params.fine_tune import FineTuneParams
from tests.training_data.broken_files import Broken, broken_files
from worker.steps import prepare

PARAMS = {"base_model": "micro", "name": "x"}
FILES = [{"file": "file-1", "weight": 2.0}, {"file": "file-2", "weight": 0.5}]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in rows))
    return path


@pytest.fixture
def prepared(steps, micro_model):
    def run(files: dict[str, Path], **params: Any):
        named = {} if "training_files" in params else {"training_file": "file-1"}
        return steps.run(
            prepare.run, "fine_tune", "prepare", params={**PARAMS, **named, **params}, files=files,
            base=micro_model,
        )  # fmt: skip

    return run


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Path]:
    return {
        "file-1": write(tmp_path / "a.jsonl", [(f"a{n}?", f"A{n}.") for n in range(10)]),
        "file-2": write(tmp_path / "b.jsonl", [(f"b{n}?", f"B{n}.") for n in range(20)]),
    }


def asked(folder: Path, part: str) -> list[str]:
    lines = (folder / f"{part}.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


class TestSeveralFiles:
    def test_are_taken_as_often_as_their_weights_say(self, prepared, two) -> None:
        ran = prepared(two, training_files=FILES)
        counts = Counter(asked(ran.folder, "train"))
        assert [counts[f"a{n}?"] for n in range(10)] == [2] * 10
        assert sum(counts[f"b{n}?"] for n in range(20)) == 10
        assert set(counts.values()) == {1, 2}
        assert ran.result["rows"] == {"train": 30, "validation": 0, "test": 0}
        assert ran.result["left_out"] == 10
        assert "a.jsonl has the weight 2: its 10 rows to train on are taken 20 times in all." in ran.events()

    def test_are_each_held_out_in_the_same_share_and_once(self, prepared, two) -> None:
        one, same = (prepared(two, training_files=FILES, train_size=0.6, seed=7) for _ in range(2))
        held_out = asked(one.folder, "validation") + asked(one.folder, "test")
        assert Counter(question[0] for question in held_out) == {"a": 4, "b": 8}
        assert not set(held_out) & set(asked(one.folder, "train"))
        assert asked(same.folder, "train") == asked(one.folder, "train")

    def test_may_have_shapes_and_names_of_their_own(self, prepared, two, tmp_path) -> None:
        path = tmp_path / "c.csv"
        path.write_text("Frage,Antwort\nc?,C.\n")
        columns = {"question": "Frage", "answer": "Antwort"}
        ran = prepared(
            {**two, "file-3": path},
            training_files=[{"file": "file-1"}, {"file": "file-3", "columns": columns}],
        )
        assert asked(ran.folder, "train")[-1] == "c?"
        shapes = [file["format"] for file in ran.result["data_files"]]
        assert shapes == ["prompt_completion", "question_answer"]

    def test_leave_none_of_the_work_behind(self, prepared, two) -> None:
        ran = prepared(two)
        assert sorted(path.name for path in ran.folder.glob("*.jsonl")) == [
            "test.jsonl", "train.jsonl", "validation.jsonl",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"training_file": "file-1", "training_files": FILES}, "exclude each other"),
            ({}, "training_file is missing"),
            ({"training_files": [{"file": "file-1"}, {"file": "file-1"}]}, "names a file twice"),
            ({"training_files": FILES, "format": "alpaca"}, "give them with each of training_files"),
        ],
    )
    def test_refuses_what_contradicts(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            FineTuneParams.model_validate({**PARAMS, **changes})


class TestDoubles:
    ROWS = (("a?", "A."), ("b?", "B."), ("  a? ", "A.\n"), ("a?", "Another."))

    def test_are_left_out_when_asked_for_as_if_spaces_were_alike(self, prepared, tmp_path) -> None:
        ran = prepared({"file-1": write(tmp_path / "a.jsonl", list(self.ROWS))}, dedupe=True)
        assert asked(ran.folder, "train") == ["a?", "b?", "a?"]
        assert ran.result["left_out"] == 1
        told = "1 rows say what an earlier row says (lines 3); they are left out."
        assert told in ran.events("warn")

    def test_are_told_and_kept_else(self, prepared, tmp_path) -> None:
        ran = prepared({"file-1": write(tmp_path / "a.jsonl", list(self.ROWS))})
        assert len(asked(ran.folder, "train")) == 4
        assert any("they are kept; dedupe leaves them out" in event for event in ran.events("warn"))


class TestLeaks:
    SEED_THAT_PARTS_THEM = 0

    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        return {
            "file-1": write(tmp_path / "a.jsonl", [("a?", "A."), ("b?", "B.")]),
            "file-2": write(tmp_path / "held.jsonl", [("a?", "Something else."), ("c?", "C.")]),
        }

    def test_are_told_with_their_lines(self, prepared, files) -> None:
        ran = prepared(files, validation_file="file-2")
        assert any(
            "1 of 2 rows of the validation ask what a row to train on asks (lines 1 of held.jsonl)" in event
            for event in ran.events("warn")
        )
        assert ran.result["rows"] == {"train": 2, "validation": 2, "test": 0}

    def test_are_left_out_of_a_validation_file(self, prepared, files) -> None:
        ran = prepared(files, validation_file="file-2", leaks="move")
        assert asked(ran.folder, "validation") == ["c?"]
        assert asked(ran.folder, "train") == ["a?", "b?"]

    def test_go_to_the_training_rows_where_the_split_was_drawn(self, prepared, tmp_path) -> None:
        rows = [("same?", f"{n}.") for n in range(6)] + [(f"{n}?", "x") for n in range(14)]
        ran = prepared({"file-1": write(tmp_path / "a.jsonl", rows)}, train_size=0.5, leaks="move", seed=1)
        held = asked(ran.folder, "validation") + asked(ran.folder, "test")
        assert "same?" not in held
        assert asked(ran.folder, "train").count("same?") == 6
        assert len(held) + len(asked(ran.folder, "train")) == 20

    def test_between_validation_and_test_are_leaks_too(self, prepared, tmp_path) -> None:
        rows = [("same?", "1."), ("same?", "2."), *((f"{n}?", "x") for n in range(18))]
        file = {"file-1": write(tmp_path / "a.jsonl", rows)}
        # A seed by which one of the two is to validate, and the other to test.
        params = {"train_size": 0.2, "seed": self.SEED_THAT_PARTS_THEM}
        told = [event for event in prepared(file, **params).events("warn") if "of the test ask" in event]
        assert len(told) == 1
        assert "a row of the validation asks" in told[0]
        moved = prepared(file, leaks="move", **params)
        assert asked(moved.folder, "validation").count("same?") == 2
        assert "same?" not in asked(moved.folder, "test")

    def test_end_the_job_when_asked_for(self, prepared, files) -> None:
        with pytest.raises(InvalidInput, match="take them out of one of the two") as caught:
            prepared(files, validation_file="file-2", leaks="refuse")
        assert caught.value.param == "leaks"

    def test_that_are_all_there_is_cannot_be_moved(self, prepared, files) -> None:
        with pytest.raises(InvalidInput, match="none would be left in it"):
            prepared({**files, "file-2": files["file-1"]}, validation_file="file-2", leaks="move")


class TestProblems:
    def test_all_of_them_are_named_at_once(self, prepared, tmp_path) -> None:
        path = write(tmp_path / "a.jsonl", [("a?", "A."), ("", "B."), ("c?", "C."), ("d?", "")])
        with pytest.raises(InvalidLines, match=r"Line 2: prompt is empty.*1 other lines are wrong") as caught:
            prepared({"file-1": path})
        assert [problem["line"] for problem in caught.value.problems] == [2, 4]

    @pytest.mark.parametrize("broken", broken_files()[::12], ids=lambda broken: broken.name)
    def test_nothing_is_left_to_be_trained_on(self, prepared, tmp_path, steps, broken: Broken) -> None:
        path = tmp_path / broken.filename
        path.write_bytes(broken.content)
        with pytest.raises(InvalidInput) as caught:
            prepared({"file-1": path})
        assert caught.value.param == "training_file"
        assert not (steps.folder / "train.jsonl").exists()


class TestOdd:
    def test_answers_that_say_nothing_and_roles_that_speak_twice(self, prepared, tmp_path) -> None:
        turns = [
            {"role": "user", "content": "a?"},
            {"role": "user", "content": "b?"},
            {"role": "assistant", "content": "NaN"},
        ]
        path = tmp_path / "odd.jsonl"
        path.write_text(json.dumps({"messages": turns}))
        told = prepared({"file-1": path}).events("warn")
        assert any("a word for nothing, such as nan or null: odd.jsonl:1" in event for event in told)
        assert any("two turns of one role after each other: odd.jsonl:1" in event for event in told)
