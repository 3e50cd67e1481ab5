"""A small fine-tune that really learnt its answers, measured beside its base and its quantised files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from db.disk import file_sha256
from db.errors import InvalidInput
from db.params.evaluate import EvaluateParams
from db.sources import Held, Source, hold
from serving.llama_cpp import require_tools
from tests.worker.steps.export_fixtures import (
    FACTS,
    Exported,
    TrainedModels,
    base_weights,
    chat_rows,
    shared_models,
    step_of,
    step_settings,
    write_rows,
)
from training_data.json_files import read_json
from training_data.tokens import ChatTokenizer
from worker.step import FileInput
from worker.steps import evaluate
from worker.steps.answer_scores import is_exact, rouge
from worker.steps.programs import ServedFile, model_server

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 40}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def evaluated(root: Path, models: TrainedModels, exported: Exported, tmp_path: Path) -> "Evaluation":
    return Evaluation(root, models, exported, tmp_path)


class Evaluation:
    """A job of kind evaluate of the fine-tune `faq`, whose test rows are the facts that it learnt."""

    def __init__(self, root: Path, models: TrainedModels, exported: Exported, folder: Path) -> None:
        self.root, self.models, self.exported, self.folder = root, models, exported, folder
        self.about: dict[str, Any] = {
            "kind": "fine_tune", "job": "job-1", "model": "faq@1", "prompted": False, "split": "test",
            "quantized": {"Q8_0": "gguf/faq-Q8_0.gguf"}, "system_prompt": None,
        }  # fmt: skip
        self.said: list[dict[str, Any]] = []

    def run(
        self, files: dict[str, Path] | None = None, *, tasks_dir: Path | None = None, **given: Any
    ) -> Any:
        rows = self.folder / "rows"
        rows.mkdir(exist_ok=True)
        write_rows(rows / "test.jsonl", self.models.rows)
        write_rows(rows / "train.jsonl", self.models.rows[:2])
        source = self.folder / "source"
        if not source.exists():
            hold(Source(self.about, list(self._held(rows))), source)
        params = EvaluateParams.model_validate({"model": "faq", **given}).model_dump(mode="json")
        step, self.said = step_of(
            self.folder / "evaluate",
            step_settings(self.root / "served", eval_tasks_dir=tasks_dir),
            kind="evaluate",
            step="evaluate",
            params=params,
            source=source,
            base=base_weights(self.models.base),
            files={
                name: FileInput(path=path, filename=path.name, bytes=path.stat().st_size)
                for name, path in (files or {}).items()
            },
        )
        return evaluate.run(step)

    def _held(self, rows: Path) -> Any:
        for path in [*self.models.adapter.iterdir(), *rows.iterdir(), self.exported.file("Q8_0")]:
            inner = {".jsonl": "rows", ".gguf": "gguf"}.get(path.suffix, "trained")
            yield Held(path, f"{inner}/{path.name}", path.stat().st_size, file_sha256(path))

    def told(self, level: str) -> str:
        return "\n".join(row["message"] for row in self.said if row.get("level") == level)


class TestEvaluate:
    def test_base_tuned_and_quantised_in_one_table(self, evaluated: Evaluation) -> None:
        result = evaluated.run(max_tokens=60)
        base, tuned, quantised = result["table"]
        assert [row["name"] for row in result["table"]] == ["base", "tuned", "Q8_0"]
        assert (base["loss_from"], tuned["loss_from"], quantised["loss_from"]) == (
            "weights", "weights", "served",
        )  # fmt: skip
        assert tuned["exact_match"] == quantised["exact_match"] == 1
        assert tuned["rougeL"] == pytest.approx(1)
        assert base["exact_match"] == 0
        assert base["rouge1"] < 0.8
        assert tuned["loss"] < 0.2
        assert base["loss"] > 1
        # Q8_0 costs next to nothing: what the server tells is what the weights say, token by token.
        assert quantised["loss"] == pytest.approx(tuned["loss"], abs=0.01)
        assert quantised["tokens"] == tuned["tokens"] == base["tokens"] > 50
        assert quantised["tokens_untold"] == 0
        assert tuned["perplexity"] == pytest.approx(math.exp(tuned["loss"]))
        assert result["data"]["rows"] == 6
        assert result["data"]["trained_on"] == 2
        assert "2 of these rows are among those that the model has learnt from" in evaluated.told("warn")
        self._has_left_a_report(evaluated.folder / "evaluate", result)
        told = [row for row in evaluated.said if row["type"] == "progress"]
        shares = [row["done"] for row in told]
        assert {(row["total"], row["unit"]) for row in told} == {(100, "percent")}
        assert shares == sorted(shares)
        # Ten stages: of two weights to write, measure, convert and ask, of the file to measure and ask.
        assert {0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100} <= set(shares)

    def _has_left_a_report(self, folder: Path, result: dict[str, Any]) -> None:
        assert json.loads((folder / "evaluation.json").read_text())["table"] == result["table"]
        with (folder / "evaluation.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [float(row["loss"]) for row in table] == [row["loss"] for row in result["table"]]
        assert "| tuned |" in (folder / "evaluation.md").read_text()
        answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        first, expected = next(iter(FACTS.items()))
        assert answers[0]["messages"][-1]["content"] == first
        assert answers[0]["expected"] == answers[0]["answers"]["tuned"] == expected
        assert answers[0]["answers"]["base"] != expected
        kept = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert kept.isdisjoint({".safetensors", ".gguf"})  # gigabytes that nobody asked for

    def test_a_file_of_ones_own_with_what_cannot_be_measured_told(
        self, evaluated: Evaluation, tmp_path: Path
    ) -> None:
        rows = [
            *chat_rows({"Who wrote Emma?": "Jane Austen wrote Emma in 1815."}),
            *chat_rows({"?": "x " * 400}),
        ]
        write_rows(tmp_path / "own.jsonl", rows)
        evaluated.about["quantized"] = {}
        result = evaluated.run(
            {"file-1": tmp_path / "own.jsonl"}, input_file="file-1", metrics=["loss"], base=False
        )
        [tuned] = result["table"]
        assert {"exact_match", "rouge1", "cut_off"}.isdisjoint(tuned)
        assert (result["data"]["rows"], result["data"]["of"], result["data"]["left_out"]) == (1, 2, 1)
        assert "longer than 256 tokens" in evaluated.told("warn")

    def test_answers_that_were_cut_off_are_counted(self, evaluated: Evaluation) -> None:
        evaluated.about["quantized"] = {}
        [tuned] = evaluated.run(metrics=["exact_match"], base=False, max_tokens=2)["table"]
        assert (tuned["exact_match"], tuned["cut_off"]) == (0, 6)
        assert "6 answers were cut off at max_tokens" in evaluated.told("warn")

    def test_a_file_without_a_row_that_fits_is_refused(self, evaluated: Evaluation, tmp_path: Path) -> None:
        write_rows(tmp_path / "own.jsonl", chat_rows({"?": "x " * 400}))
        with pytest.raises(InvalidInput, match=r"No row of own\.jsonl has an answer and fits") as refusal:
            evaluated.run({"file-1": tmp_path / "own.jsonl"}, input_file="file-1")
        assert refusal.value.param == "input_file"


@pytest.mark.slow  # lm-eval is a heavy import
class TestTasks:
    @pytest.fixture
    def tasks_dir(self, tmp_path: Path) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir()
        data = folder / "facts.jsonl"
        data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in FACTS.items()))
        (folder / "capitals.yaml").write_text(TASK.format(data=data, output_type="generate_until"))
        (folder / "choices.yaml").write_text(TASK.format(data=data, output_type="loglikelihood"))
        return folder

    def test_lm_eval_asks_the_served_files(self, evaluated: Evaluation, tasks_dir: Path) -> None:
        result = evaluated.run(tasks_dir=tasks_dir, metrics=[], tasks=["capitals"], task_rows=4)
        assert {row["name"]: row["tasks"]["capitals"] for row in result["table"]} == {
            "base": {"rows": 4, "exact_match": 0},
            "tuned": {"rows": 4, "exact_match": 1},
            "Q8_0": {"rows": 4, "exact_match": 1},
        }
        assert "capitals exact_match" in (evaluated.folder / "evaluate" / "evaluation.csv").read_text()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("choices", "llama-server tells no probabilities of a prompt"),
            ("mmlu", "has no mmlu. It has: cap"),
        ],
    )
    def test_what_cannot_be_asked_is_refused(
        self, evaluated: Evaluation, tasks_dir: Path, name: str, message: str
    ) -> None:
        with pytest.raises(InvalidInput, match=message):
            evaluated.run(tasks_dir=tasks_dir, metrics=[], tasks=[name])


class TestServedLogProbabilities:
    def test_sum_up_to_one_over_the_vocabulary(self, tmp_path: Path, root: Path, exported: Exported) -> None:
        """Of each token, however unlikely: so nothing of a loss is left out, and nothing is counted twice."""
        step, _ = step_of(tmp_path / "step", step_settings(root / "served"))
        tools = require_tools(step.input.settings)
        tokenizer = ChatTokenizer(exported.folders["train"] / "adapter")
        prompt = tokenizer.encode_prompt([{"role": "user", "content": "How hot is the sun?"}])
        size = read_json(shared_models(root).base / "config.json")["vocab_size"]
        with model_server(
            step, tools, ServedFile(exported.file("Q8_0")), context=128, slots=1, log=tmp_path / "log"
        ) as server:
            told = [server.log_probability(prompt, token, top=size) for token in range(size)]
        assert sum(math.exp(each) for each in told if each is not None) == pytest.approx(1, abs=1e-3)
        assert None not in told


class TestScores:
    def test_equal_but_for_white_space_and_composition(self) -> None:
        assert is_exact("Caf\u00e9  noir\n", "Cafe\u0301 noir")
        assert not is_exact("Lima", "lima")

    def test_rouge_by_hand(self) -> None:
        # 3 of 4 words and 3 of 3, 2 of 3 pairs and 2 of 2: F = 2PR/(P+R)
        found = rouge("the cat sat down", "the cat sat")
        assert found["rouge1"] == pytest.approx(2 * 1 * 0.75 / 1.75)
        assert found["rouge2"] == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
        assert found["rougeL"] == pytest.approx(found["rouge1"])

    @pytest.mark.parametrize(
        ("expected", "answer"), [("größer", "grüner"), ("Москва", "Минск"), ("東京", "大阪")]
    )
    def test_words_of_other_alphabets_are_words(self, expected: str, answer: str) -> None:
        assert rouge(expected, expected)["rouge1"] == 1
        assert rouge(expected, answer)["rouge1"] == 0

    def test_japanese_is_compared_by_characters(self) -> None:
        assert rouge("東京都", "東京")["rouge1"] == pytest.approx(0.8)
