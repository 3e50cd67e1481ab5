"""A row as the trainer of each method takes it: tokens, of which some are learnt."""

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training_data.encoded_rows import encoded_rows
from training_data.tokens import ChatTokenizer, EncodedChat, last_answer

# By name; ids are int32: lists of Python's take eight times more.
TokenRow = dict[str, Any]

IGNORED = -100  # the label that no loss is computed on
LENGTH = "length"
LABEL = "label"
PROMPT, COLUMNS = "prompt", "columns"


def each_row(
    encode: Callable[[list[EncodedChat], dict[str, Any]], TokenRow | None],
) -> Callable[[Path, ChatTokenizer, dict[str, Any]], Iterator[TokenRow | None]]:
    """Rows that are learnt each for itself."""

    def rows(path: Path, tokenizer: ChatTokenizer, chosen: dict[str, Any]) -> Iterator[TokenRow | None]:
        for row, chats in encoded_rows(path, tokenizer):
            encoded = encode(chats, chosen)
            if encoded is not None and row.label is not None:
                encoded[LABEL] = array("i", [row.label])
            yield encoded

    return rows


def full_sequences(path: Path, tokenizer: ChatTokenizer, chosen: dict[str, Any]) -> Iterator[TokenRow | None]:
    """Documents one after the other, in sequences of max_length, of which only the last is shorter.

    Each begins with the last token of the one before: so that every token is predicted from another exactly
    once, but the very first.
    """
    stream = array("i")
    length, begins = chosen["max_length"], True
    for row, [document] in encoded_rows(path, tokenizer):
        if begins and tokenizer.begins_with is not None:
            stream.append(tokenizer.begins_with)
        stream.extend(document.ids)
        begins = not row.continues
        start = 0
        while len(stream) - start > length:
            yield _learnt_whole(stream[start : start + length])
            start += length - 1
        del stream[:start]
    if len(stream) > 1:  # a single token is the last of the sequence before
        yield _learnt_whole(stream)


def prompts(path: Path, tokenizer: ChatTokenizer, chosen: dict[str, Any]) -> Iterator[TokenRow | None]:
    """What the model is to answer, as messages, with the row's other columns as JSON; None where no room is
    left within max_length for an answer of max_completion_length."""
    room = chosen["max_length"] - chosen["max_completion_length"]
    for row, [chat] in encoded_rows(path, tokenizer):
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in row.messages]
        fits = len(chat.ids) <= room
        yield {PROMPT: messages, COLUMNS: json.dumps(row.fields)} if fits else None


def _learnt_whole(ids: "array[int]") -> TokenRow:
    return {"input_ids": ids, "labels": ids}


def labelled(chats: list[EncodedChat], chosen: dict[str, Any]) -> TokenRow | None:
    """A conversation, cut at max_length, with the tokens that are learnt as labels."""
    [chat] = chats
    ids = chat.ids[: chosen["max_length"]]
    labels = [
        token if answer or not chosen["assistant_only_loss"] else IGNORED
        for token, answer in zip(ids, chat.answer_mask[: len(ids)], strict=True)
    ]
    if all(label == IGNORED for label in labels):
        return None
    return {"input_ids": array("i", ids), "labels": array("i", labels)}


def paired(chats: list[EncodedChat], chosen: dict[str, Any]) -> TokenRow | None:
    """What comes before, and both last answers up to their ends, each conversation cut at max_length."""
    (better_prompt, better), (worse_prompt, worse) = (_last_answer(chat) for chat in chats)
    # A tokenizer may join the prompt's end with the answer's beginning, and for each answer otherwise.
    shared = _shared_length(better_prompt, worse_prompt)
    room = chosen["max_length"] - shared
    better, worse = (better_prompt[shared:] + better)[:room], (worse_prompt[shared:] + worse)[:room]
    if room <= 0 or better == worse:
        return None
    return {
        "prompt_ids": array("i", better_prompt[:shared]),
        "chosen_ids": array("i", better),
        "rejected_ids": array("i", worse),
        LENGTH: array("i", [shared + max(len(better), len(worse))]),
    }


def judged(chats: list[EncodedChat], chosen: dict[str, Any]) -> TokenRow | None:
    """What comes before the last answer, and it up to its end, cut at max_length."""
    [chat] = chats
    prompt, answer = _last_answer(chat)
    answer = answer[: max(0, chosen["max_length"] - len(prompt))]
    if not answer:
        return None
    return {"prompt_ids": array("i", prompt), "completion_ids": array("i", answer)}


def compared(chats: list[EncodedChat], chosen: dict[str, Any]) -> TokenRow | None:
    """Both conversations up to the ends of their last answers, each cut at max_length."""
    ended = [prompt + answer for prompt, answer in map(_last_answer, chats)]
    better, worse = (ids[: chosen["max_length"]] for ids in ended)
    if better == worse:
        return None
    return {
        "chosen_ids": array("i", better),
        "rejected_ids": array("i", worse),
        LENGTH: array("i", [max(len(better), len(worse))]),
    }


def _last_answer(chat: EncodedChat) -> tuple[list[int], list[int]]:
    """The ids before the last answer, and its own."""
    start, end = last_answer(chat)
    return chat.ids[:start], chat.ids[start:end]


def _shared_length(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
