"""Bodies of responses: what may be asked for, documents to search among it, and what is answered."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.answers.schemas import Retrieval, Sources
from api.validation import refuse_unstorable
from api.vector_stores.schemas import Filter, RankingOptions
from serving.responses.request import FunctionTool, ResponseAsked, Tool

JSON = dict[str, Any]


class FileSearchTool(Tool):
    """Searched once for each request, with the user's last question."""

    type: Literal["file_search"]
    vector_store_ids: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        min_length=1, max_length=16
    )
    max_num_results: int = Field(default=Retrieval().max_passages, ge=1, le=50)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None

    @property
    def sources(self) -> Sources:
        asked = self.ranking_options or RankingOptions()
        chosen = asked.model_dump(include={"ranker", "diversity"}, exclude_unset=True)
        if "score_threshold" in asked.model_fields_set:
            chosen["min_similarity"] = asked.score_threshold
        retrieval = Retrieval(
            max_passages=self.max_num_results,
            filters=self.filters,
            hybrid_search=asked.hybrid_search,
            **chosen,
        )
        return Sources(collections=self.vector_store_ids, retrieval=retrieval)


class ResponseRequest(ResponseAsked):
    tools: list[Annotated[FunctionTool | FileSearchTool, Field(discriminator="type")]] | None = Field(
        default=None, max_length=128
    )

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, value in given.items():
                refuse_unstorable(value, name)
        return given

    @property
    def file_search(self) -> FileSearchTool | None:
        return next((tool for tool in self.tools or [] if isinstance(tool, FileSearchTool)), None)


class ResponseOut(BaseModel):
    """A response in OpenAI's shape; `retrieval` tells how the passages of a search came about."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None
    status: Literal["completed", "failed", "incomplete", "in_progress"]
    model: str
    output: list[JSON]
    error: JSON | None
    incomplete_details: JSON | None
    usage: JSON | None
    notices: list[str] = Field(description="What was left out, for people.")


class ResponseDeleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemPage(BaseModel):
    """Items of a conversation, each with `id` and `type`."""

    object: Literal["list"] = "list"
    data: list[JSON]
    has_more: bool
    first_id: str | None
    last_id: str | None
