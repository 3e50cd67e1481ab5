"""What jobs take that ask a model for each row of a file: `predict`, and OpenAI's batches."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from db.params.values import Auto, FileId, OperatorsName, Params

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
DAY_SECONDS = 24 * 3600
MONTH_SECONDS = 30 * DAY_SECONDS

Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class AskingParams(Params):
    """How the rows are asked."""

    concurrency: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        default="auto",
        description="Rows that are asked at once; never more than the backend's own limit. auto: that limit, "
        "or 16 where it has none.",
    )
    row_tries: int = Field(
        default=3,
        ge=1,
        le=20,
        description="Tries of a row that the backend does not answer; what it refuses is not tried again.",
    )
    finish_within_seconds: int | None = Field(
        default=None,
        ge=1,
        le=MONTH_SECONDS,
        description="Counted from the submit: rows that have no answer by then are told as errors.",
    )


class InferenceKwargs(Params):
    """How a model answers, in OpenAI's words and llama.cpp's."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=16)] | None = None
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: float | None = Field(default=None, ge=0, le=10)
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class PredictParams(AskingParams):
    """Ask a model for each row of a table, and keep the answers."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=300)] = Field(
        description="Any name that answers chat.", examples=["faq"]
    )
    input_file: FileId | None = Field(
        default=None, description="An uploaded CSV, JSONL or Parquet file, with named columns."
    )
    input_source: OperatorsName | None = Field(
        default=None, description="A source of rows that the operator has named, in place of a file."
    )
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] = Field(
        description="The question, with columns of the row in braces: {input}, {context}. A brace that is "
        "meant as one is written twice.",
        examples=["{context}\n\n{input}"],
    )
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = Field(
        default=None, description="A system turn before it; takes columns too."
    )
    inference_kwargs: InferenceKwargs = Field(
        default=InferenceKwargs(), description="temperature, max_tokens and so on, for all rows."
    )
    inference_kwargs_column: Column | None = Field(
        default=None, description="A column with a JSON object of a row's own, which win."
    )
    key_column: Column | None = Field(
        default=None, description="A column that tells rows apart. Default: the row's number."
    )
    output_format: Literal["jsonl", "csv"] = Field(default="jsonl", description="Of the answers' file.")
    output_target: OperatorsName | None = Field(
        default=None, description="A table that the operator has named, which takes the answers too."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PredictParams":
        if (self.input_file is None) == (self.input_source is None):
            raise ValueError("input_file or input_source: give exactly one of the two")
        return self


class BatchParams(AskingParams):
    """Send each request of a file, in OpenAI's form, and keep the responses in a file."""

    input_file: FileId = Field(description="A JSONL file of requests, uploaded with the purpose batch.")
    endpoint: BatchEndpoint = Field(description="Where all of its requests go.")
    finish_within_seconds: int | None = Field(
        default=DAY_SECONDS, ge=1, le=MONTH_SECONDS, description="Counted from the submit; OpenAI's 24 h."
    )
    output_expires_after_seconds: int | None = Field(
        default=None, ge=3600, le=MONTH_SECONDS, description="How long the output files are kept."
    )
