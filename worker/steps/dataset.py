"""The rows of a fine-tune, read from its files as the chat template will show them: for `prepare`, and for a
look at the data before anything is trained.

Nothing is silent: what was ignored, merged or is odd is told as an event. The rows themselves go to a file
as they are read; only figures of each stay in memory.
"""

import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from db.errors import InvalidInput, InvalidLines
from db.params.data import DataParams
from training_data.census import Census
from training_data.chat_templates import Chat, ChatTemplateError, merge_system_turn
from training_data.duplicates import asked, said
from training_data.encoded_rows import record_of, tokens_of
from training_data.formats import (
    DetectedFormat,
    Reading,
    RowReader,
    check_method,
    detect_format,
    validation_reading,
)
from training_data.reward_settings import RESERVED
from training_data.rows import Row, as_prompt, line_of
from training_data.shapes import method_for
from training_data.snapshots import Snapshot
from training_data.tokens import ChatTokenizer, EncodedChat, encode_row, learnt
from worker.step import FileInput, Step
from worker.steps.kept_rows import KeptRows
from worker.steps.source_rows import PARAM as SOURCE_PARAM
from worker.steps.source_rows import as_file

READ = "read"  # the folder of what was read
SPOOL, FIGURES = "rows.jsonl", "figures.bin"
OF_EACH_ROW = ("source", "line", "tokens", "longest", "learnt_to", "said", "asked")
OF_EACH_SOURCE = ("rows", "unused", "compared", "unlike")
LINES_NAMED = 10  # in a message; the report names all
PROBLEMS_TOLD = 100
PROGRESS_EVERY_ROWS = 2000
KEEPS_FIELDS = ("grpo",)  # whose reward functions are given a row's other columns
ROWS_COMPARED = 200  # with the prompt they will be asked by


@dataclass(frozen=True)
class GivenFile:
    """A file of rows, as a job's params name it.

    Args:
        weight: how often each of its training rows is trained on.
        held_out: it is only evaluated on.
    """

    file: FileInput
    param: str
    reading: Reading
    weight: float = 1.0
    held_out: bool = False

    @property
    def name(self) -> str:
        return self.file.filename


@dataclass
class Source:
    """One of the files, once it is known what it holds.

    Args:
        rows: how many were read.
        unused: columns that no row is made of.
        compared: of how many rows the prompt was compared with the one that the model will be asked by.
        unlike: in how many of these the answer does not follow it.
    """

    given: GivenFile
    detected: DetectedFormat
    rows: int = 0
    unused: list[str] = field(default_factory=list)
    compared: int = 0
    unlike: int = 0


