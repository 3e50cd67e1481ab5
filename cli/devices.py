"""`lathe devices`: the GPUs that workers have."""

from typing import Any

from rich.text import Text

from cli.client import connect
from cli.output import JsonFlag, print_json, stdout
from cli.tables import table
from cli.text import harmless, moment, size

JSON = dict[str, Any]


def devices(json: JsonFlag = False) -> None:
    """List the GPUs that workers have, and what holds each."""
    with connect() as client:
        rows = list(client.pages("/v1/devices"))
    if json:
        print_json(rows)
    elif not rows:
        stdout().print("No worker has a GPU.")
    else:
        made = table("Device", "Name", "Memory", "Held by", "Worker", right=("Memory",))
        for row in rows:
            memory = size(row["memory_bytes"]) if row["memory_bytes"] else ""
            holder = Text(_holder(row), "cyan" if row["held_by"] else "dim")
            worker = harmless((row["worker"] or f"@{row['host']}").removeprefix("worker-"))
            made.add_row(f"GPU {row['index']}", harmless(row["name"]), memory, holder, worker)
        stdout().print(made)


def _holder(row: JSON) -> str:
    held_by = row["held_by"]
    if held_by is None:
        return "nobody"
    if held_by["type"] == "serving":
        return f"serving ({held_by['backend']})"
    shared = ", shared with serving" if row["serves"] and row["shares"] else ""
    return f"{held_by['job'] or 'another project'} {held_by['step']} since {moment(held_by['since'])}{shared}"
