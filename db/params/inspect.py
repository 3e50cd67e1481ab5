"""What a look at the data of a fine-tune takes."""

from typing import Literal

from pydantic import Field, model_validator

from db.params.data import DataParams

Method = Literal["supervised", "dpo", "orpo", "kto", "reward", "grpo", "pretraining"]


class InspectParams(DataParams):
    """Look at rows as a training would: what it would learn of them, and what is wrong or odd."""

    method: Method | None = Field(
        default=None, description="That they are for. Default: the first that learns from such rows."
    )
    assistant_only_loss: bool = Field(default=True, description="Learn the answers only, not the questions.")
    rows_shown: int = Field(
        default=3, ge=0, le=100, description="How many rows to show as the model would read them."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "InspectParams":
        self.check_rows()
        return self
