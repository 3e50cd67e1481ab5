"""The methods by which an adapter learns: how rows become tokens for each, and trl's trainer of it.

All else of a training is the same for all: `train.py`.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data.rows import read_conversations, read_prepared
from training_data.tokens import ChatTokenizer, EncodedChat, encode_row

# Ids by name, int32: lists of Python's take eight times more.
TokenRow = dict[str, "array[int]"]

IGNORED = -100  # the label that no loss is computed on
LENGTH = "length"


@dataclass(frozen=True)
class Method:
    """Args:
    rows: the prepared rows of a file as its trainer takes them; None where nothing is left to learn from.
    trainer, config: trl's, with what is the method's own in the config; both import torch.
    """

    rows: Callable[[Path, ChatTokenizer, dict[str, Any]], Iterator[TokenRow | None]]
    trainer: Callable[..., Any]
    config: Callable[..., Any]


def each_row(
    encode: Callable[[list[EncodedChat], dict[str, Any]], TokenRow | None],
) -> Callable[[Path, ChatTokenizer, dict[str, Any]], Iterator[TokenRow | None]]:
    """Rows that are learnt each for itself."""

    def rows(path: Path, tokenizer: ChatTokenizer, chosen: dict[str, Any]) -> Iterator[TokenRow | None]:
        for chats in read_conversations(path):
            yield encode([tokenizer.encode_chat(chat) for chat in chats], chosen)

    return rows


def full_sequences(path: Path, tokenizer: ChatTokenizer, chosen: dict[str, Any]) -> Iterator[TokenRow | None]:
    """Documents one after the other, in sequences of max_length, of which only the last is shorter.

    Each begins with the last token of the one before: so that every token is predicted from another exactly
    once, but the very first.
    """
    stream = array("i")
    length, begins = chosen["max_length"], True
    for row in read_prepared(path):
        if begins and tokenizer.begins_with is not None:
            stream.append(tokenizer.begins_with)
        [document] = encode_row(row, tokenizer)
        stream.extend(document.ids)
        begins = not row.continues
        start = 0
        while len(stream) - start > length:
            yield _learnt_whole(stream[start : start + length])
            start += length - 1
        del stream[:start]
    yield _learnt_whole(stream) if len(stream) > 1 else None


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


def _last_answer(chat: EncodedChat) -> tuple[list[int], list[int]]:
    """The ids before the last answer, and its own; what a template writes after it is no part of either."""
    end = len(chat.ids) - next(i for i, mine in enumerate(reversed(chat.answer_mask)) if mine)
    start = end
    while start and chat.answer_mask[start - 1]:
        start -= 1
    return chat.ids[:start], chat.ids[start:end]


def _shared_length(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


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


METHODS = {
    "pretraining": Method(full_sequences, _supervised_trainer, _supervised_config),
    "supervised": Method(each_row(labelled), _supervised_trainer, _supervised_config),
    "dpo": Method(each_row(paired), _preference_trainer, _preference_config),
}
