"""What a model is quantised by, and what it is judged on afterwards: rows or text, in tokens.

They come from a file, from what the model has learnt from, or are the topics of Python's help, which a model
from scratch learns from unless it is given a text. What it is judged on has no part in the calibration.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.source_files import check_source, rows_source, text_source
from training_data.chat_templates import merge_system_turn
from training_data.formats import RowReader, detect_format
from training_data.rows import Row, conversations, read_prepared
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.pretrain_text import read_passages, text_stream
from worker.steps.teacher_forcing import ForcedRow
from worker.steps.verify_rows import MAX_ROWS, force, spread

FILE = "input_file"
PIECE_TOKENS = 512  # of a text; as the paper's authors take 2,048, which small models cannot read
HELD_OUT_EVERY = 10
POSITIONS = 32  # of a piece of text that are judged, from all over it
HELD_OUT = ("test", "validation")


@dataclass(frozen=True)
class Calibration:
    """Args:
    name: where the tokens are from.
    rows: token ids of each row or piece.
    judged: what the result is measured on, held out from `rows` unless there is one row alone.
    held_out: whether it is.
    """

    name: str
    rows: list[list[int]]
    judged: list[ForcedRow]
    held_out: bool

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def read_calibration(step: Step, tokenizer: ChatTokenizer, context: int) -> Calibration:
    """Take rows from all over, a tenth of them to judge by, unless the model's training has held out some.

    Args:
        context: tokens that the model can read; conversations that are longer are left out, and told.
    Raises:
        InvalidInput: nothing is left to calibrate on.
    """
    name, pieces, judged = _pieces(step, tokenizer, context)
    if not pieces:
        raise InvalidInput(
            f"{name} has no row or text that the model can read: nothing to calibrate on.", param=FILE
        )
    wanted = spread(pieces, step.input.params["max_rows"])
    held_out = bool(judged)
    if not judged and len(wanted) > 1:
        judged = wanted[::HELD_OUT_EVERY]
        wanted = [piece for index, piece in enumerate(wanted) if index % HELD_OUT_EVERY]
        held_out = True
    found = Calibration(
        name=name,
        rows=[piece.ids for piece in wanted],
        judged=spread(judged or wanted, MAX_ROWS),
        held_out=held_out,
    )
    _tell(step, found, len(pieces))
    return found


def _pieces(
    step: Step, tokenizer: ChatTokenizer, context: int
) -> tuple[str, list[ForcedRow], list[ForcedRow]]:
    """The name of what is read, what is calibrated on, and what the model's own training has held out."""
    source, file_id = step.input.source, step.input.params[FILE]
    if file_id is not None:
        file = step.input.files[file_id]
        detected = detect_format(file.path, file.filename, param=FILE)
        return file.filename, _forced(step, RowReader(detected, param=FILE), tokenizer, context), []
    if source is not None and rows_source(source).is_dir():
        check_source(source)
        rows = rows_source(source)
        held_out = next(
            (rows / f"{name}.jsonl" for name in HELD_OUT if _has_rows(rows / f"{name}.jsonl")), None
        )
        judged = _forced(step, read_prepared(held_out), tokenizer, context) if held_out is not None else []
        trained = read_prepared(rows / "train.jsonl")
        return "the model's own training rows", _forced(step, trained, tokenizer, context), judged
    passages = read_passages(text_source(source) if source is not None else None)
    return "the text that the model was made from", _of_text(passages, tokenizer, context), []


def _has_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _forced(step: Step, rows: Any, tokenizer: ChatTokenizer, context: int) -> list[ForcedRow]:
    """Conversations as the template writes them, and texts in pieces."""
    found: list[ForcedRow] = []
    texts: list[str] = []
    left_out = 0
    for row in rows:
        if row.text is not None:
            texts.append(row.text)
            continue
        for chat in _chats(row, tokenizer):
            forced = force(chat, tokenizer, context)
            left_out += forced is None
            found += [forced] if forced is not None else []
    if left_out:
        step.event(
            f"{left_out} conversations have no answer, or more than {context} tokens: they are left out.",
            level="warn",
            left_out=left_out,
        )
    return found + _of_text(texts, tokenizer, context)


def _chats(row: Row, tokenizer: ChatTokenizer) -> Iterator[list[dict[str, Any]]]:
    for chat in conversations(row):
        needs_merge = chat[:1] and chat[0]["role"] == "system" and not tokenizer.template.has_system_role
        yield merge_system_turn(chat) if needs_merge else chat


def _of_text(passages: list[str], tokenizer: ChatTokenizer, context: int) -> list[ForcedRow]:
    """Text in pieces of equal length, the last one shorter."""
    if not passages:
        return []
    stream, size = text_stream(passages, tokenizer).tolist(), min(PIECE_TOKENS, context)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    return [_of_piece(ids) for ids in pieces if len(ids) > 1]


def _of_piece(ids: list[int]) -> ForcedRow:
    return ForcedRow(ids, spread(range(1, len(ids)), POSITIONS), 1, [])


def _tell(step: Step, found: Calibration, of: int) -> None:
    step.event(
        f"Calibrated on {len(found.rows)} of {of} rows of {found.name}, {found.tokens:,} tokens; judged on "
        f"{len(found.judged)}"
        + (" that are held out." if found.held_out else " of the same: there are no others."),
        level="info" if found.held_out else "warn",
        rows=len(found.rows),
        tokens=found.tokens,
        judged=len(found.judged),
        held_out=found.held_out,
    )
