"""The training loop of a model from scratch: batches, two optimisers, a schedule, samples as it learns."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput
from db.params.pretrain import PretrainParams
from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.checkpoints import STATE_FILE, outdated, write_checkpoint
from worker.step import Step, Stopped
from worker.steps.runtime import computes_in_bfloat16, peak_memory_bytes

if TYPE_CHECKING:
    import torch

CHAT_SHARE = 0.25  # of each batch's rows
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.1
WIDTH_OF_RATE = 256  # the hidden size at which learning_rate is both optimisers'
FULL_WINDOW_SHARE = 0.1  # of the steps, the last ones, see the whole context
MIN_WINDOW = 32
METRICS_PER_RUN = 50
SAMPLE_TOKENS = 40
OPTIMIZERS_FILE = "optimizers.pt"
ACCUMULATION = "gradient_accumulation_steps"


@dataclass
class Corpus:
    """Token ids to learn from: `text` is one long row, `chats` another, perhaps empty."""

    text: "torch.Tensor"
    chats: "torch.Tensor"

    def batch(self, rows: int, length: int, generator: "torch.Generator") -> "torch.Tensor":
        """Draw windows, shape (rows, length)."""
        import torch

        chat_rows = round(rows * CHAT_SHARE) if len(self.chats) > length else 0
        windows = [self._windows(self.text, rows - chat_rows, length, generator)]
        if chat_rows:
            windows.append(self._windows(self.chats, chat_rows, length, generator))
        return torch.cat(windows)

    @staticmethod
    def _windows(ids: "torch.Tensor", rows: int, length: int, generator: "torch.Generator") -> "torch.Tensor":
        import torch

        starts = torch.randint(0, len(ids) - length + 1, (rows,), generator=generator)
        return torch.stack([ids[start : start + length] for start in starts.tolist()])


@dataclass
class Learner:
    """The training loop with what it reports."""

    step: Step
    params: PretrainParams
    model: Any
    tokenizer: ChatTokenizer
    corpus: Corpus
    length: int
    _first: int = 0  # steps that earlier attempts have made

    def run(self, checkpoint: Path | None = None) -> tuple[float, float]:
        """Train, from `checkpoint` on if there is one.

        Returns:
            the mean loss of the last tenth of the steps, and tokens/s.
        Raises:
            Stopped: asked to, and saved.
        """
        import torch

        total = self.params.steps
        optimizers = _optimizers(self.model, self.params.learning_rate)
        generator = torch.Generator().manual_seed(self.params.seed)
        losses = self._restore(checkpoint, optimizers, generator) if checkpoint is not None else []
        self._first = len(losses)
        started = saved = time.monotonic()
        self.step.save_when_stopped()
        self.model.train()
        for number in range(self._first + 1, total + 1):
            scale = _schedule(number, total)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * scale
            losses.append(self._one_step(optimizers, self._window(number), generator))
            if not math.isfinite(losses[-1]):
                raise InvalidInput(
                    f"The training diverged at step {number}: learning_rate {self.params.learning_rate} is "
                    "too high for this model, lower it.",
                    param="learning_rate",
                )
            self._report(number, losses, self.params.learning_rate * scale, time.monotonic() - started)
            if number < total and self._save_is_due(number, time.monotonic() - saved):
                self._save(optimizers, generator, losses)
                saved = time.monotonic()
                if self.step.stop_asked:
                    self.step.event(f"Saved at step {number}, to go on from there.")
                    raise Stopped
        tail = losses[-max(1, total // 10) :]
        return sum(tail) / len(tail), self._tokens(total - self._first) / (time.monotonic() - started)

    def _save_is_due(self, number: int, seconds: float) -> bool:
        every, minutes = self.params.save_steps, self.params.save_minutes
        by_steps = every is not None and number % every == 0
        return self.step.stop_asked or by_steps or (minutes is not None and seconds >= 60 * minutes)

    def _save(self, optimizers: list[Any], generator: "torch.Generator", losses: list[float]) -> None:
        """Write a checkpoint: all that the steps to come depend on."""
        import torch
        from safetensors.torch import save_file

        number, root = len(losses), self.step.input.folder / "checkpoints"

        def write(staging: Path) -> None:
            folder = staging / f"checkpoint-{number}"
            shutil.copytree(self.tokenizer.folder, folder / "tokenizer")
            weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            self.model.config.save_pretrained(folder)  # for who exports it
            state = [optimizer.state_dict() for optimizer in optimizers]
            states = {"optimizers": state, "batches": generator.get_state(), "torch": torch.get_rng_state()}
            torch.save(states, folder / OPTIMIZERS_FILE)
            write_json(folder / STATE_FILE, {"seed": self.params.seed, "losses": losses})

        self.step.checkpoint(number, write_checkpoint(root, number, write), {"loss": losses[-1]})
        for old in outdated(root, self.params.keep_checkpoints, ()):
            self.step.checkpoint_removed(old)
            shutil.rmtree(old)

    def _restore(self, checkpoint: Path, optimizers: list[Any], generator: "torch.Generator") -> list[float]:
        """Be where `checkpoint` is. Gives the losses so far."""
        import torch
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        states = torch.load(checkpoint / OPTIMIZERS_FILE, weights_only=True)
        for optimizer, state in zip(optimizers, states["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        generator.set_state(states["batches"])
        torch.set_rng_state(states["torch"])
        return list(read_json(checkpoint / STATE_FILE)["losses"])

    def _one_step(self, optimizers: list[Any], window: int, generator: "torch.Generator") -> float:
        import torch

        rows = self.params.batch_size * self.length // window
        ids = self.corpus.batch(rows, window, generator).to(self.model.device)
        total = 0.0
        for part in ids.tensor_split(self.step.input.adjustments.get(ACCUMULATION, 1)):
            with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16()):
                loss = self.model(input_ids=part, labels=part, use_cache=False).loss * (len(part) / rows)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def _window(self, number: int) -> int:
        """Tokens of one row: short ones first, which cost less attention, then the whole context."""
        short = max(MIN_WINDOW, self.length // 4)
        return (
            self.length if number > self.params.steps * (1 - FULL_WINDOW_SHARE) else min(short, self.length)
        )

    def _tokens(self, steps: int) -> int:
        return steps * self.params.batch_size * self.length

    def _report(self, number: int, losses: list[float], rate: float, elapsed: float) -> None:
        total = self.params.steps
        self.step.progress(number, total, eta_seconds=elapsed / (number - self._first) * (total - number))
        if number % max(1, total // METRICS_PER_RUN) == 0 or number in (1, total):
            import torch

            self.step.metrics(
                step=number,
                loss=losses[-1],
                learning_rate=rate,
                tokens_per_second=self._tokens(number - self._first) / elapsed,
                memory_bytes=peak_memory_bytes(torch),
            )
        if number % self.params.sample_every == 0 or number == total:
            text = sample(self.model, self.tokenizer, self.params.sample_prompt)
            self.step.event(f"Step {number}: {text}", step=number, sample=text)


def _optimizers(model: Any, rate: float) -> list[Any]:
    """Muon for the matrices of the layers, AdamW for embeddings, the output layer and the norms.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    import torch

    hidden: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (hidden if inner else others).append(parameter)
    # Muon's rate fits any width; that of the tables by which AdamW moves tokens falls with it.
    outer = rate * math.sqrt(WIDTH_OF_RATE / model.config.hidden_size)
    optimizers = [
        torch.optim.Muon(hidden, lr=rate, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=outer, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _schedule(number: int, total: int) -> float:
    """Warm up linearly, then fall linearly to a twentieth; `number` counts from 1."""
    warmup = max(1, round(total * WARMUP_SHARE))
    if number <= warmup:
        return number / warmup
    return 1 - 0.95 * (number - warmup) / max(1, total - warmup)


def sample(model: Any, tokenizer: ChatTokenizer, prompt: str) -> str:
    """Continue `prompt` greedily, for a person to see how far the model is."""
    import torch

    ids = tokenizer.encode_text(prompt) or [0]
    with torch.no_grad():
        row = model.generate(
            input_ids=torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=min(SAMPLE_TOKENS, max(1, model.config.max_position_embeddings - len(ids))),
            do_sample=False,
        )
    model.train()
    return str(tokenizer.tokenizer.decode(row[0].tolist()))
