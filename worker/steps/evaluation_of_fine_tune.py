"""What a fine-tune's test split says of it: its quantised files beside the base's, which are there already.

Small on purpose, for every fine-tune waits for it; a job of kind `evaluate` measures more rows, and weights.
"""

from typing import Any

from db.disk import file_sha256
from serving.llama_cpp import Tools
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.base_files import cache_folder
from worker.steps.base_model import fetch_base
from worker.steps.evaluate import ANSWERS, Evaluation, Measures
from worker.steps.evaluation_rows import EvaluationRows, read_chats, take_prompts, take_rows
from worker.steps.export import trained_folder
from worker.steps.judged_answers import judge_answers, rows_of
from worker.steps.programs import ServedFile
from worker.steps.served_files import served_file
from worker.steps.stages import Stages

JSON = dict[str, Any]
MOST_ROWS = 16
SAMPLES = 5
LONGEST_ANSWER = 256  # tokens


def evaluation_of(step: Step, tools: Tools, published: list[str]) -> JSON:
    """Measure the files that are published on the test split.

    Returns:
        `evaluation`, with the table and some answers; nothing where no rows were held out for a test.
    """
    folder = step.input.step_folders.get("prepare")
    path = folder / "test.jsonl" if folder is not None else None
    base = step.input.sixteen_bit_base
    if step.input.kind != "fine_tune" or base is None or path is None or not path.is_file():
        return {}
    exported, made = step.input.results["export"], step.input.step_folders["export"]
    context = int(exported["context_length"])
    chats, tokenizer = read_chats(path), ChatTokenizer(trained_folder(step.input))
    _, rows = take_rows(chats, MOST_ROWS, tokenizer, context)
    metrics = ["loss", "exact_match", "rouge"]
    if not rows:
        rows, metrics = take_prompts(chats, MOST_ROWS, tokenizer), [ANSWERS]
    rows = [row for row in rows if len(row.prompt) < context]
    if not rows:
        return {}
    data = {"name": "the test split", "split": "test", "rows": len(rows), "of": len(chats)}
    held_out = EvaluationRows(rows, {**data, "sha256": file_sha256(path)})
    longest = max(len(row.forced.ids) - row.forced.prompt_length for row in rows)
    room = LONGEST_ANSWER if metrics == [ANSWERS] else min(LONGEST_ANSWER, 2 * longest + 16)
    needed = max(held_out.longest, held_out.longest_prompt + room)
    measures = Measures(metrics, held_out, {}, min(context, needed), room)
    made_of_base = cache_folder(step, fetch_base(base, step))
    made_by_type = {file["quantization"]: file for file in exported["files"]}
    files: dict[str, ServedFile] = {}
    for name in published:
        if (made_of_base / f"{name}.gguf").is_file():
            files[f"base-{name}"] = ServedFile(made_of_base / f"{name}.gguf")
        files[name] = served_file(step, tools, made_by_type[name], made)
    stages = Stages(step, len(files) * measures.stages_of_a_file)
    evaluation = Evaluation(step, tools, measures, stages)
    for name, file in files.items():
        evaluation.measure_file(name, file)
    samples = [
        {
            "asked": row.forced.messages[-1]["content"],
            "expected": row.answer or None,
            "answers": {name: said[index] for name, said in evaluation.answers.items()},
        }
        for index, row in enumerate(rows[:SAMPLES])
    ]
    asked = [row.forced.messages for row in rows]
    judge_answers(step, tokenizer, rows_of(path, asked), evaluation.answers, evaluation.table)
    return {"evaluation": {"data": held_out.data, "table": evaluation.table, "samples": samples}}
