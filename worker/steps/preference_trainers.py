"""trl's trainers of preferences besides DPO's, given rows that are tokens already."""

import warnings
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import KTOTrainer, RewardTrainer
from trl.import_utils import TRLExperimentalWarning
from trl.trainer.utils import add_fused_lm_head

from worker.steps.adapter_trainer import AdapterTrainer
from worker.steps.method_rows import IGNORED

with warnings.catch_warnings():
    # It lies among what trl may change in any release; the version that is installed is pinned.
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["JudgementTrainer", "ORPOConfig", "ORPOTrainer", "OddsRatioTrainer", "RewardModelTrainer"]

OTHERS_ANSWER = "KL_completion_ids"


class OddsRatioTrainer(AdapterTrainer, ORPOTrainer):
    """Learns the preferred answer, and that it is the likelier one of the two. There is no reference.

    trl's trainer of it holds all logits; here they come in tiles, by the output layer of its other methods.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._tokens = 0
        super().__init__(*args, **kwargs)
        inner = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        add_fused_lm_head(inner, outputs=("log_probs", "mean_logits"))

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Both answers to each question, as trl's does.

        Returns:
            of the preferred answers and of the others, (rows,): the mean log-probability of their tokens;
            then of both, (rows, tokens - 1), the mean logits; then the loss of the preferred conversations.
        """
        both = self.concatenated_inputs(
            batch, padding_value=self.padding_value, device=self.accelerator.device
        )
        attended = both["concatenated_attention_mask"]
        told = model(
            input_ids=both["concatenated_input_ids"],
            attention_mask=attended,
            labels=both["concatenated_input_ids"].masked_fill(attended == 0, IGNORED),
            fused_lm_head=True,
            **({"output_router_logits": True} if self.aux_loss_enabled else {}),
        )
        answered = both["concatenated_labels"][:, 1:] != IGNORED
        likely = (told.log_probs * answered).sum(-1) / answered.sum(-1)
        rows = batch["chosen_labels"].shape[0]
        loss = -told.log_probs[:rows].sum() / told.label_mask[:rows].sum()
        found = (likely[:rows], likely[rows:], told.mean_logits[:rows], told.mean_logits[rows:], loss)
        return (*found, told.aux_loss) if self.aux_loss_enabled else found

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
        """Both conversations as the collator takes them; the rows are tokens already."""
        prompt = feature["prompt_ids"]
        row: dict[str, list[int]] = {}
        for which in ("chosen", "rejected"):
            answer = feature[f"{which}_ids"]
            row[f"{which}_input_ids"] = prompt + answer
            row[f"{which}_attention_mask"] = [1] * (len(prompt) + len(answer))
            row[f"{which}_labels"] = [IGNORED] * len(prompt) + answer
        return row

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._tokens += sum(int(inputs[f"{which}_attention_mask"].sum()) for which in ("chosen", "rejected"))
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            # trl counts them for its other methods.
            told = torch.tensor(self._tokens, device=self.accelerator.device)
            logs["num_tokens"] = int(self.accelerator.reduce(told))
        super().log(logs, start_time)


class JudgementTrainer(AdapterTrainer, KTOTrainer):
    """Learns from answers that are labelled good or bad. The reference is the model that it begins with."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, name: str) -> Dataset:
        """Shuffle once, and give each row the answer of another one of its batch.

        How far the model as a whole has moved is estimated from these. trl reads the rows in this order in
        each epoch, so that the batches stay as they are.
        """
        if not self.calculate_KL or OTHERS_ANSWER in dataset.column_names:
            return dataset
        train = name == "train"
        batch = args.per_device_train_batch_size if train else args.per_device_eval_batch_size
        shuffled = dataset.shuffle(seed=args.seed) if train else dataset
        return shuffled.map(_with_answers_of_others, batched=True, batch_size=batch)


class RewardModelTrainer(AdapterTrainer, RewardTrainer):
    """Learns to give the preferred answer the higher number."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset  # tokens already


def _with_answers_of_others(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    answers = rows["completion_ids"]
    return {OTHERS_ANSWER: [*answers[-1:], *answers[:-1]]}
