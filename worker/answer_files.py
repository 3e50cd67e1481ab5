"""The files that a job's answers become: OpenAI's output and error files of a batch, a table of answers of a
prediction. In the order of the rows; what failed, or was not asked, stands apart.
"""

import csv
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from training_data.prompts import ANSWER_COLUMNS
from worker.answers import JSON, paired

# Why a row has no answer at all, by the code that OpenAI's batches have for it.
EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was not executed, since its job was cancelled before.")
ERRORS = "errors.jsonl"
# What responses call the tokens of a prompt and of its answer.
OF_RESPONSES = {"prompt": "input", "completion": "output"}

Writer = Callable[[TextIO], Callable[[JSON], object]]


@dataclass
class Tally:
    """What came of all rows. `files`: those that were written, none of them empty."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    unasked: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "completion": 0})
    files: list[str] = field(default_factory=list)

    def count(self, answer: JSON | None) -> None:
        self.rows += 1
        if answer is None:
            self.unasked += 1
        elif answer["status"] >= 400:
            self.failed += 1
        else:
            self.answered += 1
            usage = answer["body"].get("usage") if isinstance(answer["body"], dict) else None
            for name in self.tokens:
                told = usage if isinstance(usage, dict) else {}
                tokens = told.get(f"{name}_tokens", told.get(f"{OF_RESPONSES[name]}_tokens"))
                self.tokens[name] += tokens if isinstance(tokens, int) else 0


def write_files(
    folder: Path,
    *,
    kind: str,
    params: JSON,
    read: JSON,
    requests: Path,
    answers: Path,
    job_id: str,
    missing: tuple[str, str] = EXPIRED,
) -> Tally:
    """Write the files of a job's answers into `folder`.

    Args:
        read: what the step `read` returned.
        missing: code and message for rows that were not asked.
    """
    batch = kind == "batch"
    good = "output.jsonl" if batch else f"answers.{params['output_format']}"
    as_answer = _json_lines if batch or params["output_format"] == "jsonl" else _csv_of(read["columns"])
    tally = Tally()
    with ExitStack() as stack:
        files = _Files(folder, stack, {good: as_answer, ERRORS: _json_lines})
        for request, answer in paired(requests, answers, read["rows"]):
            tally.count(answer)
            if answer is not None and answer["status"] < 400:
                line = _response(job_id, request, answer) if batch else _answer(request, answer)
                files.write(good, line)
            elif batch:
                files.write(ERRORS, _failed_response(job_id, request, answer, missing))
            else:
                files.write(ERRORS, _error(request, answer, missing))
        tally.files = files.written
    return tally


class _Files:
    """Files that come to be with their first line."""

    def __init__(self, folder: Path, stack: ExitStack, formats: dict[str, Writer]) -> None:
        self._folder, self._stack, self._formats = folder, stack, formats
        self._open: dict[str, Callable[[JSON], object]] = {}

    @property
    def written(self) -> list[str]:
        return [name for name in self._formats if name in self._open]

    def write(self, name: str, line: JSON) -> None:
        if name not in self._open:
            # Half of a surrogate pair, which a row or a model may hold, stands there as JSON escapes it.
            file = (self._folder / name).open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._open[name] = self._formats[name](self._stack.enter_context(file))
        self._open[name](line)


def _json_lines(file: TextIO) -> Callable[[JSON], object]:
    return lambda line: file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _csv_of(columns: list[str]) -> Writer:
    """The row's own columns, and those of its answer after them."""

    def begin(file: TextIO) -> Callable[[JSON], object]:
        writer = csv.writer(file)
        writer.writerow([*columns, *ANSWER_COLUMNS])

        def write(line: JSON) -> None:
            own = (line["input"].get(name) for name in columns)
            writer.writerow([*map(_cell, own), *(line[name] for name in ANSWER_COLUMNS)])

        return write

    return begin


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _response(job_id: str, request: JSON, answer: JSON) -> JSON:
    """OpenAI's line of an output file."""
    request_id = _request_id(job_id, request)
    response = {"status_code": answer["status"], "request_id": request_id, "body": answer["body"]}
    return {"id": request_id, "custom_id": request["key"], "response": response, "error": None}


def _failed_response(job_id: str, request: JSON, answer: JSON | None, missing: tuple[str, str]) -> JSON:
    """OpenAI's line of an error file."""
    request_id = _request_id(job_id, request)
    line: JSON = {"id": request_id, "custom_id": request["key"], "response": None, "error": None}
    if answer is None:
        return {**line, "error": {"code": missing[0], "message": missing[1]}}
    body = {"error": answer["error"]}
    return {**line, "response": {"status_code": answer["status"], "request_id": request_id, "body": body}}


def _request_id(job_id: str, request: JSON) -> str:
    return f"batch_req_{job_id.removeprefix('job-')}{request['row']:07d}"


def answer_of(body: Any) -> JSON:
    """What a model said, from the body of its chat completion."""
    choice = (body.get("choices") or [{}])[0] if isinstance(body, dict) else {}
    usage = (body.get("usage") if isinstance(body, dict) else None) or {}
    return {
        "answer": (choice.get("message") or {}).get("content") or "",
        "finish_reason": choice.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }


def _answer(request: JSON, answer: JSON) -> JSON:
    return {**_place(request), **answer_of(answer["body"])}


def _error(request: JSON, answer: JSON | None, missing: tuple[str, str]) -> JSON:
    said = answer["error"] if answer is not None else {"code": missing[0], "message": missing[1]}
    return {**_place(request), "error": said}


def _place(request: JSON) -> JSON:
    return {"row": request["row"], "key": request["key"], "input": request["input"]}
