"""A sweep's jobs side by side, and which of them is best."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client, segment
from cli.render import STYLES
from cli.tables import keep_whole, table
from cli.text import duration, figure, harmless
from db.errors import NotFound

JSON = dict[str, Any]
WIDEST = 10_000  # columns of a terminal that holds anything
EVAL_LOSS, LOSS = "eval_loss", "loss"
# Of trainings by GRPO, by which the higher is the better.
EVAL_REWARD, REWARD = "eval_reward", "reward"


def sweep_of(client: Client, sweep_id: str) -> JSON:
    """The jobs of a sweep with their values and figures, the best one first.

    Raises:
        NotFound: there are none.
    """
    query: JSON = {"metadata[sweep]": sweep_id}
    listed = client.pages("/v1/fine_tuning/jobs", **query)
    rows = [_row(client, each["id"]) for each in listed]
    if not rows:
        raise NotFound(f"There is no sweep {sweep_id!r}, or its jobs are deleted.")
    done = [row for row in rows if row["status"] == "succeeded"]
    held_out, trained = (EVAL_REWARD, REWARD) if any(REWARD in row for row in rows) else (EVAL_LOSS, LOSS)
    by = held_out if done and all(row.get(held_out) is not None for row in done) else trained
    sign = -1 if trained == REWARD else 1
    for row in rows:
        row.setdefault(by, None)
    rows.sort(
        key=lambda row: (row["status"] != "succeeded", row[by] is None, sign * (row[by] or 0), row["model"])
    )
    best = rows[0]["id"] if rows[0]["status"] == "succeeded" and rows[0][by] is not None else None
    return {"id": sweep_id, "object": "sweep", "best": best, "by": by, "jobs": rows}


def _row(client: Client, job_id: str) -> JSON:
    job = client.job(job_id)
    series = client.get(f"/v1/jobs/{segment(job_id)}/metrics/series", points=10)["data"]
    measured = {each["name"]: each["values"] for each in series}
    rewards = {}
    if REWARD in measured:
        rewards = {
            EVAL_REWARD: max(measured.get(EVAL_REWARD) or [None]),
            REWARD: measured[REWARD][-1] if measured[REWARD] else None,
        }
    return {
        **rewards,
        "id": job_id,
        "model": job["params"]["name"],
        "status": job["status"],
        "values": {
            name.removeprefix("sweep."): value
            for name, value in (job["metadata"] or {}).items()
            if name.startswith("sweep.")
        },
        # The weights that are kept are those of the lowest; of a training without held-out rows, the last.
        EVAL_LOSS: min(measured.get(EVAL_LOSS) or [None]),
        LOSS: (measured.get(LOSS) or [None])[-1],
        "runtime_seconds": job["runtime_seconds"],
        "error": (job["error"] or {}).get("message"),
    }


def print_sweep(found: JSON, console: Console) -> None:
    """Draw the table; where it would be too wide, without the jobs' ids, for a number must not be folded."""
    made = _drawn(found)
    if console.measure(made, options=console.options.update(max_width=WIDEST)).maximum > console.width:
        made = _drawn(found, ids=False)
    console.print(made)
    _say_which_is_best(found, console)


def _drawn(found: JSON, *, ids: bool = True) -> Table:
    rows: list[JSON] = found["jobs"]
    swept = list(dict.fromkeys(name for row in rows for name in row["values"]))
    rewarded = found["by"] in (EVAL_REWARD, REWARD)
    shown = (EVAL_REWARD, REWARD) if rewarded else (EVAL_LOSS, LOSS)
    right = (*swept, *(("Eval reward", "Reward") if rewarded else ("Eval loss", "Loss")), "Took")
    made = table("", *(("Job",) if ids else ()), "Model", "Status", *right, right=right)
    keep_whole(made, *range(len(made.columns)))
    for row in rows:
        made.add_row(
            "★" if row["id"] == found["best"] else "",
            *((row["id"],) if ids else ()),
            harmless(row["model"]),
            Text(row["status"], STYLES[row["status"]]),
            *(harmless(row["values"].get(name, "")) for name in swept),
            *(figure(row[name]) if row.get(name) is not None else "" for name in shown),
            duration(row["runtime_seconds"]),
        )
    return made


def _say_which_is_best(found: JSON, console: Console) -> None:
    best = next((row for row in found["jobs"] if row["id"] == found["best"]), None)
    if best is None:
        console.print("None has come to a model yet.", style="dim")
    elif found["by"] in (EVAL_LOSS, EVAL_REWARD):
        what = found["by"].removeprefix("eval_")
        console.print(f"The best by evaluation {what}: [bold]{harmless(best['model'])}[/].")
    else:
        what = "highest training reward" if found["by"] == REWARD else "lowest training loss"
        console.print(
            f"The {what}: [bold]{harmless(best['model'])}[/]. No rows were held out, so this "
            "says little about new questions: --train-size 0.9 holds some out."
        )
