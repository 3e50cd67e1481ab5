"""Publish to Ollama, and see that it sends the model what the training did.

The file carries the training's Jinja template, and create gets an equivalent Go template, since which of
the two a server uses depends on its version. So the result is judged, not the version: the rendered text
where the server tells it, else the number of prompt tokens, and that answers end at the stops.
"""

import contextlib
from pathlib import Path
from typing import Any

from db.errors import StepFailed
from serving import go_template
from serving.go_template import GoTemplate
from serving.ollama import Ollama
from training_data.chat_templates import ChatTemplate, ChatTemplateError
from training_data.tokens import ChatTokenizer
from worker.step import Step

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is a lathe?"}],
    [
        {"role": "user", "content": "What is a lathe?"},
        {"role": "assistant", "content": "A machine that turns a workpiece."},
        {"role": "user", "content": "And a mill?"},
    ],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is a lathe?"},
    ],
]
PROOF_TOKENS = 8


def publish_to_ollama(
    step: Step, source: Path, name: str, tokenizer: ChatTokenizer, context_length: int
) -> None:
    """Create the model unless it exists, and check what it is sent.

    Raises:
        StepFailed: the server renders prompts otherwise than the training; the model is deleted again.
    """
    server = Ollama(step.input.settings.ollama_url)
    try:
        if not server.exists(name):
            template = _go_template(step, tokenizer)
            server.create(
                name,
                source,
                template=template.source if template is not None else None,
                parameters=parameters(tokenizer, context_length),
            )
        try:
            _check(server, name, tokenizer, on_cpu=step.input.chat_unloaded)
        except StepFailed:
            server.delete(name)
            raise
    finally:
        server.close()


def publish_foreign_to_ollama(
    step: Step, source: Path, name: str, made: dict[str, Any], context_length: int
) -> None:
    """Create a model whose GGUF file was not made here, unless it exists; it is only seen to answer.

    Args:
        made: has the file's `chat_template`, its `special_tokens`, and `stops` besides.
    """
    tokens = made["special_tokens"]
    template = _template_of_file(step, made["chat_template"], tokens)
    stops = [*([tokens["eos_token"]] if tokens.get("eos_token") else []), *made["stops"]]
    with contextlib.closing(Ollama(step.input.settings.ollama_url)) as server:
        if not server.exists(name):
            server.create(
                name,
                source,
                template=template.source if template is not None else None,
                parameters={
                    "num_ctx": context_length,
                    "repeat_penalty": 1.0,
                    **({"stop": stops} if stops else {}),
                },
            )
    see_that_ollama_answers(step, name)


def see_that_ollama_answers(step: Step, name: str) -> None:
    with contextlib.closing(Ollama(step.input.settings.ollama_url)) as server:
        server.ask(name, CONVERSATIONS[0], max_tokens=PROOF_TOKENS, on_cpu=step.input.chat_unloaded)


def _template_of_file(step: Step, source: str | None, special_tokens: dict[str, str]) -> GoTemplate | None:
    if source is None:
        return None
    try:
        jinja = ChatTemplate(source, special_tokens)
        render: go_template.Render = lambda messages: jinja.render(messages, add_generation_prompt=True)  # noqa: E731
        bos = special_tokens.get("bos_token", "")
        found = go_template.derive(render, bos=bos)
        chats = [each for each in CONVERSATIONS if jinja.has_system_role or each[0]["role"] != "system"]
        if found is not None and go_template.matches(found, render, chats, bos=bos):
            return found
    except ChatTemplateError as error:
        step.event(f"The file's chat template cannot be read here: {error}.", level="warn")
        return None
    _say_jinja_only(step)
    return None


def parameters(tokenizer: ChatTokenizer, context_length: int) -> dict[str, Any]:
    """What the server must not guess: a context of 4096, and a repeat penalty that is 1.1 on old ones."""
    return {"num_ctx": context_length, "repeat_penalty": 1.0, "stop": stops(tokenizer)}


def stops(tokenizer: ChatTokenizer) -> list[str]:
    """The special tokens that end a turn in the template, and the model's end of text."""
    last = tokenizer.template.render_with_answers(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    start, end = last.answers[-1] if last.answers else (0, 0)
    ending = last.text[start:end].partition("b")[2].strip()
    special = {token.content for token in tokenizer.tokenizer.get_added_tokens_decoder().values()}
    found = [ending] if ending in special else []
    eos = tokenizer.special_tokens.get("eos_token")
    return list(dict.fromkeys([*found, *([eos] if eos else [])]))


def _go_template(step: Step, tokenizer: ChatTokenizer) -> GoTemplate | None:
    template = go_template.derive(_render(tokenizer), bos=_bos(tokenizer))
    conversations = _understood(tokenizer)
    if template is not None and go_template.matches(
        template, _render(tokenizer), conversations, bos=_bos(tokenizer)
    ):
        return template
    _say_jinja_only(step)
    return None


def _say_jinja_only(step: Step) -> None:
    step.event(
        "The chat template has no equivalent Go template: only an Ollama that reads Jinja can serve this.",
        level="warn",
    )


def _check(server: Ollama, name: str, tokenizer: ChatTokenizer, *, on_cpu: bool) -> None:
    """See what the server makes of prompts; `on_cpu` while another step holds the GPU.

    Raises:
        StepFailed: something else than the training did.
    """
    for messages in _understood(tokenizer):
        expected = _render(tokenizer)(messages)
        rendered = server.rendered(name, messages, on_cpu=on_cpu)
        if rendered is not None and rendered.removeprefix(_bos(tokenizer)) != expected.removeprefix(
            _bos(tokenizer)
        ):
            raise StepFailed(
                "Ollama sends this model another prompt than it was trained on.",
                stderr=f"trained on:\n{expected}\nOllama sends:\n{rendered}",
            )
        answer = server.ask(name, messages, max_tokens=PROOF_TOKENS, on_cpu=on_cpu)
        counted, trained = answer.prompt_eval_count, len(tokenizer.encode_text(expected))
        # A server that answers from its cache leaves the count out.
        if counted and counted != trained:
            raise StepFailed(
                f"Ollama's prompt has {counted} tokens where the training's has {trained}.", stderr=expected
            )
        said = answer.message.content or ""
        if any(stop in said for stop in stops(tokenizer)):
            raise StepFailed("Ollama does not stop at the end of a turn.", stderr=said)


def _render(tokenizer: ChatTokenizer) -> go_template.Render:
    return lambda messages: tokenizer.template.render(messages, add_generation_prompt=True)


def _bos(tokenizer: ChatTokenizer) -> str:
    return tokenizer.special_tokens.get("bos_token", "")


def _understood(tokenizer: ChatTokenizer) -> list[list[dict[str, Any]]]:
    """The conversations that this template can render: some know no system role."""
    has_system = tokenizer.template.has_system_role
    return [each for each in CONVERSATIONS if has_system or each[0]["role"] != "system"]
