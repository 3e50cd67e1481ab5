"""The methods by which an adapter learns: how rows become tokens for each, and trl's trainer of it.

All else of a training is the same for all: `train.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import (
    TokenRow,
    compared,
    each_row,
    full_sequences,
    judged,
    labelled,
    paired,
)


@dataclass(frozen=True)
class Method:
    """Args:
    rows: the prepared rows of a file as its trainer takes them; None where nothing is left to learn from.
    trainer, config: trl's, with what is the method's own in the config; both import torch.
    """

    rows: Callable[[Path, ChatTokenizer, dict[str, Any]], Iterator[TokenRow | None]]
    trainer: Callable[..., Any]
    config: Callable[..., Any]


def _supervised_trainer(**settings: Any) -> Any:
    from worker.steps.adapter_trainer import SupervisedTrainer

    return SupervisedTrainer(**settings)


def _supervised_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        packing=chosen["packing"],
        packing_strategy="bfd_split",
        max_length=chosen["max_length"] if chosen["packing"] else None,
        eval_packing=False,
        **settings,
    )


def _preference_trainer(**settings: Any) -> Any:
    from worker.steps.adapter_trainer import PreferenceTrainer

    return PreferenceTrainer(**settings)


def _preference_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import DPOConfig

    if (
        chosen["tuning"] == "full"
    ):  # no adapter can be switched off then, and a second model takes as much again
        settings["precompute_ref_log_probs"] = True
    # The column of lengths, by which rows are grouped, is none that the model takes.
    return DPOConfig(beta=chosen["beta"], max_length=None, remove_unused_columns=False, **settings)


def _odds_ratio_trainer(**settings: Any) -> Any:
    from worker.steps.preference_trainers import OddsRatioTrainer

    return OddsRatioTrainer(**settings)


def _odds_ratio_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from worker.steps.preference_trainers import ORPOConfig

    return ORPOConfig(
        beta=chosen["beta"], max_length=chosen["max_length"], remove_unused_columns=False, **settings
    )


def _judgement_trainer(**settings: Any) -> Any:
    from worker.steps.preference_trainers import JudgementTrainer

    return JudgementTrainer(**settings)


def _judgement_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import KTOConfig

    if chosen["tuning"] == "full":  # as for pairs
        settings["precompute_ref_log_probs"] = True
    # They are shuffled already, and in batches that belong together.
    settings["train_sampling_strategy"] = "sequential"
    weights = ("desirable_weight", "undesirable_weight")
    settings = {name: chosen[name] for name in weights if name in chosen} | settings
    return KTOConfig(beta=chosen["beta"], max_length=chosen["max_length"], **settings)


def _reward_trainer(**settings: Any) -> Any:
    from worker.steps.preference_trainers import RewardModelTrainer

    return RewardModelTrainer(**settings)


def _reward_config(chosen: dict[str, Any], **settings: Any) -> Any:
    from trl import RewardConfig

    return RewardConfig(max_length=None, remove_unused_columns=False, **settings)


METHODS = {
    "pretraining": Method(full_sequences, _supervised_trainer, _supervised_config),
    "supervised": Method(each_row(labelled), _supervised_trainer, _supervised_config),
    "dpo": Method(each_row(paired), _preference_trainer, _preference_config),
    "orpo": Method(each_row(paired), _odds_ratio_trainer, _odds_ratio_config),
    "kto": Method(each_row(judged), _judgement_trainer, _judgement_config),
    "reward": Method(each_row(compared), _reward_trainer, _reward_config),
}
