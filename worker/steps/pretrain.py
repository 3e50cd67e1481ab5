"""Make a tokenizer and a small Llama from scratch, on the CPU or on one GPU.

The recipe's hash (params that matter, the text's sha256, the base's weights) names the result in the
weights cache, so the same model is made once a machine. The weights are saved in bfloat16, since that
is what a later fine-tune starts from, and what its merge is rounded to.
"""

import hashlib
import math
import random
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput
from db.params.pretrain import PretrainParams
from training_data.chat_templates import END_OF_TEXT, END_OF_TURN, OWN_MODELS
from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.checkpoints import STATE_FILE
from worker.step import Step
from worker.steps.base_model import copy_tokenizer, fetch_base, fetch_tokenizer, weight_files
from worker.steps.pretrain_loop import ACCUMULATION, Corpus, Learner
from worker.steps.pretrain_text import chat_stream, read_passages, text_stream, train_tokenizer
from worker.steps.recipe_cache import RecipeCache, recipe_hash
from worker.steps.resuming import take_newest
from worker.steps.runtime import memory_errors_explained, peak_memory_bytes, prepare_runtime, require_disk

RECIPE_FORMAT = 1  # raise it when the code below makes other weights from the same params
NOT_IN_RECIPE = {
    "name",
    "quantizations",
    "sample_every",
    "sample_prompt",
    "training_file",
    "start_from",
    "tokenizer",
    "save_steps",
    "save_minutes",
    "keep_checkpoints",
}
MEMORY_ADVICE = "Lower batch_size, context_length, hidden_size or layers."


@dataclass(frozen=True)
class _Sources:
    """What a model is made from.

    Args:
        passages: the text.
        base: the folder of the model to go on from, or None.
        tokenizer: a folder with the tokenizer to take, or None to learn one.
    """

    passages: list[str]
    base: Path | None
    tokenizer: Path | None

    def recipe(self, params: PretrainParams) -> str:
        """Hash all that the weights depend on, by content and not by name."""
        files = weight_files(self.base) if self.base else []
        if self.tokenizer is not None:
            files += [self.tokenizer / "tokenizer.json", self.tokenizer / "chat_template.jinja"]
        return recipe_hash(
            {
                "format": RECIPE_FORMAT,
                "params": params.model_dump(mode="json", exclude=NOT_IN_RECIPE),
                "text": hashlib.sha256("\0".join(self.passages).encode()).hexdigest(),
                "files": {path.name: file_sha256(path) for path in files},
            }
        )


def run(step: Step) -> dict[str, Any]:
    """Train, or take from the cache, the model that the params describe; leaves `model/`."""
    prepare_runtime(step.input.settings.threads)
    checkpoint = take_newest(step, step.input.folder / "checkpoints")
    params = _with_seed(step, PretrainParams.model_validate(step.input.params), checkpoint)
    sources = _gather(step, params)
    recipe = sources.recipe(params)
    cache = RecipeCache(step.input.settings.cache_dir / "weights")
    model_folder = step.input.folder / "model"

    cached, state = cache.copy_to(recipe, model_folder)
    if cached is not None:
        step.event(f"Weights of this recipe are in the cache: {recipe}.", recipe=recipe, cached=True)
        return {**cached, "cached": True, "seed": params.seed}
    if state == "damaged":
        step.event("The cached weights were damaged and are made again.", level="warn", recipe=recipe)
    accumulation = step.input.adjustments.get(ACCUMULATION, 1)
    less = {ACCUMULATION: 2 * accumulation} if 2 * accumulation <= params.batch_size else None
    step.if_memory_runs_out(less, MEMORY_ADVICE)
    with memory_errors_explained("" if less else MEMORY_ADVICE):
        result = {"recipe": recipe, **_make(step, params, sources, model_folder, checkpoint)}
        cache.store(recipe, model_folder, result)
    return {**result, "cached": False, "seed": params.seed, "adjustments": step.input.adjustments}


