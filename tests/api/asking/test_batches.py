"""Batches by the stock client, answered by a real worker."""

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from sqlalchemy import select

from db.models import WebhookDelivery
from tests.api.asking.conftest import CONCURRENCY, Installation, kill, request_line

CHAT = "/v1/chat/completions"


def create(installation: Installation, content: str, endpoint: Any = CHAT, **options: Any) -> str:
    file_id = installation.upload(content)
    client = installation.client
    made = client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options)
    assert made.object == "batch"
    assert made.input_file_id == file_id
    return made.id


class TestAWholeBatch:
    def test_answers_errors_and_counts(self, installation: Installation) -> None:
        installation.api.post(
            "/v1/webhook_endpoints",
            json={"name": "b", "url": "https://93.184.215.14/hook", "event_types": ["batch.completed"]},
        ).raise_for_status()
        questions = ["one", "refuse it", "flaky", "broken", "two"]
        content = "".join(request_line(f"id-{n}", question) for n, question in enumerate(questions))
        made = create(installation, content, metadata={"team": "search"})
        batch = installation.batch_ended(made)

        assert (batch.status, batch.model, batch.metadata) == ("completed", "sage", {"team": "search"})
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (5, 3, 2)
        assert batch.usage.total_tokens == 15
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
        assert batch.expires_at == batch.created_at + 24 * 3600
        answered = installation.lines(batch.output_file_id)
        assert [line["custom_id"] for line in answered] == ["id-0", "id-2", "id-4"]
        first = answered[0]["response"]
        assert (first["status_code"], answered[0]["error"]) == (200, None)
        assert first["body"]["choices"][0]["message"]["content"] == "So: one"
        refused, broken = installation.lines(batch.error_file_id)
        assert (refused["custom_id"], refused["response"]["status_code"]) == ("id-1", 400)
        assert refused["response"]["body"]["error"]["message"] == "That is refused."
        assert (broken["custom_id"], broken["response"]["status_code"]) == ("id-3", 503)
        # What was refused once is not asked again; what was not answered is, so many times.
        assert installation.oracle.asked == {"one": 1, "two": 1, "refuse it": 1, "flaky": 2, "broken": 3}
        output = installation.client.files.retrieve(batch.output_file_id)
        assert output.purpose == "batch_output"
        with installation.sessions() as session:
            told = select(WebhookDelivery.event_type).where(WebhookDelivery.job_id == made)
            assert list(session.scalars(told)) == ["batch.completed"]

    def test_other_endpoints(self, installation: Installation) -> None:
        bodies = {
            "/v1/completions": {"model": "sage", "prompt": "go on"},
            "/v1/embeddings": {"model": "sage", "input": "four"},
            "/v1/responses": {"model": "sage", "instructions": "Be short.", "input": "three"},
        }
        made = {
            url: create(installation, request_line("a", "", url=url, body=body), url)
            for url, body in bodies.items()
        }
        said = {
            url: installation.lines(installation.batch_ended(batch).output_file_id)[0]["response"]["body"]
            for url, batch in made.items()
        }
        assert said["/v1/completions"]["choices"][0]["text"] == "So: go on"
        assert said["/v1/embeddings"]["data"][0]["embedding"] == [0.5, 4.0]
        response = Response.model_validate(said["/v1/responses"])
        assert (response.output_text, response.status, response.model) == ("So: three", "completed", "sage")
        asked = next(body for body in installation.oracle.bodies if "messages" in body)
        assert [message["role"] for message in asked["messages"]] == ["system", "user"]
        usage = installation.client.batches.retrieve(made["/v1/responses"]).usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (3, 2)

    def test_vectors_of_another_length_than_was_asked_for_are_an_error(
        self, installation: Installation
    ) -> None:
        url = "/v1/embeddings"
        body = {"model": "sage", "input": "four", "dimensions": 5}
        batch = installation.batch_ended(create(installation, request_line("a", "", url=url, body=body), url))
        [error] = installation.lines(batch.error_file_id)
        assert error["response"]["status_code"] == 400
        assert error["response"]["body"]["error"]["param"] == "dimensions"

    def test_lists_and_pages(self, installation: Installation) -> None:
        made = [create(installation, request_line("a", "x")) for _ in range(3)]
        first = installation.client.batches.list(limit=2)
        assert [batch.id for batch in first.data] == made[:0:-1]
        assert made[0] in [batch.id for batch in installation.client.batches.list(limit=2)]

    def test_a_job_that_is_no_batch(self, installation: Installation) -> None:
        job = installation.api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "m"}}).json()
        with pytest.raises(openai.NotFoundError, match="is no batch"):
            installation.client.batches.retrieve(job["id"])


