"""Measure a fine-tune against its base and against each of its quantised files, on rows it has not learnt.

The base and the tuned weights are measured as they are trained, in 16 bits or more: their loss by the
weights themselves. The loss of a quantised file is what the served file gives each token of the answers.
Answers, and lm-eval's tasks, are always asked of a GGUF file by a llama-server of the step's own, with the
same prompt tokens: a file that is published, or the 16-bit one that is made here and removed again.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.source_files import check_source, trained_source
from serving.llama_cpp import Tools, require_tools
from serving.openai_compatible import LlamaServer
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.base_model import context_length, count_parameters, fetch_base
from worker.steps.evaluation_report import write_report
from worker.steps.evaluation_rows import EvaluationRows, read_evaluation_rows
from worker.steps.export import MEMORY_ADVICE, weights_of
from worker.steps.gguf_export import Wanted, make_files
from worker.steps.gguf_files import write_tokenizer
from worker.steps.held_out import loss_of_weights, loss_served, score_answers
from worker.steps.lm_eval_tasks import ask_tasks, load_tasks
from worker.steps.merging import Weights, write_merged
from worker.steps.programs import ServedFile, model_server
from worker.steps.runtime import memory_errors_explained, prepare_runtime, require_disk
from worker.steps.stages import Stages
from worker.steps.teacher_forcing import SLOTS

TASK_CONTEXT = 4096  # tokens of a task's prompt and answer, where the model takes so many
ANSWERS = "answers"  # are asked for, and compared with nothing
BASE, TUNED, WHOLE = "base", "tuned", "weights"
JSON = dict[str, Any]


@dataclass(frozen=True)
class Measures:
    """What every row of the table is measured by.

    Args:
        rows: None where only tasks are asked.
        context: tokens of a server's slot.
    """

    metrics: list[str]
    rows: EvaluationRows | None
    tasks: JSON
    context: int
    max_tokens: int

    @property
    def scores_answers(self) -> bool:
        return not {"exact_match", "rouge", ANSWERS}.isdisjoint(self.metrics)

    @property
    def stages_of_a_file(self) -> int:
        return ("loss" in self.metrics) + self.scores_answers + bool(self.tasks)

    @property
    def stages_of_weights(self) -> int:
        """They are written first, and converted where they are asked for answers."""
        return 1 + (self.scores_answers or bool(self.tasks)) + self.stages_of_a_file


def run(step: Step) -> JSON:
    """Leave `evaluation.json`, `.csv` and `.md`, and `answers.jsonl`."""
    prepare_runtime(step.input.settings.threads)
    tools = require_tools(step.input.settings)
    source = step.input.require_source()
    about = check_source(source)
    tasks = load_tasks(step)
    if about["prompted"]:
        step.event(
            "The system prompt, the messages and the parameters that this model was created with are no part "
            "of what is measured: rows are asked as they are.",
            level="warn",
        )
    evaluation: Evaluation | None = None
    with memory_errors_explained(MEMORY_ADVICE):
        wanted = Measures(step.input.params["metrics"], None, tasks, 0, 0)
        of_weights = (1 + _is_base_asked(step)) * wanted.stages_of_weights
        stages = Stages(step, of_weights + len(about["quantized"]) * wanted.stages_of_a_file)
        for name, folder in _weights(step, trained_source(source), stages):
            if evaluation is None:
                measures = _prepare(step, about, tasks, context_length(folder))
                evaluation = Evaluation(step, tools, measures, stages)
            evaluation.measure_weights(name, folder)
        assert evaluation is not None  # noqa: S101 - what was trained is always measured
        for quantization, file in about["quantized"].items():
            base = (about.get("bases") or {}).get(quantization)
            files = ServedFile(source / file) if base is None else ServedFile(source / base, source / file)
            evaluation.measure_file(quantization, files)
    rows = evaluation.bench.rows
    result = {
        "model": about["model"],
        "data": rows.data if rows is not None else None,
        "table": evaluation.table,
    }
    write_report(step, result, about, rows, evaluation.answers)
    return result


def _prepare(step: Step, about: JSON, tasks: JSON, longest: int) -> Measures:
    params = step.input.params
    rows, context = None, 0
    if params["metrics"]:
        tokenizer = ChatTokenizer(trained_source(step.input.require_source()))
        rows = read_evaluation_rows(step, about, tokenizer, longest)
        context = max(rows.longest, rows.longest_prompt + params["max_tokens"])
    if tasks:
        context = max(context, TASK_CONTEXT)
    return Measures(params["metrics"], rows, tasks, min(context, longest), params["max_tokens"])


def _is_base_asked(step: Step) -> bool:
    return step.input.sixteen_bit_base is not None and bool(step.input.params["base"])


def _weights(step: Step, trained: Path, stages: Stages) -> Iterator[tuple[str, Path]]:
    """The base, where it is asked for and there is one, then what was trained; one at a time on the disk."""
    if step.input.sixteen_bit_base is not None and _is_base_asked(step):
        base = fetch_base(step.input.sixteen_bit_base, stages.next())
        require_disk(step.input.folder, 4 * count_parameters(base), "This evaluation")  # twice in 16 bits
        folder = step.input.folder / BASE
        write_merged(Weights(base), folder)
        write_tokenizer(trained, folder)  # its prompts are the training's
        yield BASE, folder
        shutil.rmtree(folder)
    folder = step.input.folder / "merged"
    stages.next()
    write_merged(weights_of(step), folder)
    write_tokenizer(trained, folder)
    require_disk(step.input.folder, 2 * count_parameters(folder), "This evaluation")
    yield TUNED if step.input.base is not None else WHOLE, folder
    shutil.rmtree(folder)


class Evaluation:
    """The table as it grows, and the answers by the name of the row that gave them."""

    def __init__(self, step: Step, tools: Tools, bench: Measures, stages: Stages) -> None:
        self._step, self._tools, self.bench, self._stages = step, tools, bench, stages
        self.table: list[JSON] = []
        self.answers: dict[str, list[str]] = {}

    def measure_weights(self, name: str, folder: Path) -> None:
        figures: JSON = {"name": name}
        if self.bench.rows is not None and "loss" in self.bench.metrics:
            figures |= loss_of_weights(self._stages.next(), folder, self.bench.rows)
        if self.bench.tasks or self.bench.scores_answers:
            weights = Weights(folder)
            path = self._step.input.folder / f"{name}-{weights.gguf_type}.gguf"
            wanted = Wanted(weights, folder, {weights.gguf_type: path}, name)
            make_files(self._stages.next(), self._tools, wanted)
            with self._server(name, ServedFile(path)) as server:
                figures |= self._ask(name, server)
            path.unlink()
        self._keep(figures)

    def measure_file(self, name: str, file: ServedFile) -> None:
        figures: JSON = {"name": name, "bytes": file.bytes}
        with self._server(name, file) as server:
            if self.bench.rows is not None and "loss" in self.bench.metrics:
                figures |= loss_served(self._stages.next(), server, self.bench.rows)
            figures |= self._ask(name, server)
        self._keep(figures)

    def _server(self, name: str, file: ServedFile) -> AbstractContextManager[LlamaServer]:
        log = self._step.input.folder / f"{name}.log"
        context = self.bench.context
        return model_server(self._step, self._tools, file, context=context, slots=SLOTS, log=log)

    def _ask(self, name: str, server: LlamaServer) -> JSON:
        figures: JSON = {}
        if self.bench.rows is not None and self.bench.scores_answers:
            figures, self.answers[name] = score_answers(
                self._stages.next(),
                server,
                self.bench.rows,
                max_tokens=self.bench.max_tokens,
                context=self.bench.context,
                metrics=self.bench.metrics,
            )
        if self.bench.tasks:
            figures["tasks"] = ask_tasks(self._stages.next(), self.bench.tasks, server.url)
        return figures

    def _keep(self, figures: JSON) -> None:
        self.table.append(figures)
        self._step.event(f"{figures['name']}: {'; '.join(_sentences(figures))}.", **figures)
        if figures.get("cut_off"):
            self._step.event(
                f"{figures['name']}: {figures['cut_off']} answers were cut off at max_tokens.",
                level="warn",
                cut_off=figures["cut_off"],
            )


def _sentences(figures: JSON) -> Iterator[str]:
    if "loss" in figures:
        yield f"loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.4g}"
    if "exact_match" in figures:
        yield f"{figures['exact_match']:.1%} of the answers equal"
    elif "answers" in figures:
        yield f"{figures['answers']} answers"
    if "rougeL" in figures:
        yield f"ROUGE-L {figures['rougeL']:.3f}"
    for task, found in (figures.get("tasks") or {}).items():
        yield from (f"{task} {name} {value:.3f}" for name, value in found.items() if name != "rows")
