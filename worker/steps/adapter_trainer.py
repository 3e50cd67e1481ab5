"""trl's trainers with checkpoints that survive a crash, and adapters in full precision."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import DPOTrainer, SFTTrainer

from training_data.json_files import write_json
from worker.checkpoints import STAGING, STATE_FILE, outdated, write_checkpoint
from worker.steps import together
from worker.steps.compiled_layers import as_written
from worker.steps.sharding import (
    beside_shares,
    divided_state,
    gather_magnitudes,
    gathered_state,
    is_sharded,
    load_weights,
    put_away,
)

REFERENCE = "ref"  # as trl calls its copy of the adapter that a training began with
# As transformers calls them, in a checkpoint of one process.
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"


def _adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of what is trained of an adapter that is there before its trainer is."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class _OrderedByEpoch(LengthGroupedSampler):
    """Groups rows of like length, in an order that the seed and the epoch alone decide."""

    seed_of_epoch: Callable[[], int]

    def __iter__(self) -> Any:
        self.generator = torch.Generator().manual_seed(self.seed_of_epoch())
        return super().__iter__()


class AdapterTrainer(Trainer):
    """What the trainers of LoRA adapters share; a checkpoint that bears its name is whole.

    Args:
        keep: how many checkpoints are kept, besides the best one.
        on_checkpoint: called with the step and the folder of each finished checkpoint.
        on_removed: called with the folder of each checkpoint that made room.
        best_step: tells the step of the best checkpoint, which rotation spares.
        own_state: what is kept with a checkpoint for the callbacks.
    """

    def __init__(
        self,
        *args: Any,
        keep: int,
        on_checkpoint: Callable[[int, Path], None],
        on_removed: Callable[[Path], None],
        best_step: Callable[[], int],
        own_state: Callable[[], dict[str, Any]],
        **kwargs: Any,
    ) -> None:
        trained_on = _adapter_weights(kwargs["model"])
        put_away(kwargs["model"])  # else what is whole just now would be frozen in place of the shares
        # transformers refuses to checkpoint the training of what it has divided: here that is gathered.
        kwargs["args"].save_only_model = is_sharded(kwargs["model"])
        with beside_shares(kwargs["model"]):
            super().__init__(*args, **kwargs)
        self.args.save_only_model = False
        gather_magnitudes(self.model)
        self._keep = keep
        self._on_checkpoint, self._on_removed = on_checkpoint, on_removed
        self._best_step, self._own_state = best_step, own_state
        # trl casts the adapters of a quantised base to bfloat16. Small updates drown there: a tiny model
        # learnt 12 of 20 answers, against 20 with these.
        if isinstance(self.model, PeftModel):
            for name, parameter in self.model.named_parameters():
                before = trained_on.get(name.replace(f".{REFERENCE}.", ".default."))
                if parameter.requires_grad or before is not None:
                    # A copy each: the adapter moves away from its reference.
                    kept = parameter.data if before is None else before
                    parameter.data = kept.to(torch.float32, copy=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            # It would draw from the process's own random state, which a resumed epoch does not begin with.
            sampler.__class__ = _OrderedByEpoch
            # Of all processes together: so they see the rows in the order in which one would.
            sampler.batch_size *= self.args.world_size
            sampler.seed_of_epoch = lambda: self.args.seed + int(self.state.epoch or 0)
        return sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        number = self.state.global_step
        root = Path(self.args.output_dir)
        if together.from_first((root / f"checkpoint-{number}").exists):
            return

        def write(staging: Path) -> None:
            together.wait()  # until there is a folder
            self.args.output_dir = str(staging)
            try:
                # Past trl's own method: it writes a model card into the folder.
                Trainer._save_checkpoint(self, model, trial)
            finally:
                self.args.output_dir = str(root)
            # Of a process on another machine, nobody sees the disk.
            own = staging / f"checkpoint-{number}" / f"rng_state_{self.args.process_index}.pth"
            for name, state in together.to_first((own.name, own.read_bytes() if own.exists() else b"")):
                if state:
                    (own.parent / name).write_bytes(state)
            if not together.is_first():
                return
            # The reference of preferences: the next attempt copies it from where this one began.
            shutil.rmtree(staging / f"checkpoint-{number}" / REFERENCE, ignore_errors=True)
            write_json(staging / f"checkpoint-{number}" / STATE_FILE, self._own_state())

        if together.is_first():
            self._on_checkpoint(number, write_checkpoint(root, number, write))
            for old in outdated(root, self._keep, {self._best_step()}):
                self._on_removed(old)
                shutil.rmtree(old)
        else:
            write(root / STAGING)
        together.wait()  # it bears its name

    def create_optimizer(self, model: Any = None) -> Any:
        put_away(self.model)
        return super().create_optimizer(model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered_state(self.optimizer)
        if together.is_first():
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not is_sharded(self.model) or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(
            Path(checkpoint) / OPTIMIZER_FILE, map_location="cpu", mmap=True, weights_only=True
        )
        self.optimizer.load_state_dict(divided_state(self.optimizer, state))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if is_sharded(self.model) and not isinstance(self.model, PeftModel):
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with as_written():
            return super().evaluation_loop(*args, **kwargs)

    def load_weights(self, checkpoint: Path) -> None:
        self._load_from_checkpoint(str(checkpoint))

    def take_weights(self, checkpoint: Path) -> None:
        """Be where `checkpoint` is, to train no further."""
        self.load_weights(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


class SupervisedTrainer(AdapterTrainer, SFTTrainer):
    """Learns the tokens that rows label."""


class PreferenceTrainer(AdapterTrainer, DPOTrainer):
    """Learns which of two answers is preferred.

    The reference is what the training began with: the base, with the adapter switched off, or with that of
    the fine-tune that it goes on from.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # tokens already
