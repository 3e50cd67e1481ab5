"""The table of an evaluation, as JSON, CSV and Markdown, and every answer beside the one that its row has."""

import csv
import io
import json
from typing import Any

from training_data.json_files import write_json
from worker.step import Step
from worker.steps.evaluation_rows import EvaluationRows
from worker.steps.markdown_table import markdown_table

JSON = dict[str, Any]
# The columns of the table, by what each row calls them.
COLUMNS = {
    "name": "weights",
    "bytes": "bytes",
    "loss": "loss",
    "perplexity": "perplexity",
    "loss_from": "loss from",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "reward": "reward",
    "cut_off": "cut off",
}


def write_report(
    step: Step, result: JSON, about: JSON, rows: EvaluationRows | None, answers: dict[str, list[str]]
) -> None:
    """Write the files and offer them."""
    folder = step.input.folder
    write_json(folder / "evaluation.json", {**result, "job": about["job"]})
    (folder / "evaluation.csv").write_text(as_csv(result["table"]), encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(result), encoding="utf-8")
    names = ["evaluation.json", "evaluation.csv", "evaluation.md"]
    if rows is not None and answers:
        with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
            for index, row in enumerate(rows.rows):
                said = {name: texts[index] for name, texts in answers.items()}
                line = {"messages": row.forced.messages, "expected": row.answer, "answers": said}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        names.append("answers.jsonl")
    for name in names:
        step.artifact(name)


def table_of(rows: list[JSON]) -> tuple[list[str], list[list[Any]]]:
    """The head and the cells, with a column for each figure that was measured."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    tasks = list(
        dict.fromkeys(
            (task, name)
            for row in rows
            for task, found in (row.get("tasks") or {}).items()
            for name in found
            if name != "rows"
        )
    )
    head = [COLUMNS[name] for name in columns] + [f"{task} {name}" for task, name in tasks]
    cells = [
        [row.get(name) for name in columns]
        + [(row.get("tasks") or {}).get(task, {}).get(name) for task, name in tasks]
        for row in rows
    ]
    return head, cells


def as_csv(rows: list[JSON]) -> str:
    head, cells = table_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(cells)
    return text.getvalue()


def as_markdown(result: JSON) -> str:
    head, cells = table_of(result["table"])
    data = result["data"]
    on = f"On {data['rows']} of {data['of']} rows of {data['name']}" if data is not None else "On tasks"
    return f"{on}, of {result['model']}.\n\n{markdown_table(head, cells)}\n"
