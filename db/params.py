"""What a job of each kind takes: the typed parameters behind `POST /v1/jobs`.

Every field that says `auto` is resolved by the worker from `training_data/hyperparameters.py`, by the
model's size and the number of rows, and stored with the result.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Auto = Literal["auto"]
QUANTIZATIONS = (
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K",
)  # fmt: skip
Quantization = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K"
]

# A name is part of file names and of backends' names, hence the narrow alphabet.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-z]{1,64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job-[0-9a-z]{1,64}$")]
CollectionId = Annotated[str, StringConstraints(pattern=r"^vs-[0-9a-z]{1,64}$")]
AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeValue = Annotated[str, StringConstraints(max_length=512)] | bool | int | float
# Whatever a user wants to keep with a row and find it by.
Metadata = Annotated[
    dict[AttributeName, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)
]
# How a conversation is written for a model that brings no chat template (serving/backends/prompt_formats.py).
PromptFormatName = Literal["chatml", "llama", "llama3", "alpaca", "vicuna", "plain"]
Fold = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# Of a source or a target in the operator's file LATHE_SQL.
SqlName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
HubId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,95}$")
]
HubRevision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_./-]{0,199}$")]
HubPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_./ -]{0,250}\.gguf$")]
OllamaName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}(/[A-Za-z0-9._-]{1,80}){0,2}(:[A-Za-z0-9._-]{1,80})?$"
    ),
]
Attributes = Annotated[dict[AttributeName, AttributeValue], Field(max_length=16)]
Language = Annotated[str, StringConstraints(min_length=2, max_length=63)]
CHECKPOINT_ID = re.compile(r"^checkpoint-[0-9a-f]{32}$")
ALIAS_PREFIX = "ft:"
# With a second colon, so that it is never read as a quantization of a model named `ft`.
Alias = Annotated[str, StringConstraints(pattern=r"^ft:[!-9;-~]{1,200}:[!-~]{0,300}$")]
CheckpointId = Annotated[str, StringConstraints(pattern=CHECKPOINT_ID.pattern)]


SAVE_MINUTES: Any = Field(
    default=10.0,
    gt=0,
    le=100_000,
    description="A checkpoint also after so many minutes; null: by steps only.",
)
KEEP_CHECKPOINTS: Any = Field(
    default=2, ge=1, le=1000, description="How many checkpoints to keep: the newest, besides the best one."
)

LANGUAGE: Any = Field(
    default=None,
    description="What the text is in, by name or ISO 639-1 code, for full text; without it, it is detected.",
    examples=["german"],
)


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class FineTuneParams(Params):
    """QLoRA fine-tuning of a base model, on questions and answers or on preferences."""

    base_model: Annotated[str, StringConstraints(min_length=1, max_length=200)] = Field(
        description="A model of this server (`tiny`), a folder in LATHE_BASE_MODELS_DIR, "
        "or a Hugging Face id, optionally with a revision: `Qwen/Qwen3-0.6B@main`.",
        examples=["tiny"],
    )
    training_file: FileId | None = Field(default=None, description="The id of an uploaded CSV or JSONL file.")
    training_source: SqlName | None = Field(
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
    name: ModelName = Field(description="The name the finished model answers to.", examples=["faq"])
    alias: Alias | None = Field(
        default=None,
        description="Another name that it answers to, such as the one that it had elsewhere: ft:gpt-…",
    )

    train_size: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of rows to train on; the rest is split evenly into validation and test. "
        "Default: 1.0, every row.",
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

    method: Literal["supervised", "dpo"] = Field(
        default="supervised",
        description="supervised: learns answers. dpo: learns which of two answers is preferred.",
    )
    beta: Annotated[float, Field(gt=0, le=2)] | Auto = Field(
        default="auto", description="Of dpo: how much it costs to move away from the base model."
    )
    bits: Literal[4, 8, 16] = Field(default=4, description="4: NF4 with double quantisation; 16: plain LoRA.")
    epochs: Annotated[float, Field(gt=0, le=10_000)] | Auto = Field(
        default="auto", description="Passes over the training rows."
    )
    max_steps: int | None = Field(default=None, ge=1, description="Overrides epochs.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = Field(
        default="auto", description="The highest one, reached after the warm-up."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] | Auto = Field(
        default="auto", description="Times the learning rate that auto chooses."
    )
    effective_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto = Field(
        default="auto",
        description="Rows of one step of the optimiser; batch_size and gradient_accumulation_steps follow.",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto", description="Rows of one micro-batch."
    )
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] | Auto = Field(
        default="auto", description="Micro-batches to one step of the optimiser."
    )
    gradient_checkpointing: bool | Auto = Field(
        default="auto", description="Compute activations twice, to save memory."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | Auto = Field(
        default="auto", description="Steps in which the learning rate rises from 0."
    )
    lora_rank: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        default="auto", description="How much the adapter can hold."
    )
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | Auto = Field(
        default="auto", description="The adapter is scaled by lora_alpha / lora_rank."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | Auto = Field(
        default="auto", description="Share of the adapter's inputs dropped in training."
    )
    lora_target_modules: Annotated[list[str], Field(min_length=1, max_length=64)] | Auto = Field(
        default="auto",
        description="The layers that get an adapter, by name: q_proj, v_proj, …",
    )
    lora_bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="Which bias terms are trained too."
    )
    packing: bool | Auto = Field(default="auto", description="Put several short rows into one sequence.")
    assistant_only_loss: bool = Field(default=True, description="Learn the answers only, not the questions.")
    eval_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto", description="Steps between evaluations."
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better loss."
    )
    save_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto", description="Steps between checkpoints."
    )
    save_minutes: float | None = SAVE_MINUTES
    keep_checkpoints: int = KEEP_CHECKPOINTS

    quantizations: list[Quantization] = Field(
        default=["Q4_K_M"], min_length=1, max_length=8, description="The first one is served by the name."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FineTuneParams":
        self._check_rows()
        if self.validation_file is not None and self.train_size not in (None, 1.0):
            raise ValueError("validation_file and train_size exclude each other: give one of them")
        no_evaluation = (
            self.validation_file is None and self.train_size in (None, 1.0) and not self.validation_folds
        )
        if self.early_stopping_patience is not None and no_evaluation:
            raise ValueError(
                "early_stopping_patience needs validation rows: give validation_file or train_size below 1"
            )
        if self.learning_rate_multiplier != "auto" and self.learning_rate != "auto":
            raise ValueError(
                "learning_rate_multiplier and learning_rate exclude each other: give one of them"
            )
        if self.effective_batch_size != "auto" and {self.batch_size, self.gradient_accumulation_steps} != {
            "auto"
        }:
            raise ValueError(
                "effective_batch_size settles batch_size and gradient_accumulation_steps: leave these out"
            )
        if len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self

    @model_validator(mode="after")
    def _fits_method(self) -> "FineTuneParams":
        if self.method != "dpo":
            if self.beta != "auto":
                raise ValueError('beta is of the method "dpo": leave it out, or give that')
            return self
        if self.packing is True:
            raise ValueError("packing puts rows of one answer together, and dpo compares two: leave it out")
        if not self.assistant_only_loss:
            raise ValueError("assistant_only_loss cannot be false with dpo, which compares answers alone")
        if self.lora_dropout not in ("auto", 0):
            raise ValueError("lora_dropout must be 0 with dpo: chance would decide between two answers")
        return self

    def _check_rows(self) -> None:
        if (self.training_file is None) == (self.training_source is None):
            raise ValueError("training_file is missing: give it, or training_source in its place")
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


class PretrainParams(Params):
    """A tokenizer and a small language model from scratch."""

    name: ModelName = Field(description="The name the finished model answers to.", examples=["my-tiny"])
    training_file: FileId | None = Field(
        default=None, description="A UTF-8 text file; without it, the topics of Python's own help."
    )
    tokenizer: str | None = Field(
        default=None,
        max_length=200,
        description="An existing tokenizer: a model of this server, or a Hugging Face id. "
        "Default: a byte-level BPE learnt from the text.",
    )
    vocab_size: int = Field(
        default=2048, ge=300, le=262_144, description="Tokens that a new tokenizer learns."
    )
    context_length: int = Field(default=512, ge=32, le=131_072, description="Tokens.")
    hidden_size: int = Field(
        default=256, ge=256, le=16_384, multiple_of=256, description="Multiples of 256, so that K-quants fit."
    )
    layers: int = Field(default=4, ge=1, le=128, description="Transformer blocks.")
    heads: int = Field(default=4, ge=1, le=128, description="Attention heads of each block.")
    # These defaults are the recipe of `tiny`; docs/experiments.md has what they were chosen from.
    batch_size: int = Field(default=4, ge=1, le=4096, description="Sequences of one step.")
    steps: int = Field(default=60, ge=1, le=10_000_000, description="Steps of the optimiser.")
    learning_rate: float = Field(default=0.02, gt=0, le=1, description="The highest one, of Muon.")
    seed: int = Field(default=42, ge=-1, le=2**31 - 1, description="-1 draws one, and stores it.")
    sample_every: int = Field(default=20, ge=1, description="Steps between printed samples.")
    sample_prompt: str = Field(default="The ", max_length=2000, description="What samples begin with.")
    start_from: str | None = Field(
        default=None, max_length=200, description="A model of this server to go on training."
    )
    save_steps: int | None = Field(default=None, ge=1, description="Steps between checkpoints.")
    save_minutes: float | None = SAVE_MINUTES
    keep_checkpoints: int = KEEP_CHECKPOINTS
    quantizations: list[Quantization] = Field(
        default=["Q4_K_M"], min_length=1, max_length=8, description="The first one is served by the name."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainParams":
        if self.tokenizer is not None and self.start_from is not None:
            raise ValueError("tokenizer and start_from exclude each other: a model keeps its own tokenizer")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads must divide hidden_size {self.hidden_size}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size / heads must be even, for the rotary embedding")
        if len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self


class ExportParams(Params):
    """The last three steps, for a checkpoint or for what a job has trained."""

    checkpoint: CheckpointId | None = Field(
        default=None, description="A checkpoint, as GET /v1/jobs/{id}/checkpoints lists them."
    )
    job: JobId | None = Field(
        default=None, description="A job whose training is done: its adapter, or its weights."
    )
    name: ModelName | None = Field(
        default=None,
        description="The name the model answers to. Default: <name of its job>-step-<N> for a checkpoint, "
        "the job's own for a job.",
        examples=["faq-step-20"],
    )
    quantizations: list[Quantization] = Field(
        default=["Q4_K_M"], min_length=1, max_length=8, description="The first one is served by the name."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ExportParams":
        if (self.checkpoint is None) == (self.job is None):
            raise ValueError("checkpoint or job: give exactly one of the two, to say what is exported")
        if len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self


class PullSource(Params):
    """Where a model that is already made comes from: one of the three."""

    file: FileId | None = Field(
        default=None,
        description="An uploaded GGUF, or a .zip of a folder with config.json, tokenizer and safetensors.",
    )
    hub: HubId | None = Field(
        default=None,
        description="A repository of the Hugging Face hub: safetensors, or GGUF files.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    revision: HubRevision | None = Field(
        default=None, description="Of the hub: a branch, tag or commit. The commit it is goes with the model."
    )
    filename: HubPath | None = Field(
        default=None, description="Of the hub: which GGUF file, where the repository has several."
    )
    ollama: OllamaName | None = Field(
        default=None, description="A model of Ollama's library.", examples=["qwen3:0.6b"]
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PullSource":
        if [self.file, self.hub, self.ollama].count(None) != 2:
            raise ValueError("file, hub or ollama: give exactly one of the three, to say where it comes from")
        if self.hub is None and (self.revision or self.filename):
            raise ValueError("revision and filename are the hub's: give them with hub")
        return self


class PullParams(Params):
    """Fetch a model that is already made: from an upload, a hub, or Ollama's library."""

    source: PullSource = Field(description="Where it comes from.")
    name: ModelName = Field(description="The name the model answers to.", examples=["qwen"])
    quantizations: list[Quantization] = Field(
        default=["Q4_K_M"],
        min_length=1,
        max_length=8,
        description="Of safetensors: the first one is served by the name. A GGUF is served as it is.",
    )
    prompt_format: PromptFormatName | None = Field(
        default=None,
        description="How conversations are written for a model that brings no chat template; else the "
        "template that it brings is kept.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PullParams":
        if self.source.ollama is not None and self.prompt_format is not None:
            raise ValueError("prompt_format: a model of Ollama's library brings its template, leave it out")
        if len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self


class PushParams(Params):
    """Upload a model, or what a job has trained, to a Hugging Face hub."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=600)] | None = Field(
        default=None, description="A model of this server: `faq`, `faq@2`, an alias.", examples=["faq"]
    )
    job: JobId | None = Field(default=None, description="A job whose training is done.")
    checkpoint: CheckpointId | None = Field(
        default=None, description="A checkpoint, as GET /v1/jobs/{id}/checkpoints lists them."
    )
    repository: HubId = Field(
        description="Where it goes: `organisation/name`. It is made if there is none.", examples=["org/faq"]
    )
    what: Literal["adapter", "merged", "gguf"] | Auto = Field(
        default="auto",
        description="The adapter; whole weights in 16 bits, merged with it, as safetensors; the GGUF files "
        "that are published. auto: the adapter of a fine-tune, else the weights, else the GGUF files.",
    )
    quantizations: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,20}$")]] | None = Field(
        default=None, min_length=1, max_length=16, description="Of gguf: which files. Default: all."
    )
    branch: HubRevision = Field(default="main", description="Of the repository. It is made if there is none.")
    private: bool = Field(
        default=True,
        description="A new repository is private; one that is public is refused unless this is false.",
    )
    message: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="What the commit says. Default: what it holds.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PushParams":
        if [self.model, self.job, self.checkpoint].count(None) != 2:
            raise ValueError("model, job or checkpoint: give exactly one of the three, to say what is pushed")
        if self.quantizations is not None and self.what != "gguf":
            raise ValueError('quantizations are of GGUF files: give what as "gguf"')
        if self.quantizations is not None and len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self
