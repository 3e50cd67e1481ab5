"""Ask the server that really answers for a model the golden prompts again, before its name moves there.

It may be of another build than the one that verified the file, and whoever started it may have given it a
template or an adapter of its own: what it makes of the prompts, and what it answers, is what users will get.
"""

from typing import Any

from db.errors import StepFailed
from serving.openai_compatible import LlamaServer
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.golden_answers import ANSWER_TOKENS, Golden, difference
from worker.steps.golden_prompts import GoldenPrompt
from worker.steps.prompt_check import PromptCheck

FIX = (
    "The file itself was verified: look at how the server is started (a chat template, rope or adapter of "
    "its own, another llama.cpp), then retry the job."
)


def ask_again(step: Step, server: LlamaServer, golden: Golden, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Hold the live server against what verify found.

    Returns:
        how many prompts and answers were held against each other.
    Raises:
        StepFailed: it renders, counts or answers otherwise.
    """
    check = PromptCheck(tokenizer, whose="the server's")
    prompts = [prompt for prompt in golden.prompts if prompt.learnt]
    for done, prompt in enumerate(prompts):
        step.progress(done, len(prompts), unit="prompts")
        problem = check.ask(server, prompt)
        if problem is not None:
            raise _refused(f"{problem.what} (seen with {problem.about})")
    asked = [prompt for prompt in prompts if prompt.about in golden.answers]
    for prompt in asked:
        _see_answer(server, golden, check, prompt)
    return {"golden_prompts": len(prompts), "golden_answers": len(asked)}


def _see_answer(server: LlamaServer, golden: Golden, check: PromptCheck, prompt: GoldenPrompt) -> None:
    counted = check.count_problem(prompt, server.prompt_tokens(prompt.messages))
    if counted is not None:
        raise _refused(f"on the chat route {counted.what} (seen with {counted.about})")
    answer = server.greedy(prompt.ids, max_tokens=ANSWER_TOKENS)
    differs = difference(golden.answers[prompt.about], answer)
    if differs is not None:
        raise _refused(f"{differs} (asked with {prompt.about})")


def _refused(what: str) -> StepFailed:
    return StepFailed(f"The server that is to answer for the model is not as verified: {what}. {FIX}")
