"""Make a tokenizer and a small Llama from scratch, on the CPU or on one GPU.

The recipe's hash (params that matter, the text's sha256, the base's weights) names the result in the
weights cache, so the same model is made once a machine. The weights are saved in bfloat16, since that
is what a later fine-tune starts from, and what its merge is rounded to.
"""

import hashlib
import math
import random
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput
from db.params import PretrainParams
from training_data.chat_templates import END_OF_TEXT, END_OF_TURN, OWN_MODELS
from training_data.json_files import write_json
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.base_model import fetch_base, fetch_tokenizer
from worker.steps.pretrain_text import chat_stream, read_passages, text_stream, train_tokenizer
from worker.steps.runtime import memory_errors_explained, peak_memory_bytes, prepare_runtime
from worker.steps.weights_cache import WeightsCache, file_sha256, recipe_hash

if TYPE_CHECKING:
    import torch

RECIPE_FORMAT = 1  # raise it when the code below makes other weights from the same params
NOT_IN_RECIPE = {"name", "quantizations", "sample_every", "sample_prompt", "training_file", "start_from"}
CHAT_SHARE = 0.25  # of each batch's rows
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.1
WIDTH_OF_RATE = 256  # the hidden size at which learning_rate is both optimisers'
FULL_WINDOW_SHARE = 0.1  # of the steps, the last ones, see the whole context
MIN_WINDOW = 32
METRICS_PER_RUN = 50
SAMPLE_TOKENS = 40
MEMORY_ADVICE = "Lower batch_size, context_length, hidden_size or layers."


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


def run(step: Step) -> dict[str, Any]:
    """Train, or take from the cache, the model that the params describe; leaves `model/`."""
    prepare_runtime(step.input.settings.threads)
    params = PretrainParams.model_validate(step.input.params)
    if params.seed == -1:
        params = params.model_copy(update={"seed": secrets.randbelow(2**31)})
        step.event(f"Drew the seed {params.seed}.", seed=params.seed)
    file = step.input.files.get(params.training_file or "")
    passages = read_passages(file.path if file else None)
    base = fetch_base(step.input.base) if step.input.base is not None else None
    recipe = recipe_hash(_recipe(params, passages, base))
    cache = WeightsCache(step.input.settings.cache_dir / "weights")
    model_folder = step.input.folder / "model"

    cached, state = cache.copy_to(recipe, model_folder)
    if cached is not None:
        step.event(f"Weights of this recipe are in the cache: {recipe}.", recipe=recipe, cached=True)
        return {**cached, "cached": True, "seed": params.seed}
    if state == "damaged":
        step.event("The cached weights were damaged and are made again.", level="warn", recipe=recipe)
    with memory_errors_explained(MEMORY_ADVICE):
        result = _make(step, params, passages, base, model_folder)
    result = {"recipe": recipe, **result}
    cache.store(recipe, model_folder, result)
    return {**result, "cached": False, "seed": params.seed}


def _recipe(params: PretrainParams, passages: list[str], base: Path | None) -> dict[str, Any]:
    text = hashlib.sha256("\0".join(passages).encode()).hexdigest()
    weights = {path.name: file_sha256(path) for path in sorted(base.glob("*.safetensors"))} if base else {}
    kept = params.model_dump(mode="json", exclude=NOT_IN_RECIPE)
    return {"format": RECIPE_FORMAT, "params": kept, "text": text, "base": weights}


def _make(
    step: Step, params: PretrainParams, passages: list[str], base: Path | None, folder: Path
) -> dict[str, Any]:
    import torch

    torch.set_num_threads(step.input.settings.threads)
    torch.manual_seed(params.seed)
    rng = random.Random(params.seed)  # noqa: S311 - reproducible, not secret
    staging = step.input.folder / "model.writing"
    staging.mkdir()
    _write_tokenizer(step, params, passages, base, staging)
    tokenizer = ChatTokenizer(staging)
    corpus = Corpus(
        torch.tensor(text_stream(passages, tokenizer)),
        torch.tensor(chat_stream(passages, tokenizer, rng), dtype=torch.long),
    )
    model = _build_model(params, tokenizer, base)
    length = _window_length(params, model, corpus)
    parameters = model.num_parameters()
    step.event(
        f"A Llama of {parameters / 1e6:.1f} M parameters learns from {len(corpus.text):,} tokens of text "
        f"and {len(corpus.chats):,} of chats.",
        parameters=parameters,
        text_tokens=len(corpus.text),
        chat_tokens=len(corpus.chats),
        vocab_size=model.config.vocab_size,
    )
    loss, tokens_per_second = _Learner(step, params, model, tokenizer, corpus, length).run()
    _save(model, tokenizer, staging)
    staging.rename(folder)
    return {
        "parameters": parameters,
        "tokens": params.steps * params.batch_size * length,
        "loss": loss,
        "context_length": model.config.max_position_embeddings,
        "vocab_size": model.config.vocab_size,
        "tokens_per_second": tokens_per_second,
        "peak_memory_bytes": peak_memory_bytes(torch),
    }


