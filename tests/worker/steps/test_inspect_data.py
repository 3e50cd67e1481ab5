"""A look at training data agrees with what a training does of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from training_data.tokens import ChatTokenizer
from worker.steps import inspect_data, prepare
from worker.steps.method_rows import labelled

ROWS = [(f"Where is pot {n}?", f"Pot {n} stands in the kiln.") for n in range(10)]
LONG = ("Long?", "clay " * 200)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in [*ROWS, LONG, ROWS[0]]))
    return path


@pytest.fixture
def inspect(steps, micro_model, tmp_path):
    """Look at one row, or at a file."""

    def run(given: dict[str, Any] | Path, **params: Any):
        path = given if isinstance(given, Path) else tmp_path / "row.jsonl"
        if isinstance(given, dict):
            path.write_text(json.dumps(given))
        named = {"base_model": "micro", "training_file": "file-1", **params}
        return steps.run(
            inspect_data.run, "inspect", "inspect", params=named, files={"file-1": path}, base=micro_model
        )

    return run


@pytest.fixture
def inspected(inspect, data):
    return lambda **params: inspect(data, **params)


class TestFigures:
    def test_are_those_of_a_training(self, inspected, steps, micro_model, data) -> None:
        shared = {"max_length": 64, "train_size": 0.5, "dedupe": True, "leaks": "move", "seed": 3}
        looked = inspected(**shared)
        trained = steps.run(
            prepare.run, "fine_tune", "prepare", base=micro_model, files={"file-1": data},
            params={"base_model": "micro", "name": "x", "training_file": "file-1", **shared},
        )  # fmt: skip
        for name in ("rows", "left_out", "data_files", "max_length", "seed", "has_system_prompt"):
            assert looked.result[name] == trained.result[name]
        assert looked.result["tokens"]["train"] == trained.result["tokens"]["train"]
        assert looked.result["cut"]["rows"] == trained.result["tokens"]["over_max_length"]
        assert looked.events("warn") == trained.events("warn")

    def test_lengths(self, inspected) -> None:
        tokens = inspected().result["tokens"]
        assert tokens["longest"] == tokens["percentiles"]["p99"] > tokens["percentiles"]["p50"]
        assert sum(bar["rows"] for bar in tokens["histogram"]) == 12
        assert tokens["histogram"][0]["from"] == tokens["shortest"]

    def test_what_is_cut_and_doubled(self, inspected) -> None:
        result = inspected(max_length=64).result
        assert result["cut"] == {
            "rows": 1, "lines": {"rows.csv": [12]}, "answers": 1, "answer_lines": {"rows.csv": [12]},
        }  # fmt: skip
        assert result["duplicates"] == {"rows": 1, "lines": {"rows.csv": [13]}}
        assert result["roles"] == {"user": 12, "assistant": 12}

    def test_an_end_that_is_no_answers_is_not_counted_as_one(self, inspect) -> None:
        row = {"prompt": "Who?", "completion": "She."}
        [conversation] = inspect(row).result["samples"][0]["conversations"]
        after = conversation["spans"][-1]
        assert not after["learnt"]  # the line end that the template writes after the answer
        kept = conversation["tokens"] - after["tokens"]
        cuts = [inspect(row, max_length=length).result["cut"] for length in (kept, kept - 1)]
        assert [(cut["rows"], cut["answers"]) for cut in cuts] == [(1, 0), (1, 1)]

    def test_of_text_nothing_is_cut(self, inspect) -> None:
        """It is learnt in sequences, however long it is."""
        ran = inspect({"text": "clay " * 200}, max_length=64)
        assert ran.result["cut"]["rows"] == ran.result["cut"]["answers"] == 0
        [conversation] = ran.result["samples"][0]["conversations"]
        assert conversation["learnt_tokens"] == conversation["tokens"] > 64
        assert not any(span["cut"] for span in conversation["spans"])

    def test_writes_all_of_it_down(self, inspected) -> None:
        ran = inspected(max_length=64)
        report = json.loads((ran.folder / "report.json").read_text())
        assert report["cut_lines"]["train"] == report["cut_answer_lines"] == {"rows.csv": [12]}
        assert not (ran.folder / "rows.jsonl").exists()


class TestSamples:
    def test_show_the_very_tokens_that_bear_the_loss(self, inspected, micro_model) -> None:
        ran = inspected(rows_shown=12, max_length=64)
        tokenizer = ChatTokenizer(ran.folder / "tokenizer")
        for (question, answer), sample in zip([*ROWS, LONG, ROWS[0]], ran.result["samples"], strict=True):
            [conversation] = sample["conversations"]
            chat = tokenizer.encode_chat(
                [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
            )
            row = labelled([chat], {"max_length": 64, "assistant_only_loss": True})
            assert row is not None
            learnt = [i for i, label in enumerate(row["labels"]) if label != -100]
            assert conversation["learnt_tokens"] == len(learnt)
            spans = conversation["spans"]
            assert "".join(span["text"] for span in spans) == chat.text
            text = "".join(span["text"] for span in spans if span["learnt"] and not span["cut"])
            assert text == chat.text[chat.offsets[learnt[0]][0] : chat.offsets[learnt[-1]][1]]

    def test_of_pairs_show_both_answers(self, inspect) -> None:
        ran = inspect({"prompt": "Who?", "chosen": "She.", "rejected": "He."})
        assert ran.result["method"] == "dpo"
        better, worse = ran.result["samples"][0]["conversations"]
        assert (better["side"], worse["side"]) == ("chosen", "rejected")
        assert "He." in "".join(span["text"] for span in worse["spans"] if span["learnt"])

    @pytest.mark.parametrize(
        ("record", "method", "learnt"),
        [({"text": "It was she."}, "pretraining", True), ({"prompt": "Who?"}, "grpo", False)],
    )
    def test_of_text_all_is_learnt_and_of_a_prompt_nothing(self, inspect, record, method, learnt) -> None:
        ran = inspect(record)
        assert ran.result["method"] == method
        [conversation] = ran.result["samples"][0]["conversations"]
        assert {span["learnt"] for span in conversation["spans"]} == {learnt}


class TestRefused:
    def test_names_the_line_as_a_training_would(self, inspected, data) -> None:
        data.write_text(data.read_text() + "What?,\n")
        with pytest.raises(InvalidInput, match="Line 14: answer is empty") as caught:
            inspected()
        assert caught.value.param == "training_file"
