"""What an evaluation has measured, as a table."""

from typing import Any

from rich.console import Console

from cli.tables import keep_whole, table
from cli.text import figure, harmless, size

JSON = dict[str, Any]
# By what a row of the result calls each figure.
HEADS = {
    "bytes": "Size",
    "loss": "Loss",
    "perplexity": "Perplexity",
    "exact_match": "Exact",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
}


def print_evaluation(result: JSON, console: Console) -> None:
    """Print the base, the tuned weights and each quantised file, a line each."""
    rows: list[JSON] = result["table"]
    columns = [name for name in HEADS if any(name in row for row in rows)]
    tasks = {f"{task} {name}": (task, name) for row in rows for task, name in _figures_of_tasks(row)}
    heads = [HEADS[name] for name in columns] + [harmless(head) for head in tasks]
    made = table("Weights", *heads, right=tuple(heads))
    keep_whole(made, 0)
    for row in rows:
        asked = row.get("tasks") or {}
        cells = [_cell(name, row.get(name)) for name in columns]
        cells += [_cell(name, asked.get(task, {}).get(name)) for task, name in tasks.values()]
        made.add_row(harmless(row["name"]), *cells)
    console.print(made)
    data = result.get("data")
    if data is not None:
        console.print(f"On {data['rows']} of {data['of']} rows of {harmless(data['name'])}.", style="dim")
    if "loss" in columns:
        console.print("Loss by the weights; of a quantised file, by what its server tells.", style="dim")


def _figures_of_tasks(row: JSON) -> list[tuple[str, str]]:
    asked = (row.get("tasks") or {}).items()
    return [(task, name) for task, found in asked for name in found if name != "rows"]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return size(value) if name == "bytes" else figure(float(value))
