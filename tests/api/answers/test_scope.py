"""Which documents a request may name."""

import json
import re
from typing import Any

import pytest

from db.models import Collection
from db.queries.collections import create_collection
from db.session import SessionFactory, transaction
from tests.api.answers.conftest import Desk
from tests.api.conftest import error_of

JSON = dict[str, Any]


class TestScope:
    def test_nothing_of_another_project_is_found_or_told(self, desk: Desk) -> None:
        desk.ready("spy")
        secret = "The secret number of days of holidays a year is forty."
        foreign, [file_id] = desk.fill("vault", {"secret.txt": secret}, project="neighbour")
        own, _ = desk.fill("ours", {"a.txt": "There are thirty days of holidays a year."})
        for given, param in (
            ({"collections": [foreign]}, "collections"),
            ({"collections": ["vault"]}, "collections"),
            ({"collections": [own, foreign]}, "collections"),
            ({"documents": [file_id]}, "documents"),
            ({"documents": [file_id], "collections": [own]}, "documents"),
        ):
            answer = desk.ask("spy", **given)
            assert answer.status_code == 404
            error = error_of(answer)
            assert error["param"] == param
            unknown = json.dumps(given).replace(foreign, "vs-0").replace(file_id, "file-0")
            unknown = unknown.replace("vault", "vs-none")
            other = error_of(desk.ask("spy", **json.loads(unknown)))
            named = re.sub(r"'.*?'", "…", error["message"])
            assert named == re.sub(r"'.*?'", "…", other["message"])
        answer = desk.ask("spy", collections=["ours"], retrieval={"max_passages": 50, "min_similarity": 0})
        assert "secret" not in answer.text
        assert "secret" not in desk.said()

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"collections": []}, "collections"),
            ({"collections": "ours"}, "collections"),
            ({"collections": ["nobody's"]}, "collections"),
            ({"collections": ["twice"]}, "collections"),
            ({"documents": False}, "documents"),
            ({"documents": [{"title": "a"}]}, "documents"),
            ({"retrieval": {}}, "retrieval"),
            ({"collections": ["one"], "retrieval": {"max_pasages": 3}}, "retrieval.max_pasages"),
            ({"collections": ["one"], "retrieval": {"min_similarity": 2}}, "retrieval.min_similarity"),
            ({"collections": ["one"], "messages": "hi"}, "messages"),
            ({"collections": ["o\0ne"]}, "collections"),
            ({"collections": ["one"], "messages": [{"role": "user", "content": "d\0ys"}]}, "messages"),
            (
                {
                    "collections": ["one"],
                    "messages": [{"role": "system", "content": 5}, {"role": "user", "content": "x"}],
                },
                "messages",
            ),
            ({"collections": ["one"], "messages": [{"role": "system", "content": "x"}]}, "messages"),
            ({"collections": ["one"], "messages": [{"role": "user", "content": " "}]}, "messages"),
        ],
    )
    def test_what_cannot_be_understood_names_the_field(
        self, desk: Desk, session_factory: SessionFactory, fields: JSON, param: str
    ) -> None:
        desk.ready("strict")
        with transaction(session_factory) as session:
            for name in ("one", "twice", "twice"):
                if name == "twice" or not session.query(Collection).filter_by(name=name).count():
                    create_collection(session, project_id="default", name=name)
        answer = desk.ask("strict", **fields)
        assert answer.status_code in (400, 404)
        assert error_of(answer)["param"] == param

    def test_says_what_documents_may_be(self, desk: Desk) -> None:
        desk.ready("plain")
        [said, other] = [
            error_of(desk.ask("plain", documents=value))["message"] for value in (False, "file-1")
        ]
        assert said == other == "documents must be a list, or true."

    def test_a_route_that_searches_nothing_says_so(self, desk: Desk) -> None:
        desk.ready("older")
        body = {"model": "older", "prompt": "x", "collections": ["ours"]}
        error = error_of(desk.api.post("/v1/completions", json=body))
        assert (error["param"], error["type"]) == ("collections", "invalid_request_error")
        assert "/v1/chat/completions" in error["message"]
        assert not desk.server.asked
