"""What servers of a kind make of OpenAI's fields, where that is not what the fields mean.

Most pass over a field that they do not know without a word, and the caller takes the answer for what was
asked. So such a field is refused by name, or put in words that the server knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from db.errors import InvalidInput
from serving.backends.interface import JSON, Request, request_of

Idle = tuple[Any, ...]

# What a server that runs models has no part in.
OF_OPENAI_ALONE: dict[str, Idle] = {
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "web_search_options": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "verbosity": (None, "medium"),
    "functions": (None, []),
    "function_call": (None, "none"),
}
FIXES = {
    "functions": "give tools",
    "function_call": "give tool_choice",
    "store": "leave it out, or ask POST /v1/responses, which stores",
    "tool_choice": 'leave it out, or give "none" or "auto"',
    "best_of": "give n, and choose for yourself",
}


@dataclass(frozen=True)
class Heeding:
    """Args:
    passed_over: fields that a server does not heed, and the values of each that ask for nothing.
    renamed: what it calls a field.
    roles: what it calls a role.
    """

    passed_over: Mapping[str, Idle] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def adapted(self, request: Request, backend: str) -> Request:
        """The request in the server's words; the same one where nothing is to be changed.

        Raises:
            InvalidInput: it has a field that the server would pass over.
        """
        body = request.body
        for name, idle in self.passed_over.items():
            if name in body and body[name] not in idle:
                raise InvalidInput(
                    f"{name} is not heeded by the backend {backend!r}, which runs this model: "
                    f"{FIXES.get(name, 'leave it out')}.",
                    param=name,
                    code="not_supported",
                )
        changed = self._renamed(body)
        if body.get("tool_choice") == "none" and "tools" in body and "tool_choice" in self.passed_over:
            changed = {name: value for name, value in changed.items() if name not in ("tools", "tool_choice")}
        return request if changed is body else request_of(request.model, changed)

    def _renamed(self, body: JSON) -> JSON:
        names = [name for name in self.renamed if name in body]
        messages = body.get("messages")
        spoken = messages if isinstance(messages, list) else []
        has_roles = any(isinstance(row, dict) and row.get("role") in self.roles for row in spoken)
        if not names and not has_roles:
            return body
        changed = {name: value for name, value in body.items() if name not in names}
        changed |= {self.renamed[name]: body[name] for name in names if body[name] is not None}
        if has_roles:
            changed["messages"] = [self._spoken(row) for row in spoken]
        return changed

    def _spoken(self, row: Any) -> Any:
        if isinstance(row, dict) and row.get("role") in self.roles:
            return {**row, "role": self.roles[row["role"]]}
        return row


TEXT_ALONE: dict[str, Idle] = {"echo": (None, False), "best_of": (None, 1), "suffix": (None, "")}

LLAMA_SERVER = Heeding(passed_over={**OF_OPENAI_ALONE, **TEXT_ALONE})
# Source: openai/openai.go, ChatCompletionRequest and CompletionRequest.
OLLAMA = Heeding(
    passed_over={
        **OF_OPENAI_ALONE,
        "echo": (None, False),
        "best_of": (None, 1),
        "tool_choice": (None, "auto", "none"),
        "parallel_tool_calls": (None, True),
        "logit_bias": (None, {}),
    },
    renamed={"max_completion_tokens": "max_tokens"},
    roles={"developer": "system"},
)
VLLM_GENERATE = Heeding(
    passed_over={
        **OF_OPENAI_ALONE,
        **TEXT_ALONE,
        "tools": (None, []),
        "tool_choice": (None, "auto", "none"),
        "parallel_tool_calls": (None, True, False),
        "response_format": (None, {"type": "text"}),
        "logprobs": (None, False),
        "top_logprobs": (None, 0),
        "logit_bias": (None, {}),
        "reasoning_effort": (None,),
    }
)
