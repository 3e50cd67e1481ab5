"""What quantising a base model takes."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from db.params.values import FileId, ModelName, Params


class QuantizeParams(Params):
    """Quantise a base model to GPTQ: a smaller base for adapters, which knows what it was made from."""

    base_model: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="A model of this server (`tiny`), a folder in LATHE_BASE_MODELS_DIR, or a Hugging Face "
        "id; in 16 bits.",
        examples=["tiny"],
    )
    name: ModelName = Field(description="The name of the quantised model.", examples=["tiny-gptq"])
    bits: Literal[4, 8] = Field(default=4, description="Of each weight of a linear layer.")
    group_size: Literal[32, 64, 128] = Field(
        default=128, description="How many weights share a scale: fewer are nearer to the model, and larger."
    )
    input_file: FileId | None = Field(
        default=None,
        description="Rows or text that it is calibrated on, in any form that a fine-tune takes. Default: "
        "what a model that was trained here has learnt from.",
    )
    max_rows: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Of more rows, or pieces of a text, so many are taken from all over.",
    )