@dataclass
class Dataset:
    """All rows of all files, in order: what they are lies in `path`, a line each, as `Row`s, and their tokens
    beside it.

    Args:
        folder: holds these files, and nothing else.
        source: of each row, the index of its file in `sources`; `line` in it, or number.
        tokens: of a pair, with each of its answers.
        longest: of a pair, with the longer answer.
        learnt_to: where the last token that is learnt ends.
        said, asked: keys by which rows that say, or ask, the same are found.
    """

    folder: Path
    sources: list[Source]
    method: str
    assistant_only: bool
    source: "array[int]" = field(default_factory=lambda: array("H"))
    line: "array[int]" = field(default_factory=lambda: array("Q"))
    tokens: "array[int]" = field(default_factory=lambda: array("Q"))
    longest: "array[int]" = field(default_factory=lambda: array("Q"))
    learnt_to: "array[int]" = field(default_factory=lambda: array("Q"))
    said: "array[int]" = field(default_factory=lambda: array("Q"))
    asked: "array[int]" = field(default_factory=lambda: array("Q"))
    census: Census = field(default_factory=Census)

    def __len__(self) -> int:
        return len(self.line)

    @property
    def path(self) -> Path:
        return self.folder / SPOOL

    def append(self, row: Row, source: int, chats: list[EncodedChat]) -> None:
        self.source.append(source)
        self.line.append(row.line)
        self.tokens.append(sum(len(chat.ids) for chat in chats))
        self.longest.append(max(len(chat.ids) for chat in chats))
        self.learnt_to.append(max(_end(self.learnt(chat)) for chat in chats))
        self.said.append(said(row))
        self.asked.append(asked(row))
        self.census.count(row, f"{self.sources[source].given.name}:{row.line}")

    def learnt(self, chat: EncodedChat) -> list[bool]:
        """Which tokens are learnt."""
        return learnt(chat, self.method, assistant_only=self.assistant_only)

    def recipe(self) -> dict[str, Any]:
        """What the rows depend on, beside the content of their files."""
        given = [source.given for source in self.sources]
        return {
            "method": self.method,
            "assistant_only": self.assistant_only,
            "read": [[each.name, each.held_out, each.reading.format, each.reading.columns] for each in given],
        }

    def save(self) -> dict[str, Any]:
        """Write the figures of each row beside the rows. Gives all else that `load` has to know."""
        with (self.folder / FIGURES).open("wb") as file:
            for name in OF_EACH_ROW:
                getattr(self, name).tofile(file)
        return {
            "rows": len(self),
            "census": self.census.as_json(),
            "sources": [{name: getattr(source, name) for name in OF_EACH_SOURCE} for source in self.sources],
        }

    def load(self, saved: dict[str, Any]) -> None:
        with (self.folder / FIGURES).open("rb") as file:
            for name in OF_EACH_ROW:
                getattr(self, name).fromfile(file, saved["rows"])
        self.census = Census.from_json(saved["census"])
        for source, figures in zip(self.sources, saved["sources"], strict=True):
            for name in OF_EACH_SOURCE:
                setattr(source, name, figures[name])

    def remove(self) -> None:
        """Take the files away."""
        shutil.rmtree(self.folder)

    def places(self, rows: Iterable[int]) -> dict[str, list[int]]:
        """The lines of rows, or their numbers, by the file they are in."""
        found: dict[str, list[int]] = {}
        for row in rows:
            found.setdefault(self.sources[self.source[row]].given.name, []).append(self.line[row])
        return found

    def name(self, rows: list[int]) -> str:
        """The first of them as a person finds them: lines 3, 8 and 2 more."""
        parts = []
        for source, file in enumerate(self.sources):
            here = [self.line[row] for row in rows[:LINES_NAMED] if self.source[row] == source]
            if here:
                of = f" of {file.given.name}" if len(self.sources) > 1 else ""
                parts.append(f"{file.detected.table.counted}s {', '.join(map(str, here))}{of}")
        more = f" and {len(rows) - LINES_NAMED} more" if len(rows) > LINES_NAMED else ""
        return "; ".join(parts) + more


def _end(mask: list[bool]) -> int:
    return next((len(mask) - i for i, mine in enumerate(reversed(mask)) if mine), 0)


def files_of(step: Step, params: DataParams, snapshot: Snapshot | None) -> list[GivenFile]:
    """The files that a job's params name, those that are trained on first."""
    reading = Reading(params.format, params.columns)
    files = step.input.files
    if snapshot is not None:
        found = [GivenFile(as_file(snapshot), SOURCE_PARAM, reading)]
    elif params.training_file is not None:
        found = [GivenFile(files[params.training_file], "training_file", reading)]
    else:
        found = [
            GivenFile(files[each.file], "training_files", Reading(each.format, each.columns), each.weight)
            for each in params.training_files
        ]
    if params.validation_file is not None:
        own = validation_reading(params)
        found.append(GivenFile(files[params.validation_file], "validation_file", own, held_out=True))
    return found


