"""Read, check, split and count the rows of a fine-tune, and settle what `auto` means for it.

Nothing is silent: what was ignored, merged, doubled or would be cut is told as an event and stands in
the result.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from training_data.chat_templates import WEIGHT, Chat, ChatTemplateError, merge_system_turn
from training_data.formats import DetectedFormat, Reading, RowReader, check_method, detect_format, no_rows
from training_data.hyperparameters import resolve
from training_data.json_files import write_json
from training_data.presets import told
from training_data.rows import Row, write_rows
from training_data.snapshots import Snapshot
from training_data.splits import split_rows
from training_data.tokens import ChatTokenizer, EncodedChat, encode_row, read_template
from worker.step import FileInput, Step
from worker.steps.base_model import context_length, copy_tokenizer, count_parameters, fetch_base
from worker.steps.runtime import prepare_runtime
from worker.steps.source_rows import PARAM as SOURCE_PARAM
from worker.steps.source_rows import as_file, read_snapshot

LINES_NAMED = 10  # in a message; the report names all
PROGRESS_EVERY_ROWS = 2000
KEEPS_FIELDS = ("grpo",)  # whose reward functions are given a row's other columns
ROWS_COMPARED = 200  # with the prompt they will be asked by


@dataclass
class Measured:
    """Rows with their token counts, and how their file is written.

    Args:
        tokens: of each row; of a pair, with each of its answers.
        longest: of each row; of a pair, with the longer answer.
    """

    detected: DetectedFormat
    rows: list[Row] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)


def run(step: Step) -> dict[str, Any]:
    """Leave train.jsonl, validation.jsonl, test.jsonl, report.json and the base's tokenizer."""
    prepare_runtime(step.input.settings.threads)
    params = FineTuneParams.model_validate(step.input.params)
    if step.input.base is None:
        raise InvalidInput("A fine-tune needs a base model.", param="base_model")
    base = fetch_base(step.input.base, step)
    copy_tokenizer(base, step.input.folder / "tokenizer")
    _, template_source = read_template(base)
    tokenizer = ChatTokenizer(step.input.folder / "tokenizer")
    seed = params.seed if params.seed != -1 else secrets.randbelow(2**31)
    if params.seed == -1:
        step.event(f"Drew the seed {seed}.", seed=seed)

    system = _SystemTurns(tokenizer, params)
    _check_system_role(tokenizer, params)
    snapshot = read_snapshot(step, params.fold_column)
    training = (
        _measure(step, "training_file", params, tokenizer, system)
        if snapshot is None
        else _measure(step, SOURCE_PARAM, params, tokenizer, system, kept=snapshot)
    )
    _tell_duplicates(step, training.rows)
    _tell_unweighted(step, training.rows, params)
    evaluation = (
        _measure(step, "validation_file", params, tokenizer, system) if params.validation_file else None
    )
    system.tell(step)
    if snapshot is not None and params.fold_column is not None:
        parts = _split_by_fold(training, snapshot, params)
    else:
        parts = _split(training, evaluation, params.train_size, seed)
    for name, part in parts.items():
        write_rows(step.input.folder / f"{name}.jsonl", part.rows)

    chosen = resolve(
        params.model_dump(mode="json"),
        parameters=count_parameters(base),
        rows=len(parts["train"].rows),
        longest=_longest(parts),
        context_length=context_length(base),
    )
    said = told(params.model_dump(mode="json"), chosen)
    if said is not None:
        step.event(said, preset=params.preset)
    cut = _tell_cut(step, parts, chosen["max_length"], context_length(base))
    result = _result(
        parts=parts,
        detected=training.detected,
        chosen=chosen,
        system=system,
        seed=seed,
        cut=cut,
        template_source=template_source,
    )
    if step.input.base.source == "hub":
        result["base_revision"] = base.name  # the client's cache names a snapshot by its commit
        step.event(f"{step.input.base.name} is taken at commit {base.name}.", revision=base.name)
    if snapshot is not None:
        result["dataset"] = {"name": snapshot.path.name, "rows": snapshot.rows, "sha256": snapshot.sha256}
    write_json(step.input.folder / "report.json", {**result, "cut_lines": cut})
    step.artifact("report.json")
    _tell_summary(step, result)
    return result


def _longest(parts: dict[str, Measured]) -> int:
    return max(tokens for part in parts.values() for tokens in part.longest)


def _check_system_role(tokenizer: ChatTokenizer, params: FineTuneParams) -> None:
    """Refuse to train on system turns that the template would leave out without a word."""
    if params.has_system_prompt is True and not tokenizer.template.has_system_role:
        raise InvalidInput(
            "has_system_prompt is true, and the base model's chat template shows no system turn: leave it "
            "out, or set it to false to have system turns merged into the first user turn.",
            param="has_system_prompt",
        )


