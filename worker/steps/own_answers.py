"""What the weights themselves answer to prompts whose rows do not say what the answer should be.

Such a model has learnt of answers that nobody has written down: a served file is held against these.
"""

from typing import Any

from training_data.chat_templates import Chat
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.teacher_forcing import ForcedRow
from worker.steps.verify_rows import MAX_ROWS, force, prompts_of, spread

LONGEST = 64  # tokens
OWN = "own answers"


def answer_prompts(
    step: Step, model: Any, tokenizer: ChatTokenizer, context: int
) -> tuple[str, list[ForcedRow]]:
    """Let weights that `trained_weights` loaded answer prompts greedily.

    Returns:
        what such rows are called, and those that came to an answer.
    """
    prompts = spread(prompts_of(step.input), MAX_ROWS)
    rows = []
    for done, prompt in enumerate(prompts):
        step.progress(done, len(prompts), unit="rows")
        said = _answer(model, tokenizer, prompt, context)
        if said:
            rows.append(force([*prompt, {"role": "assistant", "content": said}], tokenizer, context))
    found = [row for row in rows if row is not None]
    if found:
        step.event(
            f"The rows have prompts alone: the file is verified on what the weights answer to {len(found)}.",
            rows=len(found),
        )
    return OWN, found


def _answer(model: Any, tokenizer: ChatTokenizer, prompt: Chat, context: int) -> str:
    import torch
    from transformers import GenerationConfig

    ids = tokenizer.encode_prompt(prompt)
    room = min(LONGEST, context - len(ids) - 1)
    if room < 1:
        return ""
    end = tokenizer.end_of_answers()
    given = torch.tensor([ids], device=model.device)
    config = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=end, pad_token_id=end or 0)
    with torch.inference_mode():
        answer = model.generate(given, attention_mask=torch.ones_like(given), generation_config=config)
    said: str = tokenizer.tokenizer.decode(answer[0, len(ids) :].tolist(), skip_special_tokens=True)
    return said.strip()
