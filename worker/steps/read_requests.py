"""Check the requests of a batch, every line of its file, before the first one is sent.

OpenAI's form: {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {"model": …, …}}
"""

import json
from dataclasses import dataclass, field
from typing import Any

from db.errors import InvalidInput, InvalidLines
from db.storable import refuse_deep
from worker.answers import REQUESTS
from worker.step import Step
from worker.steps import batched_responses

PARAM = "input_file"
PROBLEMS_TOLD = 100
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_ID_CHARACTERS, MAX_MODEL_CHARACTERS = 512, 400
SHOWN_CHARACTERS = 80
TELL_EVERY_ROWS = 5_000
# What a body must have to be asked at all.
NEEDED = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    batched_responses.ENDPOINT: "input",
}
# Answers that rest on documents are searched for by the API, which is not asked here.
OF_THE_API = ("collections", "documents")


def run(step: Step) -> dict[str, Any]:
    """Leave `requests.jsonl`.

    Raises:
        InvalidLines: some line is wrong; each of the first hundred is named.
    """
    file = step.input.files[step.input.params["input_file"]]
    checked = _Checked(step.input.params["endpoint"])
    rows = 0
    with file.path.open("rb") as lines, (step.input.folder / REQUESTS).open("w", encoding="utf-8") as out:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if not line.strip():
                continue
            request = checked.read(number, line)
            if len(line) > MAX_LINE_BYTES or len(checked.problems) >= PROBLEMS_TOLD:
                break
            if request is not None:
                rows += 1
                out.write(json.dumps({"row": rows, **request}) + "\n")
            if number % TELL_EVERY_ROWS == 0:
                step.progress(lines.tell(), file.bytes, unit="bytes")
    if checked.problems:
        raise InvalidLines(checked.problems, more=len(checked.problems) >= PROBLEMS_TOLD, param=PARAM)
    if rows == 0:
        raise InvalidInput(f"{file.filename} is empty: it holds no request.", param=PARAM, code="empty_file")
    step.event(f"{rows} requests to {checked.model!r}, each of them in order.", rows=rows)
    return {"rows": rows, "model": checked.model, "endpoint": step.input.params["endpoint"]}


@dataclass
class _Checked:
    """What is known after the lines so far."""

    endpoint: str
    model: str | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)
    _lines_by_id: dict[str, int] = field(default_factory=dict)

    def read(self, number: int, line: bytes) -> dict[str, Any] | None:
        """A line's request, or None for one that is wrong."""
        try:
            if len(line) > MAX_LINE_BYTES:
                raise InvalidInput(
                    f"it is longer than {MAX_LINE_BYTES} bytes; nothing after it was read.",
                    code="line_too_long",
                )
            return self._request(number, line)
        except InvalidInput as error:
            said = {"line": number, "code": error.code, "message": error.message, "param": error.param}
            self.problems.append(said)
            return None

    def _request(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"it is no JSON: {error}.", code="invalid_json_line") from None
        if not isinstance(request, dict):
            raise InvalidInput("it is no JSON object.", code="invalid_json_line")
        refuse_deep(request, "body")
        key = self._key(number, request)
        if request.get("method") != "POST":
            raise InvalidInput("method must be POST.", param="method", code="invalid_method")
        if request.get("url") != self.endpoint:
            shown = str(request.get("url"))[:SHOWN_CHARACTERS]
            raise InvalidInput(
                f"url is {shown!r}, and the batch's endpoint {self.endpoint}: all requests of a "
                "batch go to one.",
                param="url",
                code="invalid_url",
            )
        return {"key": key, "body": self._body(request.get("body"))}

    def _key(self, number: int, request: dict[str, Any]) -> str:
        key = request.get("custom_id")
        if not isinstance(key, str) or not 0 < len(key) <= MAX_ID_CHARACTERS:
            raise InvalidInput(
                f"custom_id must be a text of 1 to {MAX_ID_CHARACTERS} characters: it tells responses apart.",
                param="custom_id",
                code="invalid_custom_id",
            )
        first = self._lines_by_id.setdefault(key, number)
        if first != number:
            raise InvalidInput(
                f"custom_id {key!r} is line {first}'s already.", param="custom_id", code="duplicate_custom_id"
            )
        return key

    def _body(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise InvalidInput("body must be an object.", param="body", code="invalid_body")
        model = body.get("model")
        if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARACTERS:
            raise InvalidInput(
                f"body.model must be the name of a model, of at most {MAX_MODEL_CHARACTERS} characters.",
                param="body.model",
                code="model_missing",
            )
        self.model = self.model or model
        if model != self.model:
            raise InvalidInput(
                f"body.model is {model!r}, and that of the lines before {self.model!r}: all requests of a "
                "batch go to one model.",
                param="body.model",
                code="mismatched_model",
            )
        needed = NEEDED[self.endpoint]
        if body.get(needed) in (None, "", []):
            raise InvalidInput(
                f"body.{needed} is missing.", param=f"body.{needed}", code="missing_required_parameter"
            )
        if body.get("stream"):
            raise InvalidInput(
                "body.stream: nobody reads a batch's answers as they come. Leave it out.",
                param="body.stream",
                code="not_supported",
            )
        for name in OF_THE_API:
            if body.get(name) is not None:
                raise InvalidInput(
                    f"body.{name}: no documents are searched for a batch. Put passages into the messages.",
                    param=f"body.{name}",
                    code="not_supported",
                )
        if self.endpoint == batched_responses.ENDPOINT:
            _check_response(body)
        return body


def _check_response(body: dict[str, Any]) -> None:
    try:
        batched_responses.as_chat(body)
    except InvalidInput as error:
        param = f"body.{error.param}" if error.param else "body"
        raise InvalidInput(f"body: {error.message}", param=param, code=error.code) from None
