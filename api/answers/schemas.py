"""What an answer may rest on, and what is told of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.retrieval.rankers import RANKERS, Ranker
from api.validation import explain
from api.vector_stores.schemas import Filter, HybridWeights
from db.errors import InvalidInput
from db.params.values import FileId

# Of all-MiniLM-L6-v2, by bench.retrieval: refuses four of five questions that no text answers, and one or two
# in a hundred of the others.
MIN_SIMILARITY = 0.25
# Some 1,800 tokens by the usual chunks: an answer seldom stands further down, and small windows hold no more.
MAX_PASSAGES = 8
FIELDS = ("collections", "documents", "retrieval")


class Retrieval(BaseModel):
    """How passages are searched for and chosen."""

    model_config = ConfigDict(extra="forbid")

    max_passages: int = Field(default=MAX_PASSAGES, ge=1, le=50)
    min_similarity: float = Field(
        default=MIN_SIMILARITY, ge=0, le=1, description="The least cosine of a passage that is given."
    )
    rewrite_query: bool = Field(default=False, description="Let the model put it in other words, too.")
    diversity: float = Field(
        default=0.0, ge=0, le=1, description="Above 0, prefer passages that differ from each other (MMR)."
    )
    ranker: Ranker = Field(default="auto", description=RANKERS)
    hybrid_search: HybridWeights | None = Field(
        default=None, description="How much meaning and words each count."
    )
    filters: Filter | None = Field(default=None, description="On the attributes of documents.")


class Sources(BaseModel):
    """The fields of a request that has passages found for it."""

    collections: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(
        min_length=1, max_length=16
    )] | None = Field(default=None, description="Ids or names of collections.")  # fmt: skip
    documents: Annotated[list[FileId], Field(min_length=1, max_length=256)] | Literal[True] | None = Field(
        default=None,
        description="Ids of files: only these documents are searched. true: the model's own collection.",
    )
    retrieval: Retrieval | None = None

    @model_validator(mode="after")
    def _has_sources(self) -> "Sources":
        if self.retrieval is not None and not self.is_grounded:
            raise ValueError("retrieval goes with collections or documents: name what is to be searched")
        return self

    @property
    def is_grounded(self) -> bool:
        return self.collections is not None or self.documents is not None


def read_sources(members: dict[str, Any]) -> Sources | None:
    """What of a request's members names documents; None where it names none.

    Raises:
        InvalidInput: it cannot be understood.
    """
    given = {name: members[name] for name in FIELDS if members.get(name) is not None}
    if not given:
        return None
    try:
        return Sources.model_validate(given)
    except ValidationError as error:
        message, param, code = explain(
            [{**row, "loc": ("body", *row["loc"])} for row in error.errors()], Sources
        )
        raise InvalidInput(message, param=param, code=code) from None


class Citation(BaseModel):
    """A passage that the model was given.

    `text` is characters `start_char` to before `end_char` of the document's text: what
    `GET /v1/vector_stores/{collection_id}/files/{file_id}/content` gives, its pages joined by an empty line.
    """

    number: int = Field(description="What the answer cites it by: [1].")
    collection_id: str
    file_id: str
    document_id: str
    filename: str
    attributes: dict[str, Any] = Field(description="Of the document.")
    first_page: int | None
    last_page: int | None
    page_label: str | None = Field(description="What is printed on the first page, where that differs.")
    section: str | None
    start_char: int
    end_char: int
    score: float
    similarity: float
    text: str


class Report(BaseModel):
    """How the passages came about."""

    used: list[str] = Field(examples=[["embedding", "vector_exact", "full_text", "rrf", "packing"]])
    seconds: dict[str, float]
    queries: list[str] = Field(description="What was searched for.")
    found: int = Field(description="Passages that are similar enough.")
    given: int = Field(description="Passages that the model got: neighbours as one, the same text once.")
    indexing: int = Field(description="Documents that are still being read, and were not searched.")
    notices: list[str] = Field(description="What was left out or could not be done, for people.")


class Grounding(BaseModel):
    """What an answer rests on, beside the answer."""

    citations: list[Citation]
    retrieval: Report


class Annotation(BaseModel):
    """A place of an answer that cites a passage."""

    type: Literal["file_citation"] = "file_citation"
    text: str = Field(examples=["[1]"])
    start_index: int
    end_index: int
    file_citation: dict[str, Any] = Field(description="number, file_id, filename, first_page, last_page")
