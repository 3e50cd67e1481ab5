"""Hold what a server makes of a golden prompt against the training, and say what is wrong with it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.openai_compatible import LlamaServer
from training_data.tokens import ChatTokenizer
from worker.steps.golden_prompts import GoldenPrompt

BEFORE = 12
SHOWN = 40  # characters of a text that a sentence quotes

EXPORT_AGAIN = (
    "Export again: the file takes its template and tokenizer from the folder of the training, which nobody "
    "may change in between."
)


@dataclass(frozen=True)
class PromptProblem:
    """`what` is wrong with the prompt about `about`, as far as can be told; `fix` is what mends it."""

    about: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} (seen with {self.about}). {self.fix}"


class PromptCheck:
    """Compares prompts of one model.

    Args:
        tokenizer: the training's.
        whose: the prompts that are compared.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, whose: str = "the file's") -> None:
        self.tokenizer, self._whose = tokenizer, whose
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._bos = tokenizer.tokenizer.token_to_id(tokenizer.special_tokens.get("bos_token", ""))

    def ask(self, server: LlamaServer, golden: GoldenPrompt) -> PromptProblem | None:
        """Let a llama-server render and tokenize a conversation; None where the ids are the training's."""
        text = server.apply_template(_as_asked(golden.messages), tools=golden.tools)
        return self.compare(golden, text, server.tokenize(text))

    def compare(self, golden: GoldenPrompt, text: str, ids: list[int]) -> PromptProblem | None:
        if ids == golden.ids:
            return None
        what, fix = (
            self._bos_problem(golden, ids)
            or self._text_problem(golden, text)
            or self._tokenizer_problem(golden, ids)
        )
        return PromptProblem(golden.about, what, fix)

    def text_problem(self, golden: GoldenPrompt, text: str) -> PromptProblem | None:
        """Compare the text alone, of a server that tells no more. A BOS that it adds itself is not in it."""
        if self._without_bos(text) == self._without_bos(golden.text):
            return None
        what, fix = self._text_problem(golden, text) or ("the prompt is another one", EXPORT_AGAIN)
        return PromptProblem(golden.about, what, fix)

    def count_problem(self, golden: GoldenPrompt, counted: int) -> PromptProblem | None:
        """Compare the number of tokens, of a server that tells nothing else."""
        trained = len(golden.ids)
        if counted == trained:
            return None
        what = f"{self._whose} prompt has {counted} tokens where the training's has {trained}"
        if counted == trained + 1 and self._bos is not None:
            what += ": one more, as when the tokenizer adds a BOS token and the template writes one, too"
        return PromptProblem(golden.about, what, EXPORT_AGAIN)

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
        return text.rstrip("\ufffd")  # of a character that the next tokens would complete

    def _bos_problem(self, golden: GoldenPrompt, ids: list[int]) -> tuple[str, str] | None:
        """A beginning that differs by BOS tokens alone; where the training has none, whatever comes first."""
        bos = ids[0] if self._bos is None and ids and ids[0] in self._special else self._bos
        if bos is None:
            return None
        served, trained = _leading(ids, bos), _leading(golden.ids, bos)
        if served == trained or ids[served:] != golden.ids[trained:]:
            return None
        name = self._named([bos])
        what = (
            f"{self._whose} prompt begins with {_how_many(served)} BOS "
            f"{'token' if served == 1 else 'tokens'} {name} where the training's has {_how_many(trained)}"
        )
        fix = (
            "Its tokenizer adds one to what its chat template writes: export again with "
            '"add_bos_token": false in tokenizer_config.json, or without bos_token in the template.'
            if served > trained
            else 'Export again with "add_bos_token": true in tokenizer_config.json.'
        )
        return what, fix

    def _text_problem(self, golden: GoldenPrompt, text: str) -> tuple[str, str] | None:
        served, trained = self._without_bos(text), self._without_bos(golden.text)
        if served == trained:
            return None
        lost = trained.removeprefix(served) if trained.startswith(served) else ""
        if lost and self._is_generation_prompt(golden, lost):
            return (
                f"{self._whose} chat template does not write the generation prompt {_quoted(lost)}",
                EXPORT_AGAIN,
            )
        for message in golden.messages:
            content = str(message["content"]).strip()
            if content and content in trained and content not in served:
                return f"{self._whose} chat template leaves the {message['role']} turn out", EXPORT_AGAIN
        at = _first_difference(served, trained)
        what = (
            f"{self._whose} chat template writes {_around(served, at)} where the training's wrote "
            f"{_around(trained, at)}"
        )
        return what, EXPORT_AGAIN

    def _tokenizer_problem(self, golden: GoldenPrompt, ids: list[int]) -> tuple[str, str]:
        """The text is the same, and its tokens are not."""
        at = _first_difference(ids, golden.ids)
        theirs, ours = (self._named(each[at : at + 1]) for each in (ids, golden.ids))
        what = (
            f"{self._whose} tokenizer makes {theirs} of what was {ours} in the training (token {at} of "
            f"{len(golden.ids)}), from the same text: it is another tokenizer, or was cut"
        )
        return what, EXPORT_AGAIN

    def _is_generation_prompt(self, golden: GoldenPrompt, lost: str) -> bool:
        try:
            without = self._without_bos(self.tokenizer.template.render(golden.messages))
        except ValueError:
            return False
        return self._without_bos(golden.text) == without + lost

    def _without_bos(self, text: str) -> str:
        return text.removeprefix(self.tokenizer.special_tokens.get("bos_token", ""))

    def _named(self, ids: list[int]) -> str:
        if not ids:
            return "nothing"
        return f"{_quoted(self.tokenizer.tokenizer.id_to_token(ids[0]) or '?')} ({ids[0]})"


def _as_asked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenAI's API takes them: a call's arguments are text, which templates are given as an object."""
    return [
        {**message, "tool_calls": [_call_as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _call_as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
    return {**call, "function": function}


def _first_difference(served: Sequence[Any], trained: Sequence[Any]) -> int:
    pairs = enumerate(zip(served, trained, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(served), len(trained)))


def _leading(ids: list[int], token: int) -> int:
    return next((i for i, each in enumerate(ids) if each != token), len(ids))


def _how_many(count: int) -> str:
    return {0: "no", 1: "one", 2: "two", 3: "three"}.get(count, str(count))


def _around(text: str, at: int) -> str:
    before = text[max(0, at - BEFORE) : at]
    return _quoted(f"{'…' if at > BEFORE else ''}{before}{text[at:]}")


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN else f"{text[:SHOWN]}…", ensure_ascii=False)