class TestWhatIsRefused:
    def test_each_wrong_line_is_named(self, installation: Installation) -> None:
        body = {"model": "sage", "messages": [{"role": "user", "content": "refused"}]}
        lines = [
            request_line("a", "refused"),
            request_line("a", "refused"),
            "{no json\n",
            request_line("b", "refused", url="/v1/embeddings"),
            request_line("c", "refused", method="GET"),
            request_line("d", "refused", body={"messages": body["messages"]}),
            request_line("e", "refused", body={**body, "model": "other"}),
            request_line("f", "refused", body={**body, "stream": True}),
            request_line("g", "refused", body={"model": "sage"}),
            json.dumps({"method": "POST", "url": CHAT, "body": body}) + "\n",
            request_line("h", "refused", body={**body, "collections": ["handbook"]}),
            request_line("i", "refused", body={**body, "tools": json.loads("[" * 300 + "]" * 300)}),
            request_line("j", "refused", url="/" * 10_000),
            request_line("k", "refused", body={**body, "model": "m" * 10_000}),
        ]
        batch = installation.batch_ended(create(installation, "".join(lines)))
        assert (batch.status, batch.output_file_id) == ("failed", None)
        assert [(error.line, error.code) for error in batch.errors.data] == [
            (2, "duplicate_custom_id"),
            (3, "invalid_json_line"),
            (4, "invalid_url"),
            (5, "invalid_method"),
            (6, "model_missing"),
            (7, "mismatched_model"),
            (8, "not_supported"),
            (9, "missing_required_parameter"),
            (10, "invalid_custom_id"),
            (11, "not_supported"),
            (12, "invalid_input"),
            (13, "invalid_url"),
            (14, "model_missing"),
        ]
        assert max(len(error.message) for error in batch.errors.data) < 300
        assert "refused" not in installation.oracle.asked  # others of the file may still ask

    def test_what_of_responses_a_batch_cannot_do(self, installation: Installation) -> None:
        body = {"model": "sage", "input": "refused"}
        search = {"type": "file_search", "vector_store_ids": ["vs-1"]}
        wrong: list[dict[str, Any]] = [
            {"store": True}, {"previous_response_id": "resp-1"}, {"tools": [search]}, {"background": True},
            {"input": [{"type": "computer_call"}]}, {"temperature": 9},
        ]  # fmt: skip
        url = "/v1/responses"
        lines = [request_line(str(n), "", url=url, body={**body, **more}) for n, more in enumerate(wrong)]
        batch = installation.batch_ended(create(installation, "".join(lines), url))
        assert (batch.status, len(batch.errors.data)) == ("failed", len(wrong))
        said = [error.message for error in batch.errors.data]
        names = ("store", "previous_response_id", "tools", "background", "input", "temperature")
        assert all(name in message for name, message in zip(names, said, strict=True)), said

    def test_a_model_that_there_is_not(self, installation: Installation) -> None:
        content = request_line("a", "x").replace('"sage"', '"nobody"')
        batch = installation.batch_ended(create(installation, content))
        assert (batch.status, batch.errors.data[0].code) == ("failed", "model_not_found")

    def test_an_empty_file(self, installation: Installation) -> None:
        batch = installation.batch_ended(create(installation, "\n\n"))
        assert (batch.status, batch.errors.data[0].code) == ("failed", "empty_file")

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"endpoint": "/v1/moderations"}, "endpoint"),
            ({"completion_window": "1h"}, "completion_window"),
            ({"input_file_id": "file-0"}, "input_file_id"),
        ],
    )
    def test_at_once(self, installation: Installation, changes: dict[str, Any], param: str) -> None:
        given: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": "file-1"}
        with pytest.raises(openai.BadRequestError) as refused:
            installation.client.batches.create(**{**given, **changes})
        assert refused.value.param == param

    def test_a_file_for_something_else(self, installation: Installation) -> None:
        file_id = installation.upload("question,answer\na,b\n", "faq.csv", "fine-tune")
        with pytest.raises(openai.BadRequestError, match="purpose batch") as refused:
            installation.client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert refused.value.param == "input_file_id"


