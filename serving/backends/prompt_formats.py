"""How families of models want a conversation written, for servers that know no template."""

from dataclasses import dataclass
from typing import Any

from db.errors import InvalidInput

ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class PromptFormat:
    """What is written around each role's text.

    Args:
        assistant: what the model's own turn begins with.
        end: what its turn ends with.
        stops: texts at which an answer is over, should the model not end it by itself.
    system_in_user: the system's text stands within the user's turn that follows it.
    """

    system: str
    user: str
    assistant: str
    end: str
    stops: tuple[str, ...]
    system_in_user: bool = False

    def render(self, messages: Any) -> str:
        """A conversation as one text, up to where the model goes on.

        Raises:
            InvalidInput: a message is no text of a role that is known.
        """
        if not isinstance(messages, list) or not messages:
            raise InvalidInput("messages is a list of at least one message.", param="messages")
        text = waiting = ""
        for row in messages:
            role, content = _role_and_content(row)
            if role == "assistant":
                text += f"{self.assistant}{content}{self.end}"
            elif role == "user":
                text += self.user.replace("{}", waiting + content)
                waiting = ""
            elif self.system_in_user:
                waiting += self.system.replace("{}", content)
            else:
                text += self.system.replace("{}", content)
        return text + (self.user.replace("{}", waiting) if waiting else "") + self.assistant


def _role_and_content(row: Any) -> tuple[str, str]:
    role, content = (row.get("role"), row.get("content")) if isinstance(row, dict) else (None, None)
    if not isinstance(content, str):
        raise InvalidInput("This backend takes messages whose content is one text.", param="messages")
    if role not in ROLES:
        raise InvalidInput(f"This backend takes no message of role {role!r}.", param="messages")
    return role, content


FORMATS: dict[str, PromptFormat] = {
    "chatml": PromptFormat(
        "<|im_start|>system\n{}<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        ("<|im_end|>",),
    ),
    "llama": PromptFormat("<<SYS>>\n{}\n<</SYS>>\n\n", "[INST] {} [/INST]", " ", " </s>", ("</s>",), True),
    "alpaca": PromptFormat(
        "{}\n\n",
        "### Instruction:\n{}\n\n",
        "### Response:\n",
        "\n\n",
        ("### Instruction:",),
    ),
    "vicuna": PromptFormat("{} ", "USER: {} ", "ASSISTANT:", "</s>", ("</s>", "USER:")),
    "plain": PromptFormat("{}\n\n", "{}\n", "", "\n", ()),
}