class _SystemTurns:
    """Adds the asked system turn to rows without one; merges it where a template has no role for it."""

    def __init__(self, tokenizer: ChatTokenizer, params: FineTuneParams) -> None:
        self.supported = (
            tokenizer.template.has_system_role
            if params.has_system_prompt == "auto"
            else bool(params.has_system_prompt)
        )
        self.detected = params.has_system_prompt == "auto"
        self._prompt = (params.system_prompt or "").strip()
        self.merged_rows = 0

    def apply(self, messages: Chat) -> Chat:
        if not messages:
            return messages  # plain text
        if self._prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._prompt}, *messages]
        if not self.supported and messages[0]["role"] == "system":
            self.merged_rows += 1
            return merge_system_turn(messages)
        return messages

    def tell(self, step: Step) -> None:
        if self.merged_rows:
            why = "The chat template has no system role" if self.detected else "has_system_prompt is false"
            step.event(
                f"{why}: the system turn of {self.merged_rows} rows was merged into the first user turn.",
                level="warn",
                merged_rows=self.merged_rows,
            )


def _tell_unused(step: Step, unused: set[str], fold_column: str | None) -> None:
    ignored = sorted(unused - {fold_column})
    if ignored:
        step.event(
            f"These columns are not used: {', '.join(ignored)}.", level="warn", ignored_columns=ignored
        )


def _detect(step: Step, file: FileInput, param: str, reading: Reading) -> DetectedFormat:
    detected = detect_format(file.path, file.filename, reading=reading, param=param)
    encoded = f", in {detected.encoding}" if detected.encoding else ""
    step.event(
        f"{file.filename} is {detected.kind.upper()} with {detected.columns}{encoded}.",
        format=detected.shape.name,
        encoding=detected.encoding,
    )
    if detected.table.is_guessed:
        step.event(
            f"{file.filename} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if letters come "
            "out wrong.",
            level="warn",
            encoding=detected.encoding,
        )
    return detected


def _measure(
    step: Step,
    param: str,
    params: FineTuneParams,
    tokenizer: ChatTokenizer,
    system: _SystemTurns,
    *,
    kept: Snapshot | None = None,
) -> Measured:
    """Read all rows of a file as the chat template will show them, with their tokens.

    Raises:
        InvalidInput: a row does not parse, or the template refuses it; the message names the line.
    """
    file = step.input.files[getattr(params, param)] if kept is None else as_file(kept)
    reading = Reading(params.format, params.columns)
    measured = Measured(_detect(step, file, param, reading))
    check_method(measured.detected, params.method, file.filename, param=param)
    unlike = 0
    reader = RowReader(measured.detected, reading, param=param, keep_fields=params.method in KEEPS_FIELDS)
    for read in reader:
        row = replace(read, messages=system.apply(read.messages))
        chats = _encoded(row, tokenizer, param)
        if len(measured.rows) < ROWS_COMPARED and row.messages and not row.is_prompt:
            prompt = tokenizer.encode_prompt(row.messages[:-1])
            unlike += chats[0].ids[: len(prompt)] != prompt
        measured.rows.append(row)
        measured.tokens.append(sum(len(chat.ids) for chat in chats))
        measured.longest.append(max(len(chat.ids) for chat in chats))
        if len(measured.rows) % PROGRESS_EVERY_ROWS == 0:
            step.event(f"Read {len(measured.rows):,} rows.", rows=len(measured.rows))
    if not measured.rows:
        raise no_rows(file.filename, param)
    _tell_unused(step, reader.unused, params.fold_column)
    if unlike:
        _tell_unlike_prompts(step, unlike, min(len(measured.rows), ROWS_COMPARED))
    return measured


def _encoded(row: Row, tokenizer: ChatTokenizer, param: str) -> list[EncodedChat]:
    """The conversation, and of a pair the one with the other answer too."""
    try:
        chats = encode_row(row, tokenizer)
    except ChatTemplateError as error:
        raise InvalidInput(f"{row.place}: {error}.", param=param) from None
    if not row.is_prompt and not all(any(chat.answer_mask) for chat in chats):
        raise InvalidInput(f"{row.place}: the chat template shows no answer.", param=param)
    return chats


def _tell_unlike_prompts(step: Step, unlike: int, compared: int) -> None:
    step.event(
        f"In {unlike} of the first {compared} rows the answer does not follow the prompt that the model will "
        "be asked with: the chat template writes a finished conversation otherwise, or the tokenizer joins "
        "the two.",
        level="warn",
        rows=unlike,
    )


def _tell_duplicates(step: Step, rows: Iterable[Row]) -> None:
    first_seen: dict[int, int] = {}
    doubles = []
    for row in rows:
        said = tuple((message["role"], message["content"]) for message in row.messages)
        key = hash((said, row.rejected, row.label, row.text))
        if first_seen.setdefault(key, row.line) != row.line:
            doubles.append(row.line)
    if doubles:
        step.event(
            f"{len(doubles)} rows say what an earlier row says ({_name_lines(doubles)}); they are kept.",
            level="warn",
            lines=doubles[:1000],
        )


