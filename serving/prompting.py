"""What a model that was created from another adds to each request: its system prompt, its messages, and its
parameters where the request says nothing. As Ollama does it for its Modelfiles; Ollama itself is given them
once, any other server has them put into the request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.backends.interface import JSON, Request, request_of
from serving.context_window import Counted, Gauge, Prompt

# What the chat routes call a parameter of Ollama's; the others go by their own names there.
REQUEST_NAMES = {"num_predict": "max_tokens"}
# Other names by which a request may say the same.
ALSO_CALLED = {"max_tokens": ("max_completion_tokens", "n_predict")}
# No limit, which is what happens anyway.
UNLIMITED = {"num_predict": -1}


@dataclass(frozen=True)
class Prompting:
    """Args: as Ollama's create has them."""

    system: str | None = None
    messages: Sequence[JSON] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def put_into(self, request: Request) -> Request:
        return request_of(request.model, self.body(request.body))

    def body(self, asked: JSON) -> JSON:
        """The same request with what is ours before the caller's messages; what the caller says wins."""
        body = dict(asked)
        for name, value in self.parameters.items():
            called = REQUEST_NAMES.get(name, name)
            said = any(asked.get(each) is not None for each in (called, *ALSO_CALLED.get(called, ())))
            if not said and UNLIMITED.get(name) != value:
                body[called] = value
        messages = asked.get("messages")
        if isinstance(messages, list):
            has_system = (
                bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system"
            )
            system = [{"role": "system", "content": self.system}] if self.system and not has_system else []
            # A caller's own system prompt stays the first.
            first, rest = (messages[:1], messages[1:]) if has_system else (system, messages)
            body["messages"] = [*first, *self.messages, *rest]
        return body


@dataclass(frozen=True)
class PromptingGauge:
    """Measures prompts with what is put before them."""

    gauge: Gauge
    prompting: Prompting

    @property
    def window(self) -> int:
        return self.gauge.window

    async def prompt(self, body: JSON) -> Prompt:
        return await self.gauge.prompt(self.prompting.body(body))

    async def count(self, texts: Sequence[str]) -> Counted:
        return await self.gauge.count(texts)
