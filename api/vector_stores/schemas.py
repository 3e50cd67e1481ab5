"""Bodies of collections, in the shape of OpenAI's vector stores."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from api.pages import Identified
from api.retrieval.rankers import RANKERS, Ranker
from db.params.values import LANGUAGE, Attributes, FileId, Language, Metadata

Name = Annotated[str, Field(max_length=200)]


FILE = "file-0199f3a2c4d17b60a1b2c3d4e5f60718"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


class ExpiresAfter(Body):
    anchor: Literal["last_active_at"] = "last_active_at"
    days: int = Field(ge=1, le=365)


class StaticChunking(Body):
    max_chunk_size_tokens: int = Field(
        ge=16, le=4096, description="At most; never more than the embedding model takes."
    )
    chunk_overlap_tokens: int = Field(ge=0, description="At most half of it.")

    @model_validator(mode="after")
    def _consistent(self) -> "StaticChunking":
        if self.chunk_overlap_tokens * 2 > self.max_chunk_size_tokens:
            raise ValueError("chunk_overlap_tokens must be at most half of max_chunk_size_tokens")
        return self


class ChunkingStrategy(Body):
    type: Literal["auto", "static"] = "auto"
    static: StaticChunking | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChunkingStrategy":
        if (self.type == "static") != (self.static is not None):
            raise ValueError("static goes with the type static, and with no other")
        return self


class CollectionRequest(Body):
    model_config = _example(name="handbooks", file_ids=[FILE])

    name: Name = ""
    description: str | None = Field(default=None, max_length=512)
    file_ids: list[FileId] = Field(default=[], max_length=2000)
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: ChunkingStrategy | None = None


class CollectionChange(Body):
    """What is given is changed; the rest stays."""

    model_config = _example(name="handbooks of 2025")

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: ExpiresAfter | None = None


class FileCounts(BaseModel):
    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


class CollectionOut(Identified):
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: ExpiresAfter | None
    expires_at: int | None
    last_active_at: int
    metadata: dict[str, str]
    embedding_model: str | None = Field(description="Fixed by the first document.")


class CollectionDeleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: Literal[True] = True


class FileRequest(Body):
    model_config = _example(file_id=FILE, attributes={"year": 2025})

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None
    language: Language | None = LANGUAGE
    password: str | None = Field(
        default=None, max_length=512, description="Of an encrypted PDF; forgotten once it is read."
    )


class BatchRequest(Body):
    """Either `file_ids`, which share `attributes`, `chunking_strategy` and `language`, or `files`, each with
    its own."""

    model_config = _example(file_ids=[FILE], attributes={"year": 2025})

    file_ids: list[FileId] | None = Field(default=None, min_length=1, max_length=2000)
    files: list[FileRequest] | None = Field(default=None, min_length=1, max_length=2000)
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None
    language: Language | None = LANGUAGE
    replace: bool = Field(
        default=False, description="Take the place of documents of the same file name, once they are ready."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "BatchRequest":
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("file_ids or files: give exactly one of the two")
        return self

    @property
    def named_by(self) -> str:
        """The field that names the files."""
        return "file_ids" if self.files is None else "files"


class AttributesChange(Body):
    model_config = _example(attributes={"year": 2026})

    attributes: Attributes | None


class LastError(BaseModel):
    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class StaticOut(BaseModel):
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class ChunkingOut(BaseModel):
    type: Literal["static"] = "static"
    static: StaticOut


class DocumentOut(Identified):
    """`id` is the file's."""

    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    usage_bytes: int
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    last_error: LastError | None
    chunking_strategy: ChunkingOut
    attributes: dict[str, Any]
    filename: str
    sha256: str
    language: str | None = Field(description="None until it is read, unless it was given.")
    pages: int | None = Field(description="None for formats without pages.")
    chunks: int
    job_id: str | None = Field(description="The job that ingests it, or did.")


class DocumentDeleted(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: Literal[True] = True


class DocumentsDeleted(BaseModel):
    object: Literal["model.documents.deleted"] = "model.documents.deleted"
    model: str
    collection_id: str | None = Field(description="The collection, which stays and is empty now.")
    documents: int = Field(description="How many are gone; their files stay.")
    deleted: Literal[True] = True


class BatchOut(BaseModel):
    """`id` is that of the ingest job."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: FileCounts


class TextContent(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ContentPage(BaseModel):
    """The text that was read of a document: an entry a page where it has pages."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[TextContent]
    has_more: Literal[False] = False
    next_page: None = None


Scalar = bool | int | FiniteFloat | str


class ComparisonFilter(Body):
    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str = Field(min_length=1, max_length=64)
    value: Scalar | Annotated[list[Scalar], Field(max_length=1000)]


class CompoundFilter(Body):
    type: Literal["and", "or"]
    filters: list["Filter"] = Field(min_length=1, max_length=64)


Filter = Annotated[ComparisonFilter | CompoundFilter, Field(discriminator="type")]
CompoundFilter.model_rebuild()


LEAST_WEIGHT = 0.001


class HybridWeights(Body):
    embedding_weight: float = Field(default=1.0, ge=0, le=1000)
    text_weight: float = Field(default=1.0, ge=0, le=1000)

    @model_validator(mode="after")
    def _consistent(self) -> "HybridWeights":
        if max(self.embedding_weight, self.text_weight) < LEAST_WEIGHT:
            raise ValueError(f"embedding_weight or text_weight must be at least {LEAST_WEIGHT}")
        return self


class RankingOptions(Body):
    ranker: Ranker = Field(default="auto", description=RANKERS)
    score_threshold: float = Field(
        default=0.0, ge=0, le=1, description="The least `similarity` of a passage that is given."
    )
    hybrid_search: HybridWeights | None = None
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Above 0, passages that resemble those before them come later (MMR); `score` stays.",
    )


def _not_blank(query: str) -> str:
    if not query.strip():
        raise ValueError("query must hold more than white space")
    return query


Query = Annotated[str, Field(min_length=1, max_length=8000), AfterValidator(_not_blank)]


class SearchRequest(Body):
    model_config = _example(
        query="How many days of holidays?", filters={"type": "gte", "key": "year", "value": 2025}
    )

    query: Query | Annotated[list[Query], Field(min_length=1, max_length=16)]
    max_num_results: int = Field(default=10, ge=1, le=50)
    filters: Filter | None = None
    ranking_options: RankingOptions = RankingOptions()
    rewrite_query: bool = Field(
        default=False, description="Let a chat model put the query in other words, and search for those, too."
    )


class Passage(BaseModel):
    """A chunk that was found, and where it stands: `text` is characters `start` to before `end` of the text
    that `GET …/files/{file_id}/content` gives, its pages joined by an empty line."""

    file_id: str
    filename: str
    score: float = Field(description="What the passages are ordered by, 0 to 1.")
    similarity: float = Field(description="Cosine of the query's vector and the passage's.")
    attributes: dict[str, Any]
    content: list[TextContent]
    first_page: int | None
    last_page: int | None
    page_label: str | None = Field(description="What is printed on the first page, where that differs.")
    section: str | None
    start: int
    end: int


class SearchOut(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str] = Field(
        description="What was searched for: the query, and its rewritings that mean the same."
    )
    data: list[Passage]
    has_more: Literal[False] = False
    next_page: None = None
    in_progress: int = Field(description="Documents that are still being read, and not searched yet.")
    used: list[str] = Field(
        description="What was done, in this order.",
        examples=[["embedding", "vector_exact", "full_text", "rrf"]],
    )
    seconds: dict[str, float] = Field(description="How long each of it took.")
    notices: list[str] = Field(description="What was asked for and could not be done, or was left out.")
