"""Look at the rows of a fine-tune as its first step would read them, and train nothing."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from db.params.inspect import InspectParams
from training_data.hyperparameters import TEXT_LENGTH, enough_for
from training_data.json_files import write_json
from training_data.rows import read_prepared
from training_data.tokens import ChatTokenizer, EncodedChat, encode_row, read_template
from worker.step import Step
from worker.steps.base_model import context_length, copy_tokenizer, fetch_configuration
from worker.steps.dataset import Dataset
from worker.steps.parts import LEFT_OUT, MOST_LINES, Parts
from worker.steps.read_parts import files_read, read_parts, tell_cut
from worker.steps.runtime import prepare_runtime

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
BARS = 12
SHOWN_CHARACTERS = 20_000  # of one conversation; a database row is no place for a book
SIDES = ("chosen", "rejected")


def run(step: Step) -> dict[str, Any]:
    """Leave report.json, and the first rows with what of them is learnt."""
    prepare_runtime(step.input.settings.threads)
    params = InspectParams.model_validate(step.input.params)
    base = fetch_configuration(step.input.require_base(), step)
    copy_tokenizer(base, step.input.folder / "tokenizer")
    tokenizer = ChatTokenizer(step.input.folder / "tokenizer")
    read = read_parts(
        step, params, tokenizer, method=params.method, assistant_only=params.assistant_only_loss
    )
    dataset, context = read.parts.dataset, context_length(base)
    longest = max(dataset.longest)
    is_text = dataset.method == "pretraining"
    enough = min(context, TEXT_LENGTH) if is_text else enough_for(longest, context)
    max_length = enough if params.max_length == "auto" else params.max_length
    cut = tell_cut(step, read.parts, max_length, context)
    kept = longest if is_text else max_length  # texts are cut into pieces, and learnt whole
    samples = list(_samples(dataset, tokenizer, kept, params.rows_shown))
    dataset.remove()
    result = {
        "rows": read.parts.counts(),
        "left_out": read.parts.of.count(LEFT_OUT),
        "data_files": files_read(dataset),
        "method": dataset.method,
        "max_length": max_length,
        "context_length": context,
        "tokens": _tokens(read.parts),
        "cut": _cut(dataset, kept),
        **dataset.census.as_dict(),
        "duplicates": {"rows": len(read.parts.doubles), "lines": _some(dataset, read.parts.doubles)},
        "leaks": {
            part: {"rows": len(rows), "lines": _some(dataset, rows)}
            for part, rows in read.parts.leaked.items()
        },
        "seed": read.seed,
        "has_system_prompt": read.system.supported,
        "system_merged": read.system.merged_rows > 0,
        "chat_template_source": read_template(base)[1],
        "samples": samples,
    }
    answers = {"cut_lines": cut, "cut_answer_lines": dataset.places(_cut_answers(dataset, kept))}
    write_json(step.input.folder / "report.json", result | answers)
    step.artifact("report.json")
    return result


def _some(dataset: Dataset, rows: list[int]) -> dict[str, list[int]]:
    return dataset.places(rows[:MOST_LINES])


def _tokens(parts: Parts) -> dict[str, Any]:
    """How long rows are: of a pair, with the longer answer."""
    ordered = sorted(parts.dataset.longest)
    last = len(ordered) - 1
    return {
        "train": parts.train_tokens(),
        "mean": sum(ordered) / len(ordered),
        "shortest": ordered[0],
        "longest": ordered[-1],
        "percentiles": {f"p{percent}": ordered[round(last * percent / 100)] for percent in PERCENTILES},
        "histogram": list(_histogram(ordered)),
    }


def _histogram(ordered: list[int]) -> Iterator[dict[str, int]]:
    """Bars of one width, from the shortest row to the longest; `to` is the first length beyond."""
    low, high = ordered[0], ordered[-1] + 1
    width = max(1, -(-(high - low) // BARS))
    before = 0
    for start in range(low, high, width):
        upto = bisect_right(ordered, start + width - 1)
        yield {"from": start, "to": start + width, "rows": upto - before}
        before = upto


def _cut(dataset: Dataset, max_length: int) -> dict[str, Any]:
    """Rows that max_length cuts, and those of them of which the end of an answer is lost."""
    rows = [row for row, tokens in enumerate(dataset.longest) if tokens > max_length]
    answers = _cut_answers(dataset, max_length)
    return {
        "rows": len(rows),
        "lines": _some(dataset, rows),
        "answers": len(answers),
        "answer_lines": _some(dataset, answers),
    }


def _cut_answers(dataset: Dataset, max_length: int) -> list[int]:
    return [row for row, end in enumerate(dataset.learnt_to) if end > max_length]


def _samples(
    dataset: Dataset, tokenizer: ChatTokenizer, max_length: int, shown: int
) -> Iterator[dict[str, Any]]:
    rows = read_prepared(dataset.path)
    for index, row in zip(range(min(shown, len(dataset))), rows, strict=False):
        chats = encode_row(row, tokenizer)
        yield {
            "file": dataset.sources[dataset.source[index]].given.name,
            "line": dataset.line[index],
            "label": row.label,
            "conversations": [
                {
                    "side": SIDES[side] if len(chats) > 1 else None,
                    "tokens": len(chat.ids),
                    "learnt_tokens": sum(dataset.learnt(chat)[:max_length]),
                    "characters": len(chat.text),
                    "spans": list(_spans(chat, dataset.learnt(chat), max_length)),
                }
                for side, chat in enumerate(chats)
            ],
        }


def _spans(chat: EncodedChat, learnt: list[bool], max_length: int) -> Iterator[dict[str, Any]]:
    """The text in pieces: what bears the loss, what is only read, and what is cut off."""
    marks = ((learnt[position], position >= max_length) for position in range(len(chat.ids)))
    position = told = 0
    for (bears, cut), tokens in groupby(marks):
        count = len(list(tokens))
        end = chat.offsets[position + count - 1][1]
        position += count
        text = chat.text[told : end if position < len(chat.ids) else len(chat.text)]
        if told >= SHOWN_CHARACTERS:
            return
        told += len(text)
        yield {"text": text[:SHOWN_CHARACTERS], "learnt": bears, "cut": cut, "tokens": count}
