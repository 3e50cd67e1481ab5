"""What names the rows of a fine-tune, and how they are read, split and checked: of a training and of a look
at its data alike.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from db.params.values import Auto, FileId, Fold, OperatorsName, Params

# The shapes of rows, and the keys that their columns go by; what they are stands in training_data/shapes.py.
Format = Literal[
    "messages", "sharegpt", "alpaca", "question_answer", "input_output", "prompt_completion",
    "preference", "alpaca_preference", "sharegpt_preference", "openai_preference", "kto",
    "alpaca_kto", "sharegpt_kto", "messages_kto", "text", "prompt",
]  # fmt: skip
ColumnKey = Literal[
    "messages", "conversations", "instruction", "input", "output", "history", "question", "answer", "prompt",
    "completion", "system", "chosen", "rejected", "preferred_output", "non_preferred_output", "label",
    "kto_tag", "text", "continues",
]  # fmt: skip
Columns = dict[ColumnKey, Annotated[str, StringConstraints(min_length=1, max_length=200)]]

FORMAT: Format | Auto = Field(
    default="auto", description="The shape of the rows; auto: found by the names of the columns."
)
COLUMNS: Columns = Field(
    default={},
    description="What columns are called in the file, by what the format calls them, where these differ.",
    examples=[{"question": "Frage", "answer": "Antwort"}],
)


class TrainingFile(Params):
    """One of several files."""

    file: FileId = Field(description="The id of an uploaded file.")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="How often each of its rows is trained on: 2 is twice, 0.5 is a half of them, by chance.",
    )
    format: Format | Auto = FORMAT
    columns: Columns = COLUMNS


class DataParams(Params):
    """The model that reads the rows, the rows, and what of them is held out."""

    base_model: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="A model of this server (`tiny`), a folder in LATHE_BASE_MODELS_DIR, "
        "or a Hugging Face id, optionally with a revision: `Qwen/Qwen3-0.6B@main`.",
        examples=["tiny"],
    )
    training_file: FileId | None = Field(
        default=None, description="The id of an uploaded CSV, TSV, JSONL, JSON or Parquet file."
    )
    training_files: list[TrainingFile] = Field(
        default=[], max_length=100, description="Several files with their weights, in place of one."
    )
    training_source: OperatorsName | None = Field(
        default=None, description="A source of rows that the operator has named, in place of a file."
    )
    fold_column: Annotated[str, StringConstraints(min_length=1, max_length=63)] | None = Field(
        default=None, description="A column of the source whose values say which rows are held out."
    )
    validation_folds: list[Fold] = Field(
        default=[], max_length=100, description="Values of it whose rows are evaluated on."
    )
    test_folds: list[Fold] = Field(
        default=[], max_length=100, description="Values of it whose rows are for the test alone."
    )
    validation_file: FileId | None = Field(
        default=None, description="A file to evaluate on; without it, train_size splits the training file."
    )
    validation_format: Format | Auto | None = Field(
        default=None, description="The shape of the validation file's rows. Default: as of the training file."
    )
    validation_columns: Columns | None = Field(
        default=None,
        description="What columns are called in the validation file. Default: as in the training file.",
        examples=[{"question": "Question"}],
    )
    format: Format | Auto = FORMAT
    columns: Columns = COLUMNS
    train_size: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of rows to train on; the rest is split evenly into validation and test. "
        "Default: 1.0, every row.",
    )
    dedupe: bool = Field(
        default=False,
        description="Leave out training rows that say what an earlier one says; else they are told of.",
    )
    leaks: Literal["warn", "move", "refuse"] = Field(
        default="warn",
        description="Held-out rows that ask what a training row asks: warn tells of them, move takes them "
        "out of what is held out, refuse ends the job.",
    )
    seed: int = Field(default=42, ge=-1, le=2**31 - 1, description="-1 draws one, and stores it.")
    system_prompt: str | None = Field(
        default=None, max_length=20_000, description="A system turn for every row that has none."
    )
    has_system_prompt: bool | Auto = Field(
        default="auto",
        description="Whether the chat template has a system role; false merges system turns into the "
        "first user turn.",
    )
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] | Auto = Field(
        default="auto", description="Tokens of one row."
    )

    def check_rows(self) -> None:
        """See that the fields that name and split the rows go together.

        Raises:
            ValueError: they do not.
        """
        given = (self.training_file is not None, bool(self.training_files), self.training_source is not None)
        if sum(given) != 1:
            raise ValueError(
                "training_file is missing: give it, or one of training_files and training_source in its place"
                if sum(given) == 0
                else "training_file, training_files and training_source exclude each other: give one of them"
            )
        if self.training_files and (self.format != "auto" or self.columns):
            raise ValueError("format and columns are of one file: give them with each of training_files")
        for name in ("validation_format", "validation_columns"):
            if getattr(self, name) is not None and self.validation_file is None:
                raise ValueError(f"{name} goes with validation_file: give that, or leave it out")
        names = [each.file for each in self.training_files]
        if len(set(names)) != len(names):
            raise ValueError("training_files names a file twice: give it a weight instead")
        if self.validation_file is not None and self.train_size not in (None, 1.0):
            raise ValueError("validation_file and train_size exclude each other: give one of them")
        if self.fold_column is None:
            if self.validation_folds or self.test_folds:
                raise ValueError("fold_column is missing: it says which column holds the folds")
            return
        if self.training_source is None:
            raise ValueError("fold_column goes with training_source: a file is split by train_size")
        if not self.validation_folds and not self.test_folds:
            raise ValueError("fold_column needs validation_folds or test_folds: the values that are held out")
        both = set(self.validation_folds) & set(self.test_folds)
        if both:
            raise ValueError(f"validation_folds and test_folds both hold {min(both)!r}")
        if self.validation_file is not None or self.train_size not in (None, 1.0):
            raise ValueError("fold_column excludes validation_file and train_size: the folds say it all")
