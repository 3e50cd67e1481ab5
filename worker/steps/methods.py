"""The methods by which an adapter learns: how rows become tokens for each, and trl's trainer of it.

All else of a training is the same for all: `train.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import (
    TokenRow,
    compared,
    each_row,
    full_sequences,
    judged,
    labelled,
    paired,
    prompts,
)

if TYPE_CHECKING:
    from worker.step import Step


@dataclass(frozen=True)
class Method:
    """Args:
    rows: the prepared rows of a file as its trainer takes them; None where nothing is left to learn from.
    trainer, config: trl's, with what is the method's own in the config; both import torch.
    besides: what its trainer takes besides what all take.
    judged_by: what of an evaluation says which weights are the best.
    """

    rows: Callable[[Path, ChatTokenizer, dict[str, Any]], Iterator[TokenRow | None]]
    trainer: Callable[..., Any]
    config: Callable[..., Any]
    besides: Callable[["Step", dict[str, Any], ChatTokenizer], dict[str, Any]] = lambda *_: {}
    judged_by: Literal["loss", "reward"] = "loss"


def _made_by(module: str, trainer: str) -> Callable[..., Any]:
    """A trainer of one of our modules, which brings torch along once it is made."""

    def make(**settings: Any) -> Any:
        return getattr(import_module(f"worker.steps.{module}"), trainer)(**settings)

    return make


def _supervised_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import SFTConfig

    from worker.steps.speed_choices import PADDING_FREE

    return SFTConfig(
        packing=chosen["packing"],
        packing_strategy="bfd_split",
        max_length=chosen.get("packed_length", chosen["max_length"]) if chosen["packing"] else None,
        padding_free=chosen.get("batching") == PADDING_FREE,
        eval_packing=False,
        **settings,
    )


def _preference_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import DPOConfig

    if (
        chosen["tuning"] == "full"
    ):  # no adapter can be switched off then, and a second model takes as much again
        settings["precompute_ref_log_probs"] = True
    # The column of lengths, by which rows are grouped, is none that the model takes.
    return DPOConfig(beta=chosen["beta"], max_length=None, remove_unused_columns=False, **settings)


def _odds_ratio_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from worker.steps.preference_trainers import ORPOConfig

    return ORPOConfig(
        beta=chosen["beta"], max_length=chosen["max_length"], remove_unused_columns=False, **settings
    )


def _judgement_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import KTOConfig

    if chosen["tuning"] == "full":  # as for pairs
        settings["precompute_ref_log_probs"] = True
    # They are shuffled already, and in batches that belong together.
    settings["train_sampling_strategy"] = "sequential"
    weights = ("desirable_weight", "undesirable_weight")
    settings = {name: chosen[name] for name in weights if name in chosen} | settings
    return KTOConfig(beta=chosen["beta"], max_length=chosen["max_length"], **settings)


def _reward_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import RewardConfig

    return RewardConfig(max_length=None, remove_unused_columns=False, **settings)


def _policy_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import GRPOConfig

    names = ("beta", "num_generations", "max_completion_length", "temperature", "reward_weights")
    # All answers to a prompt come together, whatever their lengths.
    settings["train_sampling_strategy"] = "random"
    return GRPOConfig(num_generations_eval=1, **{name: chosen[name] for name in names}, **settings)


def _rewarding(step: "Step", chosen: dict[str, Any], tokenizer: ChatTokenizer) -> dict[str, Any]:
    from worker.steps.rewards import load_rewards

    columns = step.input.results["prepare"]["reward_columns"]
    settings = {"max_completion_length": chosen["max_completion_length"]}
    rewards = load_rewards(step, columns, settings)
    return {"reward_funcs": rewards, "tokenizer": tokenizer, "step": step}


SUPERVISED = _made_by("adapter_trainer", "SupervisedTrainer")
METHODS = {
    "pretraining": Method(full_sequences, SUPERVISED, _supervised_config),
    "supervised": Method(each_row(labelled), SUPERVISED, _supervised_config),
    "dpo": Method(each_row(paired), _made_by("adapter_trainer", "PreferenceTrainer"), _preference_config),
    "orpo": Method(each_row(paired), _made_by("preference_trainers", "OddsRatioTrainer"), _odds_ratio_config),
    "kto": Method(each_row(judged), _made_by("preference_trainers", "JudgementTrainer"), _judgement_config),
    "reward": Method(
        each_row(compared), _made_by("preference_trainers", "RewardModelTrainer"), _reward_config
    ),
    "grpo": Method(
        prompts, _made_by("policy_trainer", "PolicyTrainer"), _policy_config, _rewarding, judged_by="reward"
    ),
}