def _tell_unweighted(step: Step, rows: Iterable[Row], params: FineTuneParams) -> None:
    answers = sum(WEIGHT in message for row in rows for message in row.messages)
    if not answers:
        return
    if params.assistant_only_loss:
        step.event(f"{answers} answers have weight 0: they are read, and not learnt.", unweighted=answers)
    else:
        step.event(
            f"{answers} answers have weight 0, and are learnt all the same: assistant_only_loss is false.",
            level="warn",
            unweighted=answers,
        )


def _split(
    training: Measured, evaluation: Measured | None, train_size: float | None, seed: int
) -> dict[str, Measured]:
    if evaluation is not None:
        return {"train": training, "validation": evaluation, "test": Measured(evaluation.detected)}
    split = split_rows(len(training.rows), train_size, seed)
    return {
        name: Measured(
            training.detected,
            [training.rows[i] for i in indices],
            [training.tokens[i] for i in indices],
            [training.longest[i] for i in indices],
        )
        for name, indices in (("train", split.train), ("validation", split.validation), ("test", split.test))
    }


def _split_by_fold(training: Measured, snapshot: Snapshot, params: FineTuneParams) -> dict[str, Measured]:
    """Hold out the rows of the folds that are named.

    Raises:
        InvalidInput: a fold has no row, or no row is left to train on.
    """
    there = sorted(set(snapshot.folds))
    held_out = dict.fromkeys(params.validation_folds, "validation") | dict.fromkeys(params.test_folds, "test")
    for fold, name in held_out.items():
        if fold not in there:
            raise InvalidInput(
                f"{name}_folds: no row has {params.fold_column} {fold!r}. There are: "
                f"{', '.join(there)[:500]}.",
                param=f"{name}_folds",
            )
    parts = {name: Measured(training.detected) for name in ("train", "validation", "test")}
    for index, row in enumerate(training.rows):
        part = parts[held_out.get(snapshot.folds[row.line - 1], "train")]
        part.rows.append(row)
        part.tokens.append(training.tokens[index])
        part.longest.append(training.longest[index])
    if not parts["train"].rows:
        raise InvalidInput("Every fold is held out: there is no row to train on.", param="validation_folds")
    return parts


def _tell_cut(step: Step, parts: dict[str, Measured], max_length: int, context: int) -> dict[str, list[int]]:
    """Name the lines that are longer than max_length, by split.

    Raises:
        InvalidInput: max_length is more than the base model was made for.
    """
    if max_length > context:
        raise InvalidInput(
            f"max_length {max_length} is more than the {context} tokens of the base model.",
            param="max_length",
        )
    cut = {
        name: [row.line for row, tokens in zip(part.rows, part.longest, strict=True) if tokens > max_length]
        for name, part in parts.items()
    }
    lines = sorted(line for found in cut.values() for line in found)
    if lines:
        step.event(
            f"{len(lines)} rows are longer than max_length {max_length} and will be cut, their end being "
            f"lost to training: {_name_lines(lines)}. Raise max_length or shorten them.",
            level="warn",
            max_length=max_length,
            lines=lines[:1000],
        )
    return cut


def _name_lines(lines: list[int]) -> str:
    named = ", ".join(map(str, lines[:LINES_NAMED]))
    return f"lines {named}" + (f" and {len(lines) - LINES_NAMED} more" if len(lines) > LINES_NAMED else "")


def _result(
    *,
    parts: dict[str, Measured],
    detected: DetectedFormat,
    chosen: dict[str, Any],
    system: _SystemTurns,
    seed: int,
    cut: dict[str, list[int]],
    template_source: str,
) -> dict[str, Any]:
    tokens = parts["train"].tokens
    return {
        "rows": {name: len(part.rows) for name, part in parts.items()},
        "tokens": {
            "train": sum(tokens),
            "mean": fmean(tokens),
            "longest": _longest(parts),
            "over_max_length": sum(map(len, cut.values())),
        },
        "format": detected.columns,
        "encoding": detected.encoding,
        "max_length": chosen["max_length"],
        "has_system_prompt": system.supported,
        "system_merged": system.merged_rows > 0,
        "seed": seed,
        "chat_template_source": template_source,
        "hyperparameters": chosen,
    }


def _tell_summary(step: Step, result: dict[str, Any]) -> None:
    rows, tokens = result["rows"], result["tokens"]
    step.event(
        f"{rows['train']} rows to train on, {rows['validation']} to validate, {rows['test']} to test; "
        f"{tokens['train']:,} tokens, {tokens['longest']} in the longest row, max_length "
        f"{result['max_length']}.",
        rows=rows,
        tokens=tokens,
    )
    if result["chat_template_source"].startswith("lathe:"):
        step.event(
            "The base model brings no chat template: a plain one of questions and answers is used.",
            level="warn",
            chat_template_source=result["chat_template_source"],
        )
