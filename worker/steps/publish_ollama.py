"""Publish to Ollama, and see that it sends the model what the training did.

The file carries the training's Jinja template, and create gets an equivalent Go template, since which of
the two a server uses depends on its version. So the result is judged, not the version: the rendered text
where the server tells it, else the number of prompt tokens, and that answers end at the stops.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from db.errors import InvalidInput, StepFailed
from serving import go_template
from serving.go_template import GoTemplate
from serving.ollama import Ollama
from serving.openai_compatible import GreedyAnswer
from training_data.chat_templates import ChatTemplate, ChatTemplateError
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.golden_answers import ANSWER_TOKENS, Golden, certain_tokens
from worker.steps.golden_prompts import CONVERSATIONS, EDGES, GoldenPrompt, rendered_prompts
from worker.steps.programs import ServedFile
from worker.steps.prompt_check import PromptCheck

# By which a Go template is proven: white space at edges, which many a Jinja template trims, is not in them.
PLAIN = [messages for about, messages in CONVERSATIONS.items() if about != EDGES]
PROOF_TOKENS = 8


def publish_to_ollama(
    step: Step,
    file: ServedFile,
    name: str,
    tokenizer: ChatTokenizer,
    context_length: int,
    *,
    golden: Golden | None,
) -> dict[str, Any]:
    """Create the model unless it exists, and check what it is sent and what it answers.

    Args:
        golden: what verify found; None for a model that was not trained here.
    Returns:
        what was asked of it, in figures.
    Raises:
        StepFailed: the server renders prompts or answers otherwise; the model is deleted again.
    """
    server = Ollama(step.input.settings.ollama_url)
    try:
        if not server.exists(name):
            bos = tokenizer.special_tokens.get("bos_token", "")
            template = _go_template(step, tokenizer.template, bos)
            source = template.source if template is not None else None
            with _adapters_explained(file):
                server.create(
                    name,
                    file.model,
                    template=source,
                    parameters=parameters(tokenizer, context_length),
                    adapter=file.adapter,
                )
        try:
            return _check(step, server, name, tokenizer, golden)
        except StepFailed:
            server.delete(name)
            raise
    finally:
        server.close()


@contextlib.contextmanager
def _adapters_explained(file: ServedFile) -> Iterator[None]:
    """Whether a version takes adapters, its refusal says best."""
    try:
        yield
    except InvalidInput as error:
        if file.adapter is None or "adapter" not in error.message.lower():
            raise
        raise InvalidInput(
            f'{error.message}. Publish "merged", or serve by llama-server.',
            param="publish",
            code="adapters_not_served",
        ) from error


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
        server.ask(name, PLAIN[0], max_tokens=PROOF_TOKENS, on_cpu=step.input.chat_unloaded)


def _template_of_file(step: Step, source: str | None, special_tokens: dict[str, str]) -> GoTemplate | None:
    if source is None:
        return None
    try:
        return _go_template(step, ChatTemplate(source, special_tokens), special_tokens.get("bos_token", ""))
    except ChatTemplateError as error:
        step.event(f"The file's chat template cannot be read here: {error}.", level="warn")
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


def _go_template(step: Step, jinja: ChatTemplate, bos: str) -> GoTemplate | None:
    """An equivalent Go template; where there is none, that is told."""
    render = partial(jinja.render, add_generation_prompt=True)
    chats = [each for each in PLAIN if jinja.has_system_role or each[0]["role"] != "system"]
    found = go_template.derive(render, bos=bos)
    if found is not None and go_template.matches(found, render, chats, bos=bos):
        return found
    step.event(
        "The chat template has no equivalent Go template: only an Ollama that reads Jinja can serve this.",
        level="warn",
    )
    return None


def _check(
    step: Step, server: Ollama, name: str, tokenizer: ChatTokenizer, golden: Golden | None
) -> dict[str, Any]:
    """See what the server makes of the golden prompts; on the CPU while another step holds the GPU.

    Raises:
        StepFailed: something else than the training did, or another answer than the verified file's.
    """
    check = PromptCheck(tokenizer, whose="Ollama's")
    found = rendered_prompts(tokenizer) if golden is None else golden.prompts
    answers = {} if golden is None else golden.answers
    prompts = [prompt for prompt in found if prompt.learnt]
    asked = 0
    for done, prompt in enumerate(prompts):
        step.progress(done, len(prompts), unit="prompts")
        on_cpu = step.input.chat_unloaded
        rendered = server.rendered(name, prompt.messages, on_cpu=on_cpu)
        problem = None if rendered is None else check.text_problem(prompt, rendered)
        if problem is not None and prompt.about != EDGES:
            raise _differs(f"{problem.what} (seen with {problem.about})", prompt, rendered)
        if problem is not None:
            step.event(f"{name}: {problem}", level="warn")
        if prompt.about in answers or rendered is None or golden is None:
            _see_answer(server, name, check, prompt, answers.get(prompt.about), on_cpu=on_cpu)
            asked += prompt.about in answers
    return {"golden_prompts": len(prompts), "golden_answers": asked}


def _see_answer(
    server: Ollama,
    name: str,
    check: PromptCheck,
    prompt: GoldenPrompt,
    verified: GreedyAnswer | None,
    *,
    on_cpu: bool,
) -> None:
    tokens = PROOF_TOKENS if verified is None else ANSWER_TOKENS
    answer = server.ask(name, prompt.messages, max_tokens=tokens, on_cpu=on_cpu)
    # A server that answers from its cache leaves the count out.
    counted = check.count_problem(prompt, answer.prompt_eval_count) if answer.prompt_eval_count else None
    if counted is not None and prompt.about != EDGES:
        raise _differs(f"{counted.what} (seen with {counted.about})", prompt, None)
    said = answer.message.content or ""
    if any(stop in said for stop in stops(check.tokenizer)):
        raise StepFailed("Ollama does not stop at the end of a turn.", stderr=said)
    # What a model thinks before it answers, servers cut off in ways of their own.
    if verified is not None and answer.message.thinking is None:
        certain = check.decode(certain_tokens(verified))
        if not said.strip().startswith(certain.strip()):
            what = f"it answers {said!r} where the verified file answers {verified.text!r}"
            raise _differs(f"{what} (asked with {prompt.about})", prompt, None)


def _differs(what: str, prompt: GoldenPrompt, rendered: str | None) -> StepFailed:
    sent = "" if rendered is None else f"\nOllama sends:\n{rendered}"
    return StepFailed(
        f"Ollama does not serve this model as it was verified: {what}. Use another version of Ollama, or "
        "serve it by llama-server.",
        stderr=f"trained on:\n{prompt.text}{sent}",
    )
