"""What is said of filters that cannot be understood."""

import httpx
import pytest


@pytest.mark.parametrize(
    ("filters", "param", "message"),
    [
        ({"type": "eq", "value": 1}, "filters.key", "filters.key is missing."),
        ({"type": "like", "key": "a"}, "filters.type", "filters.type must be one of 'eq', 'ne'"),
        ({"key": "a", "value": 1}, "filters.type", "filters.type is missing."),
        (
            {"type": "and", "filters": [{"type": "or", "filters": [{"type": "in", "value": [1]}]}]},
            "filters.filters[0].filters[0].key",
            "is missing.",
        ),
        (
            {"type": "and", "filters": [{"type": "eq", "key": "a", "valu": 1, "value": 1}]},
            "filters.filters[0].valu",
            "There is no field valu. Did you mean value?",
        ),
        ({"type": "eq", "key": "a", "value": None}, "filters.value", "filters.value must be true or"),
        (1, "filters", "filters must be an object."),
    ],
)
def test_bad_filters_name_the_field(api: httpx.Client, filters: object, param: str, message: str) -> None:
    body = {"query": "x", "filters": filters}
    answer = api.post("/v1/vector_stores/vs-1/search", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert "Filter" not in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (
            "/v1/vector_stores/vs-1/search",
            '{"query": "x", "filters": {"type": "eq", "key": "a", "value": 1e999}}',
            "filters.value",
            "a finite number",
        ),
        ("/v1/vector_stores/vs-1/search", '{"query": " \\n"}', "query", "more than white space"),
        (
            "/v1/vector_stores",
            f'{{"metadata": {{"{"k" * 65}": "v"}}}}',
            "metadata",
            "each name in metadata must have at most 64 characters.",
        ),
        (
            "/v1/vector_stores/vs-1/files/file-1",
            '{"attributes": {"": 1}}',
            "attributes",
            "each name in attributes must have at least 1 character.",
        ),
        ("/v1/vector_stores/vs-1/files/file-1", '{"attributes": {"x": 1e999}}', "attributes.x", "finite"),
    ],
)
def test_what_no_database_takes_is_named(
    api: httpx.Client, path: str, body: str, param: str, message: str
) -> None:
    error = api.post(path, content=body, headers={"content-type": "application/json"}).json()["error"]
    assert error["param"] == param
    assert message in error["message"]
