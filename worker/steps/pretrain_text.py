"""The text a model is made from, and how it becomes tokens: plain passages and small chats.

Chats are made from the text itself: one sentence is asked about, the next one is the answer. They
teach a fresh model what a turn is and how to end one; without them its special tokens stay noise.
"""

import codecs
import random
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from db.errors import InvalidInput
from db.source_files import text_source
from training_data.chat_templates import END_OF_TEXT, OWN_MODELS, Chat
from training_data.tokens import ChatTokenizer
from worker.step import StepInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Exactly Qwen2's, so that the "qwen2" pre-tokenizer of llama.cpp cuts text as ours does. Qwen2 also
# normalises to NFC, which llama.cpp leaves out: so do we, and the two agree on every input.
PRE_TOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
MIN_TEXT_CHARACTERS = 2000
TEXTS_AT_ONCE = 4096


def read_passages(path: Path | None) -> list[str]:
    """Read the text as passages: a file's paragraphs, or the topics of Python's own help.

    Raises:
        InvalidInput: the file is not UTF-8 text, or too short to learn from.
    """
    if path is None:
        from pydoc_data.topics import topics

        return list(topics.values())
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InvalidInput(
            f"The training file is not UTF-8 text (line {line}): save it as UTF-8.", param="training_file"
        ) from None
    if len(text) < MIN_TEXT_CHARACTERS:
        raise InvalidInput(
            f"The training file holds {len(text)} characters; a model needs at least {MIN_TEXT_CHARACTERS}.",
            param="training_file",
        )
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return [paragraph for paragraph in paragraphs if paragraph.strip()]


def trained_text(step_input: StepInput) -> Path | None:
    """The text that a whole model learnt from; None: the topics of Python's help."""
    if step_input.source is not None:
        return text_source(step_input.source)
    file = step_input.files.get(step_input.params.get("training_file") or "")
    return file.path if file else None


def train_tokenizer(passages: list[str], vocab_size: int) -> "Tokenizer":
    """Learn a byte-level BPE from the text, with the special tokens of our chat template."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(token, special=True, normalized=False) for token in OWN_MODELS.special_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(passages, trainer)
    return tokenizer


def chats_from(passages: list[str], rng: random.Random) -> Iterator[Chat]:
    """Make one-turn chats of neighbouring sentences."""
    for passage in passages:
        sentences = [" ".join(s.split()) for s in SENTENCE_END.split(passage)]
        sentences = [s for s in sentences if 12 <= len(s) <= 300]
        for question, answer in zip(sentences[::2], sentences[1::2], strict=False):
            system = [{"role": "system", "content": "Answer briefly."}] if rng.random() < 0.1 else []
            yield [
                *system,
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]


def text_stream(passages: list[str], tokenizer: ChatTokenizer) -> "array[int]":
    """All passages as one row of int64 ids, the end-of-text token between them."""
    separator = tokenizer.tokenizer.token_to_id(END_OF_TEXT)
    if separator is None:
        separator = tokenizer.tokenizer.token_to_id(tokenizer.special_tokens.get("eos_token", ""))
    stream = array("q")
    for ids in _encoded(passages, tokenizer):
        stream.extend(ids)
        if separator is not None:
            stream.append(separator)
    return stream


def chat_stream(passages: list[str], tokenizer: ChatTokenizer, rng: random.Random) -> "array[int]":
    """Chats made of the passages, rendered and joined; empty when the text has no sentences."""
    rendered = [tokenizer.template.render(chat) for chat in chats_from(passages, rng)]
    rng.shuffle(rendered)
    stream = array("q")
    for ids in _encoded(rendered, tokenizer):
        stream.extend(ids)
    return stream


def _encoded(texts: list[str], tokenizer: ChatTokenizer) -> Iterator[list[int]]:
    """Encode some at a time: an encoding takes a hundred times the memory of its text."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        for encoding in tokenizer.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield encoding.ids
