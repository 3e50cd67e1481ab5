"""Tasks of EleutherAI's lm-eval, asked of a file that a llama-server of the step's own serves.

The tasks are the operator's: YAML files of LATHE_EVAL_TASKS; none of lm-eval's own, whose data lie on a hub,
unless the operator puts one there. Only tasks whose answers are generated can be asked: llama-server tells
no probabilities of a prompt's own tokens, by which the choices of others are compared.
"""

import importlib.util
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from worker.step import Step
from worker.steps.teacher_forcing import SLOTS

GENERATED = "generate_until"
TRIES = 3


def load_tasks(step: Step) -> dict[str, Any]:
    """Read the tasks that the job names, and their data.

    Raises:
        InvalidInput: lm-eval is not installed here, there is no such task, or it cannot be asked so.
    """
    names: list[str] = step.input.params["tasks"]
    if not names:
        return {}
    if importlib.util.find_spec("lm_eval") is None:
        raise InvalidInput(
            "tasks: lm-eval is not installed where the worker runs: .venv/bin/pip install -e '.[lm-eval]'.",
            param="tasks",
        )
    folder = step.input.settings.eval_tasks_dir
    there = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder is not None else {}
    missing = [name for name in names if name not in there]
    if missing:
        raise InvalidInput(
            f"tasks: LATHE_EVAL_TASKS of the worker has no {', '.join(missing)}. It has: "
            f"{', '.join(there) or 'none'}.",
            param="tasks",
        )
    _keep_in(step.input.folder / "datasets", offline=step.input.settings.hub_offline)
    return {name: _load(name, there[name]) for name in names}


def _keep_in(folder: Path, *, offline: bool) -> None:
    """Let what datasets makes of the tasks' data lie in the attempt's folder, and go with it."""
    import datasets.config

    datasets.config.HF_DATASETS_CACHE = folder
    if offline:
        datasets.config.HF_HUB_OFFLINE = True


def _load(name: str, path: Path) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        [task] = TaskManager(include_defaults=False).load(str(path))["tasks"].values()
    except Exception as error:  # whatever lm-eval or datasets make of the operator's file
        raise InvalidInput(f"tasks: {name} cannot be read: {error}", param="tasks") from error
    if task.OUTPUT_TYPE != GENERATED:
        raise InvalidInput(
            f"tasks: {name} is of the type {task.OUTPUT_TYPE}, and llama-server tells no probabilities of a "
            f"prompt's tokens: only tasks of the type {GENERATED} can be asked.",
            param="tasks",
        )
    return task


def ask_tasks(step: Step, tasks: dict[str, Any], url: str) -> dict[str, dict[str, float]]:
    """Ask all tasks of the server at `url`, greedily.

    Returns:
        the figures of each task, with the number of its rows.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    limit = step.input.params["task_rows"]
    rows = {name: min(len(task.eval_docs), limit or len(task.eval_docs)) for name, task in tasks.items()}
    found = lm_eval.simple_evaluate(
        model=_model(step, url, rows=sum(rows.values())),
        tasks=list(tasks.values()),
        task_manager=TaskManager(include_defaults=False),
        limit=limit,
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=False,
    )
    figures = found["results"]
    return {name: {"rows": rows[name], **_figures(figures[task.task_name])} for name, task in tasks.items()}


def _model(step: Step, url: str, *, rows: int) -> Any:
    """lm-eval's own client of chat completions, which tells each answer as progress."""
    from lm_eval.models.openai_completions import LocalChatCompletion

    done = 0

    class Reporting(LocalChatCompletion):
        def parse_generations(self, outputs: Any, **more: Any) -> list[str]:
            nonlocal done
            done += 1
            step.progress(min(done, rows), rows, unit="task rows")
            found: list[str] = super().parse_generations(outputs, **more)
            return found

    return Reporting(
        base_url=f"{url}/v1/chat/completions",
        model="model",
        num_concurrent=SLOTS,
        max_retries=TRIES,
        header={"content-type": "application/json"},  # no key of anybody's, though one lay in the environment
    )


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """`exact_match,none` as `exact_match`; of several filters, `exact_match,strict` as it is."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in row.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