def _write_tokenizer(
    step: Step, params: PretrainParams, passages: list[str], base: Path | None, folder: Path
) -> None:
    """Leave a tokenizer with a chat template in `folder`: the base's, a named one, or a new one."""
    if base is not None or params.tokenizer is not None:
        fetch_tokenizer(base, params.tokenizer, folder)
        return
    tokenizer = train_tokenizer(passages, params.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": params.context_length,
            "eos_token": END_OF_TURN,
            "pad_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "add_eos_token": False,
        },
    )
    (folder / "chat_template.jinja").write_text(OWN_MODELS.template, encoding="utf-8")
    step.event(
        f"Learnt a byte-level BPE of {tokenizer.get_vocab_size()} tokens.",
        vocab_size=tokenizer.get_vocab_size(),
    )


def _build_model(params: PretrainParams, tokenizer: ChatTokenizer, base: Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if base is not None:
        return AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).to(device)
    ids = tokenizer.tokenizer.token_to_id
    config = LlamaConfig(
        vocab_size=_padded_vocab(tokenizer.tokenizer.get_vocab_size()),
        hidden_size=params.hidden_size,
        # Llama's 8/3 of the hidden size, in whole blocks of 256 so that K-quants fit.
        intermediate_size=256 * math.ceil(params.hidden_size * 8 / 3 / 256),
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        max_position_embeddings=params.context_length,
        tie_word_embeddings=False,
        bos_token_id=ids(tokenizer.special_tokens.get("bos_token", "")),
        eos_token_id=ids(tokenizer.special_tokens.get("eos_token", "")),
        pad_token_id=ids(tokenizer.special_tokens.get("pad_token", "")),
    )
    return LlamaForCausalLM(config).to(device)


def _padded_vocab(size: int) -> int:
    """Round up to a multiple of 32: rows of the output layer come in blocks of Q8_0 and Q4_0."""
    return math.ceil(size / 32) * 32


def _window_length(params: PretrainParams, model: Any, corpus: Corpus) -> int:
    length = min(params.context_length, model.config.max_position_embeddings)
    if len(corpus.text) <= length:
        raise InvalidInput(
            f"The text holds {len(corpus.text)} tokens, context_length is {length}: "
            "lower it, or give more text.",
            param="context_length",
        )
    return length


@dataclass
class _Learner:
    """The training loop with what it reports."""

    step: Step
    params: PretrainParams
    model: Any
    tokenizer: ChatTokenizer
    corpus: Corpus
    length: int

    def run(self) -> tuple[float, float]:
        """Train.

        Returns:
            the mean loss of the last tenth of the steps, and tokens/s.
        """
        import torch

        total = self.params.steps
        optimizers = _optimizers(self.model, self.params.learning_rate)
        generator = torch.Generator().manual_seed(self.params.seed)
        losses: list[float] = []
        started = time.monotonic()
        self.model.train()
        for number in range(1, total + 1):
            scale = _schedule(number, total)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * scale
            losses.append(self._one_step(optimizers, self._window(number), generator))
            self._report(number, losses, self.params.learning_rate * scale, time.monotonic() - started)
        tail = losses[-max(1, total // 10) :]
        return sum(tail) / len(tail), self._tokens(total) / (time.monotonic() - started)

    def _one_step(self, optimizers: list[Any], window: int, generator: "torch.Generator") -> float:
        import torch

        rows = self.params.batch_size * self.length // window
        ids = self.corpus.batch(rows, window, generator).to(self.model.device)
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=_computes_in_bfloat16()):
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

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
        self.step.progress(number, total, eta_seconds=elapsed / number * (total - number))
        if number % max(1, total // METRICS_PER_RUN) == 0 or number in (1, total):
            import torch

            self.step.metrics(
                step=number,
                loss=losses[-1],
                learning_rate=rate,
                tokens_per_second=self._tokens(number) / elapsed,
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


def _computes_in_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


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


def _save(model: Any, tokenizer: ChatTokenizer, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig

    ids = tokenizer.tokenizer.token_to_id
    end = ids(tokenizer.special_tokens.get("eos_token", ""))
    pad = ids(tokenizer.special_tokens.get("pad_token", ""))
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad if pad is not None else end)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
