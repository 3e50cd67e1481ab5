"""What a fine-tune takes.

Every field that says `auto` is resolved by the worker from `training_data/hyperparameters.py`, by the
model's size and the number of rows, and stored with the result.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from db.params.data import DataParams
from db.params.publishing import PUBLISH, Publish, check_publish
from db.params.sharding import why_not_sharded
from db.params.training_args import check_training_args
from db.params.values import (
    ASKED_QUANTIZATIONS,
    IMATRIX,
    KEEP_CHECKPOINTS,
    SAVE_MINUTES,
    Alias,
    AskedQuantizations,
    Auto,
    ModelName,
    OperatorsName,
    RewardName,
)

ADAPTER_FIELDS = (
    "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_bias", "use_rslora", "use_dora",
)  # fmt: skip

WITH_BETA = ("dpo", "orpo", "kto", "grpo")
# That tell answers apart: each row counts as one, and nothing but its answers is learnt.
ANSWERS_ALONE = ("dpo", "orpo", "kto", "reward", "grpo")
# What a reward model has nothing to do with: it judges answers and writes none.
OF_WRITERS = ("quantizations", "imatrix", "publish", "alias")
# What only grpo, which has the model answer, can make use of.
OF_GRPO = ("rewards", "reward_weights", "num_generations", "max_completion_length", "temperature")


MOST_STEPS = 2**31 - 1
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


class FineTuneParams(DataParams):
    """Fine-tune a base model, on answers, preferences, rewards or plain text."""

    name: ModelName = Field(description="The name the finished model answers to.", examples=["faq"])
    alias: Alias | None = Field(
        default=None,
        description="Another name that it answers to, such as the one that it had elsewhere: ft:gpt-…",
    )

    method: Literal["supervised", "dpo", "orpo", "kto", "reward", "grpo", "pretraining"] = Field(
        default="supervised",
        description="Where it is not named: supervised, or dpo, kto or pretraining where the first file's "
        "rows are of their kind alone, which is told. supervised: learns answers. dpo and orpo: learn which "
        "of two answers is preferred. kto: learns from answers that are labelled good or bad. reward: a "
        "model with a head of one number that judges answers. grpo: answers prompts by itself, and learns of "
        "the answers that its rewards prefer. pretraining: learns plain text, each token of it.",
    )
    rewards: list[RewardName] = Field(
        default=[],
        max_length=8,
        description="Of grpo: by what its answers are judged: exact_match, contains_answer, brevity, or "
        "rewards that the operator has named.",
        examples=[["exact_match"]],
    )
    reward_weights: list[Annotated[float, Field(ge=-100, le=100)]] = Field(
        default=[],
        max_length=8,
        description="How much each of the rewards counts, in their order; without them all count alike.",
    )
    num_generations: Annotated[int, Field(ge=2, le=256)] | Auto = Field(
        default="auto",
        description="Of grpo: how many answers to one prompt are compared. They fill a batch: its effective "
        "size is counted in answers, and must be divisible by it.",
    )
    max_completion_length: Annotated[int, Field(ge=1, le=1_048_576)] | Auto = Field(
        default="auto", description="Of grpo: tokens at which an answer is cut off, of those of max_length."
    )
    temperature: Annotated[float, Field(gt=0, le=5)] | Auto = Field(
        default="auto", description="Of grpo: how far the answers that are compared are left to chance."
    )
    beta: Annotated[float, Field(ge=0, le=2)] | Auto = Field(
        default="auto",
        description="Of dpo and kto: how much it costs to move away from the base model. Of orpo: how much "
        "preferring weighs beside the preferred answer itself (the paper's lambda). Of grpo: what the KL "
        "divergence from the model that it began with costs; 0 for none.",
    )
    merge_base: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="Of a GPTQ or AWQ base: the 16-bit model that it was made from, into which the adapter "
        "is merged. What a job of kind quantize has made knows its own.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    tuning: Literal["lora", "full"] = Field(
        default="lora",
        description="lora: an adapter beside the base's weights is trained. full: all of them are.",
    )
    start_from: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="An earlier fine-tune of the same base to go on from: a model, a job or a checkpoint.",
        examples=["faq"],
    )
    deepspeed: OperatorsName | None = Field(
        default=None,
        description="A configuration of DeepSpeed by the name that the operator gave it, for GPUs that train "
        "together.",
        examples=["zero2"],
    )
    sharding: Literal["auto", "none", "full"] = Field(
        default="auto",
        description="How several GPUs hold the base's weights. none: each has a copy. full: each has a share "
        "of every layer (FSDP). auto: copies where these have room, else shares.",
    )
    bits: Literal[4, 8, 16] | Auto = Field(
        default="auto",
        description="The base's weights while an adapter is trained: 4 is NF4 with double quantisation, 8 is "
        "LLM.int8, 16 is as they are. A GPTQ or AWQ base has its own.",
    )
    preset: Literal["fast", "balanced", "best"] | None = Field(
        default=None, description="Sets several of what is auto, and says which; what is given besides wins."
    )
    epochs: Annotated[float, Field(gt=0, le=10_000)] | Auto = Field(
        default="auto", description="Passes over the training rows."
    )
    max_steps: Steps | None = Field(default=None, description="Overrides epochs.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        default="auto", description="The highest one, reached after the warm-up."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        default="auto", description="Times the learning rate that auto chooses."
    )
    effective_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto = Field(
        default="auto",
        description="Rows of one step of the optimiser; batch_size and gradient_accumulation_steps follow.",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto", description="Rows of one micro-batch."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto", description="Micro-batches to one step of the optimiser."
    )
    gradient_checkpointing: bool | Auto = Field(
        default="auto", description="Compute activations twice, to save memory."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] | Auto = Field(
        default="auto", description="Steps in which the learning rate rises from 0."
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        default="auto", description="How much the adapter can hold."
    )
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | Auto = Field(
        default="auto",
        description="The adapter is scaled by lora_alpha / lora_rank; by rsLoRA, by lora_alpha / √lora_rank.",
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        default="auto", description="Share of the adapter's inputs dropped in training."
    )
    lora_target_modules: Annotated[list[str], Field(min_length=1, max_length=64)] | Auto = Field(
        default="auto",
        description="The layers that get an adapter, by name: q_proj, v_proj, …",
    )
    lora_bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="Which bias terms are trained too."
    )
    use_rslora: bool | Auto = Field(
        default="auto", description="rsLoRA: a scale at which high ranks learn as well as low ones."
    )
    use_dora: bool = Field(
        default=False, description="DoRA: learn the weights' magnitude apart from their direction; slower."
    )
    packing: bool | Auto = Field(
        default="auto",
        description="true: whole rows share sequences of max_length. false: batches are padded. auto: "
        "nothing is padded, and on a GPU rows are packed.",
    )
    assistant_only_loss: bool = Field(default=True, description="Learn the answers only, not the questions.")
    eval_steps: Steps | Auto = Field(default="auto", description="Steps between evaluations.")
    early_stopping_patience: Steps | None = Field(
        default=None, description="Stop after so many evaluations without a better loss."
    )
    save_steps: Steps | Auto = Field(default="auto", description="Steps between checkpoints.")
    training_args: dict[str, Any] = Field(
        default={},
        description="Further fields of trl's config of the method, such as optim or adam_beta2, applied "
        "after all others.",
        examples=[{"optim": "paged_adamw_8bit", "adam_beta2": 0.95}],
    )
    save_minutes: float | None = SAVE_MINUTES
    keep_checkpoints: int = KEEP_CHECKPOINTS
    cluster: OperatorsName | None = Field(
        default=None,
        description="A Ray cluster that the operator has named, whose machines train together. Default: a "
        "worker of this server trains.",
        examples=["lab"],
    )

    quantizations: AskedQuantizations = Field(default=["Q4_K_M"], description=ASKED_QUANTIZATIONS)
    imatrix: bool = IMATRIX
    publish: Publish = PUBLISH

    @model_validator(mode="after")
    def _consistent(self) -> "FineTuneParams":
        self.check_rows()
        no_evaluation = (
            self.validation_file is None and self.train_size in (None, 1.0) and not self.validation_folds
        )
        if self.early_stopping_patience is not None and no_evaluation:
            raise ValueError(
                "early_stopping_patience needs validation rows: give validation_file or train_size below 1"
            )
        if self.learning_rate_multiplier != "auto" and self.learning_rate != "auto":
            raise ValueError(
                "learning_rate_multiplier and learning_rate exclude each other: give one of them"
            )
        if self.effective_batch_size != "auto" and {self.batch_size, self.gradient_accumulation_steps} != {
            "auto"
        }:
            raise ValueError(
                "effective_batch_size settles batch_size and gradient_accumulation_steps: leave these out"
            )
        return self

    @model_validator(mode="after")
    def _fits_method(self) -> "FineTuneParams":
        method = self.method
        if method == "pretraining":
            for name in ("packing", "system_prompt", "has_system_prompt"):
                if getattr(self, name) not in ("auto", False, None):
                    raise ValueError(
                        f"{name} means nothing to pretraining, which learns plain text in sequences that are "
                        "full already: leave it out"
                    )
        if self.beta != "auto" and method not in WITH_BETA:
            raise ValueError(
                f"beta is of the methods {', '.join(WITH_BETA)}: leave it out, or give one of them"
            )
        if method != "grpo":
            self._refuse_of_grpo()
        if method not in ANSWERS_ALONE:
            return self
        if self.packing is True:
            raise ValueError(f"packing joins rows, and {method} tells answers apart: leave it out")
        if not self.assistant_only_loss:
            raise ValueError(
                f"assistant_only_loss cannot be false with {method}, which learns of answers alone"
            )
        if self.lora_dropout not in ("auto", 0):
            raise ValueError(f"lora_dropout must be 0 with {method}: chance would decide between two answers")
        if method == "kto" and 1 in (self.batch_size, self.effective_batch_size):
            raise ValueError(
                "batch_size must be at least 2 with kto: how far the model has moved is estimated by giving "
                "a question the answer of another row of its batch"
            )
        if method == "reward":
            self._check_reward()
        if method == "grpo":
            self._check_grpo()
        return self

    @model_validator(mode="after")
    def _fits_deepspeed(self) -> "FineTuneParams":
        if self.deepspeed is not None and self.cluster is not None:
            raise ValueError("deepspeed does not go with cluster: leave one of them out")
        if self.deepspeed is not None and self.bits == 8:
            raise ValueError("bits must be 4 or 16 with deepspeed: LLM.int8 has no part in it")
        return self

    @model_validator(mode="after")
    def _fits_sharding(self) -> "FineTuneParams":
        if self.sharding != "full":
            return self
        for name in ("deepspeed", "cluster"):
            if getattr(self, name) is not None:
                raise ValueError(f'sharding "full" does not go with {name}: leave one of them out')
        reason = why_not_sharded(dict(self))
        if reason is not None:
            raise ValueError(
                f'{reason[0]} does not go with sharding "full": {reason[1]}. Leave one of them out'
            )
        return self

    def _refuse_of_grpo(self) -> None:
        for name in OF_GRPO:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is of the method grpo, which has the model answer: leave it out, or set method "
                    'to "grpo"'
                )
        if self.beta == 0:
            raise ValueError(f"beta must be greater than 0 with {self.method}: nothing would be preferred")

    def _check_grpo(self) -> None:
        if not self.rewards:
            raise ValueError(
                "rewards is missing: grpo learns of the answers that they prefer. Name one: exact_match, "
                "contains_answer, brevity, or one that the operator has named (LATHE_REWARDS)"
            )
        twice = next((name for name in self.rewards if self.rewards.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"rewards names {twice!r} twice: give it a weight in reward_weights instead")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise ValueError(
                f"reward_weights must hold a number for each of the {len(self.rewards)} rewards, in their "
                f"order, and holds {len(self.reward_weights)}"
            )
        if self.reward_weights and not any(self.reward_weights):
            raise ValueError("reward_weights are all 0: nothing would tell answers apart")
        self._check_answers_of_a_batch()
        most, answer = self.max_length, self.max_completion_length
        if most != "auto" and answer != "auto" and answer >= most:
            raise ValueError(
                f"max_completion_length must be less than max_length {most}, which the prompt is a part of"
            )

    def _check_answers_of_a_batch(self) -> None:
        """See that those of one prompt come together, as far as both numbers are given."""
        field, effective = "effective_batch_size", self.effective_batch_size
        if self.batch_size != "auto" and self.gradient_accumulation_steps != "auto":
            field = "batch_size times gradient_accumulation_steps"
            effective = self.batch_size * self.gradient_accumulation_steps
        if effective == "auto":
            return
        if effective < 2:
            raise ValueError(f"{field} must be at least 2 with grpo, which compares answers to one prompt")
        if self.num_generations != "auto" and effective % self.num_generations:
            nearest = max(1, round(effective / self.num_generations)) * self.num_generations
            raise ValueError(
                f"{field} is {effective} answers, which is not divisible by num_generations "
                f"{self.num_generations}: all answers to one prompt are compared within a batch. Make it "
                f"{nearest}, or num_generations a number that divides {effective}"
            )

    def _check_reward(self) -> None:
        for name in OF_WRITERS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} means nothing to a reward model, which judges answers and writes none: nothing "
                    "is exported or served of it. Leave it out"
                )
        if self.start_from is not None:
            raise ValueError("start_from does not go with reward: its head begins anew. Leave it out")

    @model_validator(mode="after")
    def _fits_tuning(self) -> "FineTuneParams":
        check_training_args(self.method, self.training_args)
        check_publish(dict(self))
        if self.tuning == "lora":
            if self.use_dora and self.bits == 8:
                raise ValueError(
                    "use_dora needs the base's weights at each step, which LLM.int8 does not give back: set "
                    "bits to 4 or 16, or leave use_dora out"
                )
            return self
        if self.bits in (4, 8):
            raise ValueError(
                'bits must be 16 with the tuning "full": weights rounded to 4 or 8 bits cannot be trained. '
                "Leave it out, or train an adapter on them"
            )
        for name in ADAPTER_FIELDS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f'{name} is of an adapter, and the tuning "full" trains none: leave it out, or set '
                    'tuning to "lora"'
                )
        return self
