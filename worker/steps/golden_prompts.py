"""Golden prompts: conversations whose rendered text and token ids must be the same wherever they are asked.

They are rendered here by transformers itself, with the template and tokenizer of the training. Held against
them are each file (`verify`) and the server that really answers for it (`publish`): whatever a template, a
tokenizer or a server does on its own shows in one of them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training_data.chat_templates import ChatTemplateError
from training_data.tokens import ChatTokenizer
from worker.steps.teacher_forcing import ForcedRow

Messages = list[dict[str, Any]]
ROWS = 8  # prompts of the job's own rows, besides those below

QUESTION = {"role": "user", "content": "What is a lathe?"}
ANSWER = {"role": "assistant", "content": "A machine that turns a workpiece."}
SYSTEM = {"role": "system", "content": "Answer briefly."}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_part",
        "description": "Find a part by its name.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
EDGES = "white space at the edges"
# By what each is about, in the words of a refusal.
CONVERSATIONS: dict[str, Messages] = {
    "one question": [QUESTION],
    "several turns": [QUESTION, ANSWER, {"role": "user", "content": "And a mill?"}],
    "a system prompt": [SYSTEM, QUESTION],
    "a system prompt and several turns": [SYSTEM, QUESTION, ANSWER, {"role": "user", "content": "Why?"}],
    "letters beyond ASCII": [
        {"role": "user", "content": "Grüße, ñandú, Ωμέγα, текст, 漢字かな, עברית, e\u0301"}
    ],
    "emoji and signs": [{"role": "user", "content": "👩‍🔧 🇵🇪 ½ × ≈ 3,000.50 €/m² — “so”… \t{[(<&>)]}"}],
    "code with line ends": [{"role": "user", "content": "def f(x):\n    return {'a': x}\n\n\nprint(f(1))"}],
    EDGES: [
        {"role": "user", "content": "  two before\n\nand after \n"},
        {"role": "assistant", "content": " so it is\n"},
        {"role": "user", "content": "\t?"},
    ],
}
WITH_TOOLS: dict[str, Messages] = {
    "tools": [QUESTION],
    "a tool's answer": [
        QUESTION,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call00001",
                    "type": "function",
                    "function": {"name": "find_part", "arguments": {"name": "lathe"}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call00001", "name": "find_part", "content": '{"shelf": 7}'},
    ],
}


@dataclass(frozen=True)
class GoldenPrompt:
    """A conversation as the training renders it.

    Args:
        about: what is particular about it.
        text: the generation prompt included.
        learnt: whether a fine-tune is given such conversations; none is given tools.
    """

    about: str
    messages: Messages
    text: str
    ids: list[int]
    tools: list[dict[str, Any]] | None = None
    learnt: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def golden_prompts(tokenizer_folder: Path, rows: list[ForcedRow]) -> tuple[list[GoldenPrompt], list[str]]:
    """Render the conversations above, and the first rows' prompts.

    Returns:
        the prompts, and what those are about that the template refuses: some know no system turn.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        tokenizer_folder, local_files_only=True, trust_remote_code=False
    )
    wanted: list[tuple[str, Messages, list[dict[str, Any]] | None]]
    wanted = [(f"row {number}", row.messages, None) for number, row in enumerate(rows[:ROWS], 1)]
    wanted += [(about, messages, None) for about, messages in CONVERSATIONS.items()]
    if has_tools(tokenizer):
        wanted += [(about, messages, [TOOL]) for about, messages in WITH_TOOLS.items()]
    found, refused = [], []
    for about, messages, tools in wanted:
        golden = _rendered(tokenizer, about, messages, tools)
        if golden is None:
            refused.append(about)
        else:
            found.append(golden)
    return found, refused


def rendered_prompts(tokenizer: ChatTokenizer) -> list[GoldenPrompt]:
    """The conversations above by our own rendering, of a model that no training has shown any."""
    found = []
    for about, messages in CONVERSATIONS.items():
        try:
            text = tokenizer.template.render(messages, add_generation_prompt=True)
        except ChatTemplateError:
            continue
        if messages[0]["role"] != "system" or tokenizer.template.has_system_role:
            found.append(GoldenPrompt(about, messages, text, tokenizer.encode_text(text)))
    return found


def has_tools(tokenizer: Any) -> bool:
    """Whether the template writes the tools that it is given."""
    golden = _rendered(tokenizer, "tools", WITH_TOOLS["tools"], [TOOL])
    return golden is not None and TOOL["function"]["name"] in golden.text


def _rendered(
    tokenizer: Any, about: str, messages: Messages, tools: list[dict[str, Any]] | None
) -> GoldenPrompt | None:
    from jinja2 import TemplateError

    options = {"tools": tools, "add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    # What a template does with a conversation that it was not written for is its own affair.
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    return GoldenPrompt(about, messages, str(text), list(ids), tools, learnt=tools is None)