class SystemTurns:
    """Adds the asked system turn to rows without one; merges it where a template has no role for it.

    Raises:
        InvalidInput: the template would leave out what is to be a system turn.
    """

    def __init__(self, tokenizer: ChatTokenizer, params: DataParams) -> None:
        has_role = tokenizer.template.has_system_role
        self.detected = params.has_system_prompt == "auto"
        self.supported = has_role if self.detected else bool(params.has_system_prompt)
        if self.supported and not has_role:
            raise InvalidInput(
                "has_system_prompt is true, and the base model's chat template shows no system turn: leave "
                "it out, or set it to false to have system turns merged into the first user turn.",
                param="has_system_prompt",
            )
        self.prompt = (params.system_prompt or "").strip()
        self.merged_rows = 0

    def apply(self, messages: Chat) -> Chat:
        if not messages:
            return messages  # plain text
        if self.prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.prompt}, *messages]
        if not self.supported and messages[0]["role"] == "system":
            self.merged_rows += 1
            return merge_system_turn(messages)
        return messages

    def recipe(self) -> dict[str, Any]:
        """What rows become by this."""
        return {"system_turns": self.supported, "system_prompt": self.prompt}

    def tell(self, step: Step) -> None:
        if self.merged_rows:
            why = "The chat template has no system role" if self.detected else "has_system_prompt is false"
            step.event(
                f"{why}: the system turn of {self.merged_rows} rows was merged into the first user turn.",
                level="warn",
                merged_rows=self.merged_rows,
            )


def read_dataset(
    step: Step,
    files: list[GivenFile],
    tokenizer: ChatTokenizer,
    system: SystemTurns,
    *,
    method: str | None,
    assistant_only: bool = True,
    fold_column: str | None = None,
    every: int = 1,
) -> Dataset:
    """Read all rows of all files.

    Args:
        method: that the rows are for; None: what the first file's can be learnt by.
        every: read only every so manieth row of what is trained on.
        fold_column: is used, though no row is made of it.
    Raises:
        InvalidInput: a file is none of rows, or not of what the method learns from.
        InvalidLines: rows do not parse, or the template refuses them; each of the first hundred is named.
    """
    sources = []
    for given in files:
        detected = _detect(step, given)
        method = method or method_for(detected.shape)
        check_method(detected, method, given.name, param=given.param)
        sources.append(Source(given, detected))
    dataset = Dataset(step.input.folder / READ, sources, method or "", assistant_only)
    recipe = dataset.recipe() | system.recipe() | {"fold_column": fold_column, "every": every}
    kept = KeptRows(step, recipe, [given.file.path for given in files], tokenizer)
    told = kept.take(dataset.folder)
    if told is not None:
        dataset.load(told)
        system.merged_rows = told["merged_rows"]
    else:
        _Reader(step, dataset, tokenizer, system, {fold_column}, every).read_all()
        kept.keep(dataset.folder, dataset.save() | {"merged_rows": system.merged_rows})
    for source in sources:
        _tell_read(step, source)
    system.tell(step)
    return dataset


def _detect(step: Step, given: GivenFile) -> DetectedFormat:
    detected = detect_format(given.file.path, given.name, reading=given.reading, param=given.param)
    encoded = f", in {detected.encoding}" if detected.encoding else ""
    step.event(
        f"{given.name} is {detected.kind.upper()} with {detected.columns}{encoded}.",
        format=detected.shape.name,
        encoding=detected.encoding,
    )
    if detected.table.is_guessed:
        step.event(
            f"{given.name} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if letters come out "
            "wrong.",
            level="warn",
            encoding=detected.encoding,
        )
    return detected


