"""trl's trainer by GRPO: the model answers prompts, and learns of the answers that its rewards prefer.

Shao et al. 2024, "DeepSeekMath" (arXiv:2402.03300), with the loss of Yu et al. 2025, "DAPO"
(arXiv:2503.14476).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from training_data.answer_batches import WRITTEN_AT_ONCE
from training_data.chat_templates import Chat
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.adapter_trainer import AdapterTrainer
from worker.steps.compiled_layers import as_written
from worker.steps.quantized_base import load_for_training
from worker.steps.sharding import is_sharded

EVENTS_A_RUN = 10


class PolicyTrainer(AdapterTrainer, GRPOTrainer):
    """Learns of its own answers. The reference is what the training began with.

    Args:
        tokenizer: that of the rows, with their template.
        step: is told how the rewards go.
    """

    def __init__(self, *args: Any, tokenizer: ChatTokenizer, step: Step, **kwargs: Any) -> None:
        model, arguments = kwargs["model"], kwargs["args"]
        self._chats = tokenizer
        self._tokens_before: int | None = None
        has_adapter = kwargs["peft_config"] is not None or isinstance(model, PeftModel)
        beta, reference = arguments.beta, None
        if beta and not has_adapter:
            # trl would load it from the base's folder, which is not always what the training begins with.
            reference = _copy(model).requires_grad_(requires_grad=False).eval()
            arguments.beta = 0.0
        with _also_ending_at(model, tokenizer.end_of_answers()):
            super().__init__(*args, **kwargs)
        if reference is not None:
            self.beta = arguments.beta = beta
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(
                reference, device_placement=not is_sharded(reference), evaluation_mode=True
            )
        self.add_callback(RewardReporter(step))
        self._tell_repeated(step)

    def _tell_repeated(self, step: Step) -> None:
        repeated = -len(self.train_dataset) % self._prompts_at_once
        if repeated:
            step.event(
                f"Each pass over the {len(self.train_dataset)} prompts is filled up with {repeated} of them "
                f"again, so that every step has {self._prompts_at_once}.",
                repeated=repeated,
            )

    @property
    def _prompts_at_once(self) -> int:
        return int(self.args.generation_batch_size // self.num_generations)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        # trl's own leaves out what does not fill a batch, and goes on from its own random state.
        return PromptSampler(
            len(self.train_dataset if dataset is None else dataset),
            answers=self.num_generations,
            prompts=self._prompts_at_once,
            times=self.args.steps_per_generation,
            seed_of_epoch=lambda: self.args.seed + int(self.state.epoch or 0),
        )

    def _tokenize_prompts(self, prompts: list[Chat]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self._chats.encode_prompt(prompt) for prompt in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int
    ) -> tuple[list[list[int]], None]:
        at_once = WRITTEN_AT_ONCE * self.args.per_device_train_batch_size
        answers: list[list[int]] = []
        with as_written():
            for start in range(0, len(prompt_ids), at_once):
                some = prompt_ids[start : start + at_once]
                answers += super()._generate_single_turn(some, images, multimodal_fields, num_generations)[0]
        return answers, None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._tokens_before is None:
            self._tokens_before = self.state.num_input_tokens_seen
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        counted = self._metrics["train"].get("num_tokens")
        if self.model.training and counted:
            # It comes back with a checkpoint, where trl's other trainers count from nought in each process.
            counted[:] = [counted[-1] - (self._tokens_before or 0)]
        super().log(logs, start_time)


class PromptSampler(Sampler[int]):
    """Each prompt as often as it is answered, in an order that the seed and the epoch alone decide.

    Args:
        rows: how many prompts there are.
        answers: to each prompt, one after another.
        prompts: whose answers are written together; the last of a pass are filled up with its first.
        times: how often each such batch is given: once for each micro-batch that is taken of it.
    """

    def __init__(
        self, rows: int, *, answers: int, prompts: int, times: int, seed_of_epoch: Callable[[], int]
    ) -> None:
        self._rows, self._answers, self._prompts, self._times = rows, answers, prompts, times
        self._seed_of_epoch = seed_of_epoch
        self._filled = -(-rows // prompts) * prompts

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed_of_epoch())
        order = torch.randperm(self._rows, generator=generator).tolist()
        filled = list(islice(cycle(order), self._filled))
        for start in range(0, self._filled, self._prompts):
            for _ in range(self._times):
                for row in filled[start : start + self._prompts]:
                    yield from [row] * self._answers

    def __len__(self) -> int:
        return self._filled * self._answers * self._times


class RewardReporter(TrainerCallback):
    """Says now and then how the rewards go, and when they tell no answers apart."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._next = 1
        self._differed = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" not in logs or logs.get("reward") is None:
            return
        self._differed |= float(logs["frac_reward_zero_std"]) < 1
        if state.global_step < self._next:
            return
        self._next = state.global_step + max(1, state.max_steps // EVENTS_A_RUN)
        kl = f", KL {logs['kl']:.4f} from where it began" if logs.get("kl") is not None else ""
        self._step.event(
            f"Step {state.global_step} of {state.max_steps}: reward {logs['reward']:.4g} ± "
            f"{logs['reward_std']:.2g}{kl}; answers of {logs['completions/mean_length']:.0f} tokens, "
            f"{logs['completions/clipped_ratio']:.0%} of them cut off.",
            reward=logs["reward"],
            reward_std=logs["reward_std"],
            kl=logs.get("kl"),
        )
        if not self._differed:
            self._step.event(
                "All answers to each prompt were rewarded alike, so that nothing is learnt of them: take "
                "rewards that tell answers apart, or raise temperature or num_generations.",
                level="warn",
            )
        self._differed = False


def _copy(model: Any) -> Any:
    """The model once more; shares of it are read again from where they came."""
    if not is_sharded(model):
        return copy.deepcopy(model)
    return load_for_training(Path(model.config.name_or_path), 16, model.dtype, sharded=True)


@contextmanager
def _also_ending_at(model: Any, end: int | None) -> Iterator[None]:
    """Let trl take the token for one that ends answers: a base may name only its tokenizer's own."""
    config = model.generation_config
    before = config.eos_token_id
    known = [before] if isinstance(before, int) else list(before or [])
    config.eos_token_id = known if end is None or end in known else [*known, end]
    try:
        yield
    finally:
        config.eos_token_id = before