def _with_seed(step: Step, params: PretrainParams, checkpoint: Path | None) -> PretrainParams:
    """Draw a seed if none is given; whoever goes on from a checkpoint takes the one it was made with."""
    if params.seed != -1:
        return params
    if checkpoint is not None:
        return params.model_copy(update={"seed": read_json(checkpoint / STATE_FILE)["seed"]})
    seed = secrets.randbelow(2**31)
    step.event(f"Drew the seed {seed}.", seed=seed)
    return params.model_copy(update={"seed": seed})


def _gather(step: Step, params: PretrainParams) -> _Sources:
    file = step.input.files.get(params.training_file or "")
    passages = read_passages(file.path if file else None)
    base = fetch_base(step.input.base, step, param="start_from") if step.input.base is not None else None
    tokenizer = step.input.folder / "tokenizer"
    if base is not None:
        copy_tokenizer(base, tokenizer)
    elif step.input.tokenizer is not None:
        fetch_tokenizer(step.input.tokenizer, tokenizer, step)
    return _Sources(passages, base, tokenizer if tokenizer.exists() else None)


def _make(
    step: Step, params: PretrainParams, sources: _Sources, folder: Path, checkpoint: Path | None
) -> dict[str, Any]:
    import numpy
    import torch

    torch.set_num_threads(step.input.settings.threads)
    torch.manual_seed(params.seed)
    rng = random.Random(params.seed)  # noqa: S311 - reproducible, not secret
    staging = step.input.folder / "model.writing"
    learnt = checkpoint / "tokenizer" if checkpoint is not None else sources.tokenizer
    if learnt is not None:
        shutil.copytree(learnt, staging)
    else:
        _learn_tokenizer(step, params, sources.passages, staging)
    tokenizer = ChatTokenizer(staging)
    corpus = Corpus(
        torch.from_numpy(numpy.asarray(text_stream(sources.passages, tokenizer))),
        torch.from_numpy(numpy.asarray(chat_stream(sources.passages, tokenizer, rng))),
    )
    model = _build_model(params, tokenizer, sources.base)
    _tell_what_is_given(step, params, model, sources)
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
    # A checkpoint holds the weights and at most two moments of them, in float32; one is being written beside.
    # The model itself is kept twice in 16 bits: here and in the cache.
    require_disk(step.input.folder, (12 * (params.keep_checkpoints + 1) + 4) * parameters, "This training")
    learner = Learner(step, params, model, tokenizer, corpus, length)
    loss, tokens_per_second = learner.run(checkpoint)
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


def _learn_tokenizer(step: Step, params: PretrainParams, passages: list[str], folder: Path) -> None:
    """Leave a new tokenizer with our chat template in `folder`."""
    folder.mkdir()
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
            base, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).to(device)
    ids = tokenizer.tokenizer.token_to_id
    config = LlamaConfig(
        vocab_size=_padded_vocab(1 + max(tokenizer.tokenizer.get_vocab().values())),
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


def _tell_what_is_given(step: Step, params: PretrainParams, model: Any, sources: _Sources) -> None:
    """Name the params that have no effect because a base, or a tokenizer, has settled them."""
    config = model.config
    settled: dict[str, int] = {"vocab_size": config.vocab_size} if sources.tokenizer is not None else {}
    if sources.base is not None:
        settled |= {
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "context_length": min(params.context_length, config.max_position_embeddings),
        }
    unlike = {name: value for name, value in settled.items() if value != getattr(params, name)}
    if unlike:
        source = "start_from" if sources.base is not None else "tokenizer"
        told = ", ".join(f"{name} is {value}" for name, value in unlike.items())
        step.event(f"What {source} names settles some params: {told}.", settled=unlike)


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


def _save(model: Any, tokenizer: ChatTokenizer, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig

    ids = tokenizer.tokenizer.token_to_id
    end = ids(tokenizer.special_tokens.get("eos_token", ""))
    pad = ids(tokenizer.special_tokens.get("pad_token", ""))
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad if pad is not None else end)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
