"""What a training leaves in figures: its losses, and the results file by step."""

import csv
import re
from typing import Any

from training_data.answer_batches import GRPO
from worker.step import Step
from worker.steps.rewards import hashes_of_rewards

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
    # Of GRPO
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "completions/mean_length": "answer_tokens",
    "completions/clipped_ratio": "answers_cut_off",
    "frac_reward_zero_std": "prompts_without_difference",
}
# What each of several rewards came to, by its name.
OF_ONE_REWARD = re.compile(r"(eval_)?rewards/(.+)/mean")
EVAL = "eval_"
# The course of a loss is told by the means of so many parts of it, of so many logged ones each at the least.
PARTS_COMPARED, LEAST_COMPARED = 10, 2
SLIGHT, GREAT = 0.1, 0.5  # nats; by less than the one a loss may end higher, by less than the other rise
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
POLICY_COLUMNS = {
    "train_reward": "reward",
    "train_reward_std": "reward_std",
    "valid_reward": "eval_reward",
    "valid_reward_std": "eval_reward_std",
}


def measured(logs: dict[str, Any]) -> dict[str, float]:
    """The figures of one entry of a trainer's log: its loss, and whatever the method has besides."""
    names = {"loss": "loss", **MEASURED}
    names |= {f"{EVAL}{its}": f"{EVAL}{ours}" for its, ours in names.items()}
    found = {ours: float(logs[its]) for its, ours in names.items() if logs.get(its) is not None}
    single = {its: match for its in logs if (match := OF_ONE_REWARD.fullmatch(its))}
    if len(single) > (2 if EVAL + "reward" in logs and "reward" in logs else 1):
        found |= {f"{match[1] or ''}reward_{match[2]}": float(logs[its]) for its, match in single.items()}
    return found


def write_results(step: Step, log: list[dict[str, Any]]) -> None:
    """Offer what was measured, by step, as OpenAI's result files. The log is that of all attempts."""
    logged = {its for entry in log for its in entry}
    columns = RESULT_COLUMNS | {
        ours: its
        for table in (PREFERENCE_COLUMNS, REWARD_COLUMNS, POLICY_COLUMNS)
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


def tell_if_it_diverged(step: Step, trainer: Any, chosen: dict[str, Any]) -> None:
    """Warn of a loss that rose by more than batches differ: a rate that is too high need not end in NaN."""
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    few = len(losses) // PARTS_COMPARED
    if chosen["method"] == GRPO or few < LEAST_COMPARED:
        return  # whose loss is about 0 from first to last; or too few to tell
    means = [sum(losses[at : at + few]) / few for at in range(0, few * PARTS_COMPARED, few)]
    began, worst, ended = means[0], max(means), means[-1]
    if ended > began + SLIGHT or worst > max(began + GREAT, 1.5 * began):
        step.event(
            f"The loss began at {began:.4g}, rose to {worst:.4g} and ended at {ended:.4g}: learning_rate "
            f"{chosen['learning_rate']:g} is likely too high for this model and these rows. Lower it.",
            level="warn",
            began=began,
            worst=worst,
            ended=ended,
        )


def rewarded(step: Step, trainer: Any) -> dict[str, Any]:
    """Of GRPO, what its answers were rewarded with at first and at last, and by which code; else nothing."""
    rewards = [
        float(entry["reward"]) for entry in trainer.state.log_history if entry.get("reward") is not None
    ]
    if not step.input.rewards:
        return {}
    return {
        "first_reward": rewards[0] if rewards else None,
        "final_reward": rewards[-1] if rewards else None,
        "rewards": hashes_of_rewards(step.input),
    }


def last_loss(trainer: Any) -> float | None:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[-1]) if losses else None
