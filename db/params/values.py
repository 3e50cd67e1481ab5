"""What the params of several kinds have in common: names, ids, and how each is written."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

Auto = Literal["auto"]
QUANTIZATIONS = (
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K",
)  # fmt: skip
Quantization = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K"
]


AUTO = "auto"
# What `auto` chooses from. Fewer bits than three cost more than any bound that makes sense.
AUTO_QUANTIZATIONS: tuple[Quantization, ...] = ("Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
AskedQuantization = Literal[
    "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_M", "Q2_K", "auto"
]
TypeT = TypeVar("TypeT", bound=str)


def _distinct(types: list[TypeT]) -> list[TypeT]:
    if len(set(types)) != len(types):
        raise ValueError("quantizations names a type twice")
    return types


Quantizations = Annotated[list[Quantization], Field(min_length=1, max_length=8), AfterValidator(_distinct)]
AskedQuantizations = Annotated[
    list[AskedQuantization], Field(min_length=1, max_length=8), AfterValidator(_distinct)
]
ASKED_QUANTIZATIONS = (
    "The first one is served by the name. auto: the smallest whose answers stay as near to the weights' as "
    "the operator demands."
)


def quantizations_made(asked: Iterable[str]) -> list[str]:
    """The types that an export makes: those asked for, and in place of `auto` all that it chooses from."""
    made: dict[str, None] = {}
    for name in asked:
        made |= dict.fromkeys(AUTO_QUANTIZATIONS if name == AUTO else (name,))
    return list(made)


# A name is part of file names and of backends' names, hence the narrow alphabet.
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-z]{1,64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job-[0-9a-z]{1,64}$")]
CollectionId = Annotated[str, StringConstraints(pattern=r"^vs-[0-9a-z]{1,64}$")]
AttributeName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AttributeValue = Annotated[str, StringConstraints(max_length=512)] | bool | int | FiniteFloat
# Whatever a user wants to keep with a row and find it by.
Metadata = Annotated[
    dict[AttributeName, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)
]
# How a conversation is written for a model that brings no chat template (serving/backends/prompt_formats.py).
PromptFormatName = Literal["chatml", "llama", "llama3", "alpaca", "vicuna", "plain"]
Fold = Annotated[str, StringConstraints(min_length=1, max_length=200)]
# Of a reward: built in, or in the operator's file LATHE_REWARDS.
RewardName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
# Of a source or a target in the operator's file LATHE_SQL, or a cluster in LATHE_RAY_CLUSTERS.
OperatorsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
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

IMATRIX: Any = Field(
    default=False,
    description="Weigh each column by what flows through it when the model reads its training rows. Costs a "
    "16-bit file and a run over up to 50,000 tokens; gains the more, the fewer bits a type has.",
)

LANGUAGE: Any = Field(
    default=None,
    description="What the text is in, by name or ISO 639-1 code, for full text; without it, it is detected.",
    examples=["german"],
)


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
