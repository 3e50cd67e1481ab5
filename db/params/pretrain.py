"""What training from scratch takes."""

from pydantic import Field, model_validator

from db.params.values import (
    ASKED_QUANTIZATIONS,
    IMATRIX,
    KEEP_CHECKPOINTS,
    SAVE_MINUTES,
    AskedQuantizations,
    FileId,
    ModelName,
    Params,
)


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
    quantizations: AskedQuantizations = Field(default=["Q4_K_M"], description=ASKED_QUANTIZATIONS)
    imatrix: bool = IMATRIX

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainParams":
        if self.tokenizer is not None and self.start_from is not None:
            raise ValueError("tokenizer and start_from exclude each other: a model keeps its own tokenizer")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads must divide hidden_size {self.hidden_size}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size / heads must be even, for the rotary embedding")
        return self
