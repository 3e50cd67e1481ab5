"""Responses and their items as they are shown, and what an answer took."""

from collections.abc import Collection, Mapping
from typing import Any

from api.answers.schemas import Citation, Grounding
from db.ids import new_id

JSON = dict[str, Any]
RESULTS = "file_search_call.results"


def shown(response: JSON, include: Collection[str]) -> JSON:
    """A response with what was asked for, and without the rest; it is changed."""
    response["output"] = [shown_item(item, include) for item in response["output"]]
    return response


def shown_item(item: JSON, include: Collection[str]) -> JSON:
    if item["type"] == "file_search_call" and RESULTS not in include:
        return {**item, "results": None}
    return item


def search_call(grounding: Grounding) -> JSON:
    """The item that tells of a search: the passages that the model was given."""
    return {
        "id": new_id("fs"),
        "type": "file_search_call",
        "status": "completed",
        "queries": grounding.retrieval.queries,
        "results": [_result(citation) for citation in grounding.citations],
    }


def _result(citation: Citation) -> JSON:
    row = citation.model_dump(include={
        "number", "file_id", "filename", "attributes", "score", "text", "first_page", "last_page", "section",
    })  # fmt: skip
    return {**row, "vector_store_id": citation.collection_id}


def usage_of(told: Mapping[str, Any]) -> JSON:
    """From the chat route's words into those of responses."""
    asked, said = told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (told.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": told.get("total_tokens") or asked + said,
    }
