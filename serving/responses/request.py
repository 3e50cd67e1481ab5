"""What a response may be asked for. What of OpenAI's fields has no meaning here is refused by name.

Tools that search are the API's: it adds them to these.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from db.params.values import Metadata
from db.storable import refuse_deep

JSON = dict[str, Any]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Hint = Annotated[str, Field(max_length=512)]
Include = Literal["file_search_call.results", "message.output_text.logprobs"]

# What is not here, and what to do instead.
REFUSED = {
    "background": "leave it out; for answers that may come later there is POST /v1/batches",
    "background_options": "leave it out; for answers that may come later there is POST /v1/batches",
    "conversation": "give previous_response_id, or the conversation as input",
    "prompt": "give its text as instructions and input",
    "context_management": 'give truncation: "auto", or a shorter input',
    "moderation": "leave it out",
    "image": "leave it out",
    "access_programs": "leave it out",
    "prompt_cache_options": "leave it out: the model's server keeps the prompts it knows by itself",
    "prompt_cache_retention": "leave it out: the model's server keeps the prompts it knows by itself",
}
# As OpenAI's own client may send them, asking for nothing.
IDLE: dict[str, tuple[Any, ...]] = {"background": (None, False)}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Tool(Body):
    type: str


class FunctionTool(Tool):
    type: Literal["function"]
    name: Name
    parameters: JSON | None = None
    strict: bool | None = None
    description: str | None = None


class NamedFunction(Body):
    type: Literal["function"]
    name: Name


class FileSearchChoice(Body):
    type: Literal["file_search"]


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[NamedFunction | FileSearchChoice, Field(discriminator="type")]]


Choice = Annotated[NamedFunction | FileSearchChoice | AllowedTools, Field(discriminator="type")]


class PlainText(Body):
    type: Literal["text"] = "text"


class JsonObject(Body):
    type: Literal["json_object"]


class JsonSchema(Body):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["json_schema"]
    name: Name
    schema_: JSON = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body):
    format: Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")] = PlainText()
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    """Models think as their template has it, unless they are told not to."""

    effort: Literal["none"] | None = None
    summary: None = None


class StreamOptions(Body):
    include_obfuscation: Literal[False] = False


class ResponseAsked(Body):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "faq", "input": "What does Lathe make?", "store": False}]},
    )

    model: str = Field(min_length=1, max_length=400, description="As GET /v1/models names it.")
    input: (
        Annotated[str, Field(min_length=1)] | Annotated[list[JSON], Field(min_length=1, max_length=2000)]
    ) = Field(
        description="A text of the user's, or items: messages, function_call, function_call_output, and "
        "whatever a response has put out."
    )
    instructions: str | None = Field(default=None, description="The system's words, for this response alone.")
    previous_response_id: str | None = Field(default=None, min_length=1, max_length=200)
    store: bool | None = Field(default=True, description="false: nothing is kept.")
    metadata: Metadata | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    include: list[Include] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    tools: Sequence[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=1, description="Of file_search, which searches once.")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        default=None, description="auto: the oldest turns are left out where all do not fit; `notices` tell."
    )
    service_tier: Literal["auto", "default"] | None = None
    user: Hint | None = Field(default=None, description="Kept with the response, and without effect.")
    safety_identifier: Hint | None = Field(default=None, description="As `user`.")
    prompt_cache_key: Hint | None = Field(default=None, description="As `user`.")

    @field_validator("input", mode="before")
    @classmethod
    def _text_or_items(cls, given: Any) -> Any:
        if not isinstance(given, str | list):
            raise ValueError("input must be text, or a list of items")
        if not given:
            raise ValueError("input is empty: it is what the model is asked")
        return given

    @model_validator(mode="before")
    @classmethod
    def _shallow(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, value in given.items():
                refuse_deep(value, name)
        return given

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, instead in REFUSED.items():
            if given.get(name) not in IDLE.get(name, (None,)):
                raise ValueError(f"{name} is not supported: {instead}")
        return {name: value for name, value in given.items() if name not in REFUSED}

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseAsked":
        if len([tool for tool in self.tools or [] if tool.type == "file_search"]) > 1:
            raise ValueError("tools may have one file_search: name several collections in it")
        choice = self.tool_choice
        chosen = choice.tools if isinstance(choice, AllowedTools) else [choice]
        for one in chosen:
            if isinstance(one, NamedFunction) and one.name not in {tool.name for tool in self.functions}:
                raise ValueError(f"tool_choice names the function {one.name!r}, which is not among tools")
            if isinstance(one, FileSearchChoice) and not self.names_search:
                raise ValueError("tool_choice names file_search, which is not among tools")
        if choice == "required" and not self.tools:
            raise ValueError("tool_choice is required, and there are no tools")
        return self

    @property
    def functions(self) -> list[FunctionTool]:
        return [tool for tool in self.tools or [] if isinstance(tool, FunctionTool)]

    @property
    def names_search(self) -> bool:
        """Whether documents are among the tools."""
        return any(tool.type == "file_search" for tool in self.tools or [])

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or []) or bool(self.top_logprobs)


# Of a batch's rows besides, and what to do instead.
NOT_IN_BATCHES = {
    "store": "leave it out: what a batch answers is in its output file",
    "previous_response_id": "give the conversation as input",
}


class BatchedResponse(ResponseAsked):
    """What a row of a batch may ask for: nothing of it is stored, and no documents are searched."""

    store: Literal[False] | None = False
    previous_response_id: None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    truncation: Literal["disabled"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_row(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, instead in NOT_IN_BATCHES.items():
                if given.get(name) not in (None, False):
                    raise ValueError(f"{name} is not supported in a batch: {instead}")
        return given
