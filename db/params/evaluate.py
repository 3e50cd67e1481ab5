"""What an evaluation takes."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from db.params.values import Auto, FileId, Params

EvaluationMetric = Literal["loss", "exact_match", "rouge"]
# A file `<name>.yaml` in the operator's LATHE_EVAL_TASKS.
EvalTask = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


class EvaluateParams(Params):
    """Measure a model on rows that it has not learnt from, beside its base and each of its quantizations."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=600)] = Field(
        description="A model of this server: `faq`, `faq@2`, an alias.", examples=["faq"]
    )
    input_file: FileId | None = Field(
        default=None,
        description="Rows with answers, in any form that a fine-tune takes. Default: the rows that the "
        "model's fine-tune has held out.",
    )
    split: Literal["test", "validation"] | Auto = Field(
        default="auto", description="Which held-out rows. auto: the test split, else the validation split."
    )
    metrics: list[EvaluationMetric] = Field(
        default=["loss", "exact_match", "rouge"], max_length=3, description="What is measured on the rows."
    )
    base: bool = Field(default=True, description="Measure the untuned base model as well.")
    quantizations: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,20}$")]] | None = Field(
        default=None, min_length=1, max_length=16, description="Which published files. Default: all."
    )
    max_rows: int = Field(
        default=100, ge=1, le=100_000, description="Of more rows, so many are taken from all over the file."
    )
    max_tokens: int = Field(default=256, ge=1, le=32_768, description="Of one answer that is generated.")
    tasks: list[EvalTask] = Field(
        default=[], max_length=32, description="Tasks of lm-eval that the operator has in LATHE_EVAL_TASKS."
    )
    task_rows: int | None = Field(
        default=None, ge=1, le=1_000_000, description="So many rows of each task. Default: all."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluateParams":
        if not self.metrics and not self.tasks:
            raise ValueError("metrics and tasks are both empty: there is nothing to measure")
        if self.input_file is not None and self.split != "auto":
            raise ValueError("split is of the fine-tune's own rows: leave it out, or input_file")
        if self.task_rows is not None and not self.tasks:
            raise ValueError("task_rows goes with tasks: give these, or leave it out")
        for name in ("metrics", "tasks", "quantizations"):
            given = getattr(self, name) or []
            if len(set(given)) != len(given):
                raise ValueError(f"{name} names one twice")
        return self
