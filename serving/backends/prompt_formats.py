"""How families of models want a conversation written: for servers that know no template, and for models that
bring none.
"""

import json
from dataclasses import dataclass
from typing import Any

from db.errors import InvalidInput
from db.params.values import PromptFormatName

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

    def template(self) -> str:
        """The same as a chat template of Jinja's, which a model's file carries."""
        (system, after_system), (user, after_user) = self._around(self.system), self._around(self.user)
        said = f"{system} + message['content'] + {after_system}"
        held = f"{{%- set turn.held = turn.held + {said} %}}" if self.system_in_user else f"{{{{- {said} }}}}"
        return f"""\
{{%- set turn = namespace(held='') %}}
{{%- for message in messages %}}
{{%- if message['role'] == 'assistant' %}}
{{{{- {json.dumps(self.assistant)} + message['content'] + {json.dumps(self.end)} }}}}
{{%- elif message['role'] == 'user' %}}
{{{{- {user} + turn.held + message['content'] + {after_user} }}}}
{{%- set turn.held = '' %}}
{{%- else %}}
{held}
{{%- endif %}}
{{%- endfor %}}
{{%- if turn.held %}}
{{{{- {user} + turn.held + {after_user} }}}}
{{%- endif %}}
{{%- if add_generation_prompt %}}
{{{{- {json.dumps(self.assistant)} }}}}
{{%- endif %}}
"""

    @staticmethod
    def _around(turn: str) -> tuple[str, str]:
        """What stands before and after a role's text, as Jinja writes texts."""
        before, _, after = turn.partition("{}")
        return json.dumps(before), json.dumps(after)


def _role_and_content(row: Any) -> tuple[str, str]:
    role, content = (row.get("role"), row.get("content")) if isinstance(row, dict) else (None, None)
    if not isinstance(content, str):
        raise InvalidInput("This backend takes messages whose content is one text.", param="messages")
    if role not in ROLES:
        raise InvalidInput(f"This backend takes no message of role {role!r}.", param="messages")
    return role, content


FORMATS: dict[PromptFormatName, PromptFormat] = {
    "chatml": PromptFormat(
        "<|im_start|>system\n{}<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        ("<|im_end|>",),
    ),
    "llama": PromptFormat("<<SYS>>\n{}\n<</SYS>>\n\n", "[INST] {} [/INST]", " ", " </s>", ("</s>",), True),
    "llama3": PromptFormat(
        "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        ("<|eot_id|>",),
    ),
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