class TestCutShort:
    def rows(self, number: int) -> str:
        return "".join(request_line(f"id-{n}", f"question {n}") for n in range(number))

    def begun(self, installation: Installation) -> str:
        """A batch of which some rows are answered."""
        installation.oracle.seconds = 0.2
        made = create(installation, self.rows(400))

        def some_are_done() -> bool:
            counts = installation.client.batches.retrieve(made).request_counts
            return counts is not None and counts.completed > 8

        installation.wait_for(some_are_done)
        return made

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
    def test_cancel_keeps_what_was_answered(self, installation: Installation, paused: bool) -> None:
        made = self.begun(installation)
        if paused:
            assert installation.api.post(f"/v1/jobs/{made}/pause").status_code == 200
            installation.wait_for(lambda: installation.job(made)["status"] == "paused")
        assert installation.client.batches.cancel(made).status in ("cancelling", "cancelled")
        batch = installation.batch_ended(made)
        assert batch.status == "cancelled"
        assert batch.cancelled_at is not None
        answered = installation.lines(batch.output_file_id)
        unasked = installation.lines(batch.error_file_id)
        assert 8 < len(answered) < 200
        assert len(answered) + len(unasked) == 400
        assert unasked[-1]["error"]["code"] == "batch_cancelled"
        assert batch.request_counts.completed == len(answered)
        assert [step["queue"] for step in installation.job(made)["steps"]] == ["io", "ask", "io"]
        installation.oracle.seconds = 0.0
        again = installation.api.post(f"/v1/jobs/{made}/retry", json={})
        assert (again.status_code, again.json()["result"]) == (200, None)
        batch = installation.batch_ended(made)
        assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 400, None)

    def test_what_is_not_answered_in_time_has_expired(self, installation: Installation) -> None:
        installation.oracle.seconds = 0.3
        file_id = installation.upload(self.rows(200))
        params = {"input_file": file_id, "endpoint": CHAT, "finish_within_seconds": 2}
        made = installation.api.post("/v1/jobs", json={"kind": "batch", "params": params}).json()["id"]
        batch = installation.batch_ended(made)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        late = installation.lines(batch.error_file_id)
        assert {line["error"]["code"] for line in late} == {"batch_expired"}
        assert batch.request_counts.completed + len(late) == 200

    def test_a_backend_that_goes_and_comes_back_costs_no_row(self, installation: Installation) -> None:
        installation.oracle.seconds = 0.05
        made = create(installation, self.rows(120))
        installation.wait_for(lambda: len(installation.oracle.asked) > 10)
        installation.oracle.down = True
        installation.wait_for(lambda: any("Nothing is asked" in said for said in installation.events(made)))
        installation.oracle.down = False
        batch = installation.batch_ended(made)
        assert (batch.status, batch.request_counts.completed) == ("completed", 120)
        assert any("answers again" in said for said in installation.events(made))


class TestKilled:
    def test_no_row_twice_and_none_lost(self, installation: Installation) -> None:
        installation.oracle.seconds = 0.05
        content = "".join(request_line(f"id-{n}", f"question {n}") for n in range(160))
        made = create(installation, content)
        kills = 0
        for answered in (30, 90):
            installation.wait_for(lambda wanted=answered: len(installation.oracle.asked) > wanted)  # type: ignore[misc]
            kill(installation.workers[-1])
            kills += 1
            installation.start_worker()
        batch = installation.batch_ended(made)
        assert batch.status == "completed", installation.job(made)["error"]
        ids = [line["custom_id"] for line in installation.lines(batch.output_file_id)]
        assert ids == [f"id-{n}" for n in range(160)]
        # Only what was on its way in that moment had to be asked once more.
        assert sum(installation.oracle.asked.values()) <= 160 + kills * CONCURRENCY
        assert installation.oracle.most_at_once <= CONCURRENCY
