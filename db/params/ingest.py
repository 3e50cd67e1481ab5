"""What jobs take that read documents."""

from pydantic import Field, model_validator

from db.params.values import LANGUAGE, Attributes, CollectionId, FileId, Language, Params


class IngestParams(Params):
    """Read documents into a collection, where they can be searched."""

    collection: CollectionId = Field(description="The collection (vector store) that takes the documents.")
    files: list[FileId] = Field(
        min_length=1,
        max_length=2000,
        description="The ids of uploaded PDF, DOCX, HTML, Markdown or text files.",
    )
    attributes: Attributes = Field(default={}, description="What searches can filter the documents by.")
    chunk_tokens: int = Field(
        default=220,
        ge=16,
        le=4096,
        description="Tokens of a chunk at most; never more than the embedding model takes.",
    )
    chunk_overlap_tokens: int = Field(
        default=40, ge=0, le=2048, description="Tokens that a chunk shares with the one before; at most half."
    )
    language: Language | None = LANGUAGE
    replace: bool = Field(
        default=False,
        description="Take the place of documents of the same file name, at once when the new one is ready.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "IngestParams":
        if self.chunk_overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError("chunk_overlap_tokens must be at most half of chunk_tokens")
        if len(set(self.files)) != len(self.files):
            raise ValueError("files names a file twice")
        return self
