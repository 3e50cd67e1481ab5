"""What a search adds to a response: an item that tells of it, and the places that cite its passages."""

from typing import Any

from api.answers.completions import annotations_of, note_unknown
from api.answers.schemas import Citation, Grounding
from db.ids import new_id

JSON = dict[str, Any]


def annotations(response: JSON, grounding: Grounding, text: str) -> list[JSON]:
    """Where a text cites passages, of which the response tells: `index` is the character where it does."""
    found, unknown = annotations_of(text, grounding.citations)
    note_unknown(grounding, unknown)
    response["retrieval"] = grounding.retrieval.model_dump()
    return [
        {
            "type": "file_citation",
            "file_id": row.file_citation["file_id"],
            "filename": row.file_citation["filename"],
            "index": row.start_index,
            "number": row.file_citation["number"],
        }
        for row in found
    ]


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
