"""What a training leaves in figures: its losses, and the results file by step."""

import csv
from typing import Any

from worker.step import Step

# What trl measures of each method, as it is called here; of an evaluation, both begin with `eval_`.
MEASURED = {
    "mean_token_accuracy": "token_accuracy",
    "rewards/accuracies": "reward_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "kl": "kl",
    # Of a reward model
    "accuracy": "reward_accuracy",
    "margin": "reward_margin",
    "mean_reward": "mean_reward",
}
EVAL = "eval_"
RESULTS_FILE = "step_metrics.csv"
# By the names that transformers and trl log them under.
RESULT_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "mean_token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_mean_token_accuracy",
}
PREFERENCE_COLUMNS = {
    "train_reward_accuracy": "rewards/accuracies",
    "train_reward_margin": "rewards/margins",
    "valid_reward_accuracy": "eval_rewards/accuracies",
    "valid_reward_margin": "eval_rewards/margins",
}
REWARD_COLUMNS = {
    "train_reward_accuracy": "accuracy",
    "train_reward_margin": "margin",
    "valid_reward_accuracy": "eval_accuracy",
    "valid_reward_margin": "eval_margin",
}


def measured(logs: dict[str, Any]) -> dict[str, float]:
    """The figures of one entry of a trainer's log: its loss, and whatever the method has besides."""
    names = {"loss": "loss", **MEASURED}
    names |= {f"{EVAL}{its}": f"{EVAL}{ours}" for its, ours in names.items()}
    return {ours: float(logs[its]) for its, ours in names.items() if its in logs}


def write_results(step: Step, log: list[dict[str, Any]]) -> None:
    """Offer what was measured, by step, as OpenAI's result files. The log is that of all attempts."""
    logged = {its for entry in log for its in entry}
    columns = RESULT_COLUMNS | {
        ours: its
        for table in (PREFERENCE_COLUMNS, REWARD_COLUMNS)
        for ours, its in table.items()
        if its in logged
    }
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        found = {ours: entry[its] for ours, its in columns.items() if its in entry}
        if found:
            rows.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    path = step.input.folder / RESULTS_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows(rows[number] for number in sorted(rows))
    step.artifact(path, purpose="fine-tune-results")


def checkpoint_metrics(trainer: Any) -> dict[str, float]:
    metrics = {"epoch": float(trainer.state.epoch or 0)}
    for entry in trainer.state.log_history[-4:]:
        metrics |= measured(entry)
    return metrics


def mean_loss(trainer: Any) -> float | None:
    """The mean over all steps, of every attempt; the trainer's own begins anew with each."""
    total, before = 0.0, 0
    for entry in trainer.state.log_history:
        if "loss" in entry:
            total += float(entry["loss"]) * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else None


def last_loss(trainer: Any) -> float | None:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else None