@dataclass(frozen=True)
class _Reader:
    """Reads the rows of each file into a dataset."""

    step: Step
    dataset: Dataset
    tokenizer: ChatTokenizer
    system: SystemTurns
    used: set[str | None]
    every: int
    kept: set[str] = field(default_factory=set)  # columns that rewards are given

    def read_all(self) -> None:
        path = self.dataset.path
        path.parent.mkdir()
        with path.open("w", encoding="utf-8") as spool, tokens_of(path).open("wb") as tokens:
            for index in range(len(self.dataset.sources)):
                self._read(index, spool, tokens)

    def _read(self, index: int, spool: IO[str], tokens: IO[bytes]) -> None:
        source = self.dataset.sources[index]
        given = source.given
        wrong = _Problems(given.param)
        rows = RowReader(
            source.detected,
            given.reading,
            param=given.param,
            keep_fields=self.dataset.method in KEEPS_FIELDS,
            refused=wrong.collect,
        )
        for read in islice(rows, 0, None, 1 if given.held_out else self.every):
            with wrong.collected(read):
                row = self._as_learnt(read, given.param)
                chats = _encoded(row, self.tokenizer, given.param)
                _compare_prompt(source, row, chats[0], self.tokenizer)
                self.dataset.append(row, index, chats)
                spool.write(line_of(row))
                tokens.write(record_of(chats))
                source.rows += 1
                if source.rows % PROGRESS_EVERY_ROWS == 0:
                    self.step.event(f"Read {source.rows:,} rows.", rows=source.rows)
        wrong.raise_any()
        source.unused = sorted(filter(None, rows.unused - self.used - self.kept))

    def _as_learnt(self, read: Row, param: str) -> Row:
        """The row as the method takes it.

        Raises:
            InvalidInput: it cannot be had so.
        """
        row = replace(read, messages=self.system.apply(read.messages))
        if self.dataset.method not in KEEPS_FIELDS:
            return row
        columns = {name: value for name, value in row.fields.items() if name not in RESERVED}
        row = as_prompt(replace(row, fields=columns), param=param)
        try:
            line_of(row).encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                f"{row.place}: a column holds half of a character: write the whole one, as UTF-8.",
                param=param,
            ) from None
        self.kept.update(columns)
        return row


def _encoded(row: Row, tokenizer: ChatTokenizer, param: str) -> list[EncodedChat]:
    """The conversation, and of a pair the one with the other answer too."""
    try:
        chats = encode_row(row, tokenizer)
    except ChatTemplateError as error:
        raise InvalidInput(f"{row.place}: {error}.", param=param) from None
    if not row.is_prompt and not all(any(chat.answer_mask) for chat in chats):
        raise InvalidInput(f"{row.place}: the chat template shows no answer.", param=param)
    return chats


class _Problems:
    """What is wrong with rows of one file, until there is enough of it."""

    def __init__(self, param: str) -> None:
        self._param = param
        self._found: list[dict[str, Any]] = []

    def collect(self, line: int, error: InvalidInput) -> None:
        self._found.append({"line": line, "code": error.code, "message": error.message, "param": self._param})
        if len(self._found) >= PROBLEMS_TOLD:
            self.raise_any()

    @contextmanager
    def collected(self, row: Row) -> Iterator[None]:
        try:
            yield
        except InvalidInput as error:
            self.collect(row.line, error)

    def raise_any(self) -> None:
        if self._found:
            more = len(self._found) >= PROBLEMS_TOLD
            raise InvalidLines(self._found, more=more, param=self._param, placed=True)


def _compare_prompt(source: Source, row: Row, chat: EncodedChat, tokenizer: ChatTokenizer) -> None:
    """Count whether the answer follows, in training, the very prompt that the model will be asked with."""
    if source.compared >= ROWS_COMPARED or row.is_prompt or not row.messages:
        return
    source.compared += 1
    prompt = tokenizer.encode_prompt(row.messages[:-1])
    source.unlike += chat.ids[: len(prompt)] != prompt


def _tell_read(step: Step, source: Source) -> None:
    if source.unused:
        step.event(
            f"These columns are not used: {', '.join(source.unused)}.",
            level="warn",
            ignored_columns=source.unused,
        )
    if source.unlike:
        step.event(
            f"In {source.unlike} of the first {source.compared} rows the answer does not follow the prompt "
            "that the model will be asked with: the chat template writes a finished conversation otherwise, "
            "or the tokenizer joins the two.",
            level="warn",
            rows=source.unlike,
        )
