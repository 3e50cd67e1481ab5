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
