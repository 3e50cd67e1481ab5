"""Answers from documents, over real rows and a server that remembers what it was asked."""

import io
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

from openai import OpenAI
from openai._streaming import SSEDecoder
from pypdf import PdfReader

from api.answers.service import NOTHING_FOUND
from db.models import Collection, Document
from db.queries.ingests import assign
from db.queries.models import get_model
from db.session import SessionFactory, transaction
from db.states import JobKind
from tests.api.answers.answering_server import rendered
from tests.api.answers.conftest import QUESTION, Desk
from tests.api.conftest import error_of
from tests.api.model_server import streamed_bytes
from tests.embedding_server import UNEMBEDDABLE
from tests.rows import add_job
from tests.waiting import wait_until


class TestAnswer:
    def test_carries_citations_that_can_be_checked_against_the_pdf(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("cites")
        store, [file_id] = desk.fill("cited", {"handbook.pdf": handbook})
        answer = desk.ask("cites", collections=["cited"]).json()
        first = answer["citations"][0]
        assert "thirty days" in first["text"]
        assert (first["number"], first["filename"]) == (1, "handbook.pdf")
        assert (first["collection_id"], first["file_id"]) == (store, file_id)

        pages = [page.extract_text() for page in PdfReader(io.BytesIO(handbook)).pages]
        told = desk.api.get(f"/v1/vector_stores/{store}/files/{file_id}/content").json()["data"]
        text = "\n\n".join(page["text"] for page in told)
        for citation in answer["citations"]:
            assert text[citation["start_char"] : citation["end_char"]] == citation["text"]
            cited = " ".join(" ".join(pages[citation["first_page"] - 1 : citation["last_page"]]).split())
            assert " ".join(citation["text"].split()) in cited
        [annotation] = answer["choices"][0]["message"]["annotations"]
        assert annotation["file_citation"] == {
            "number": 1, "file_id": file_id, "filename": "handbook.pdf",
            "first_page": first["first_page"], "last_page": first["last_page"],
        }  # fmt: skip
        content = answer["choices"][0]["message"]["content"]
        assert content[annotation["start_index"] : annotation["end_index"]] == "[1]"
        assert answer["timings"] == {"x": 1.5}

    def test_the_model_that_answers_rewrites_the_question(self, desk: Desk, handbook: bytes) -> None:
        served = desk.ready("rewords")
        desk.fill("reworded", {"handbook.pdf": handbook})
        desk.server.says = "How many days of leave are there a year?"
        retrieval = {"rewrite_query": True, "diversity": 0.3}
        answer = desk.ask("rewords", collections=["reworded"], retrieval=retrieval).json()
        rewriting, answering = desk.server.asked[-2:]
        assert (rewriting["model"], answering["model"]) == (served, served)
        assert QUESTION in rewriting["messages"][0]["content"]
        assert answer["retrieval"]["queries"][0] == QUESTION
        assert len(answer["retrieval"]["queries"]) > 1
        assert {"rewrite", "mmr"} <= set(answer["retrieval"]["used"])

    def test_the_model_reads_numbered_passages_before_the_question(self, desk: Desk, handbook: bytes) -> None:
        served = desk.ready("reads")
        desk.fill("read", {"handbook.pdf": handbook})
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        more = {"tools": tools, "response_format": {"type": "text"}, "temperature": 0.25, "x": [1.5]}
        retrieval = {"max_passages": 3}
        answer = desk.ask("reads", collections=["read"], retrieval=retrieval, n=2, **more).json()
        sent = desk.server.asked[-1]
        assert {name: sent[name] for name in sent if name not in ("model", "messages")} == more
        assert sent["model"] == served
        assert len(answer["choices"]) == 2
        system, user = sent["messages"]
        [boundary] = set(re.findall(r"\b[0-9a-f]{16}\b", system["content"]))
        parts = user["content"].split(boundary)
        assert parts[-1].strip() == QUESTION
        assert len(parts) == len(answer["citations"]) + 2
        for citation, part in zip(answer["citations"], parts[1:-1], strict=True):
            head, text = part.strip().split("\n", 1)
            assert head.startswith(f"[{citation['number']}] handbook.pdf, p")
            assert text == citation["text"]
        assert desk.ask("reads", collections=["read"]).status_code == 200
        assert boundary not in desk.said(), "another one for each request"

    def test_only_the_documents_that_are_named(self, desk: Desk) -> None:
        desk.ready("picks")
        texts = {f"{n}.txt": f"In {n} there were {n} days of holidays a year." for n in (2020, 2021, 2022)}
        store, files = desk.fill("years", texts)
        for given in (
            {"documents": files[1:2]},
            {"documents": files[1:2], "collections": [store]},
            {"collections": [store], "retrieval": {"filters": {"type": "eq", "key": "x", "value": 1}}},
        ):
            answer = desk.ask("picks", **given).json()
            expected = [] if "retrieval" in given else ["2021.txt"]
            assert [row["filename"] for row in answer["citations"]] == expected
            left_none = "None of 3 documents fits the filters."
            assert (left_none in answer["retrieval"]["notices"]) == ("retrieval" in given)

    def test_a_models_own_documents(self, desk: Desk, session_factory: SessionFactory) -> None:
        desk.ready("owner")
        error = error_of(desk.ask("owner", documents=True))
        assert (error["param"], error["code"]) == ("documents", "not_found")
        store, _ = desk.fill("owned", {"a.txt": "There are nine days of holidays a year."})
        model = desk.api.get("/v1/models/owner").json()
        with transaction(session_factory) as session:
            session.get_one(Collection, store).model_id = get_model(session, "default", "owner").id
        assert model["collection_id"] is None
        assert "nine days" in desk.ask("owner", documents=True).json()["citations"][0]["text"]

    def test_a_short_question_is_searched_with_the_one_before(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("follows")
        desk.fill("followed", {"handbook.pdf": handbook})
        messages = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "Thirty."},
            {"role": "user", "content": [{"type": "text", "text": "And how is it cleaned?"}]},
        ]
        answer = desk.ask("follows", messages=messages, collections=["followed"]).json()
        assert answer["retrieval"]["queries"] == [f"{QUESTION}\nAnd how is it cleaned?"]

    def test_a_question_that_is_too_long_to_embed_is_searched_by_its_end(self, desk: Desk) -> None:
        desk.ready("wordy")
        desk.fill("worded", {"a.txt": "There are thirty days of holidays a year."})
        end = "days of holidays a year " * 9
        answer = desk.ask("wordy", f"{UNEMBEDDABLE} {'x' * 150} {end}", collections=["worded"]).json()
        [searched] = answer["retrieval"]["queries"]
        assert end.strip().endswith(searched.strip())
        assert answer["citations"]
        error = error_of(desk.ask("wordy", UNEMBEDDABLE, collections=["worded"]))
        assert error["param"] == "query"

    def test_one_that_is_too_long_is_rewritten_once(self, desk: Desk) -> None:
        desk.ready("once")
        desk.fill("halved", {"a.txt": "There are thirty days of holidays a year."})
        desk.server.says = "How many days of leave are there a year?"
        long = f"{UNEMBEDDABLE} {'x' * 150} {'days of holidays a year ' * 9}"
        asked = {"collections": ["halved"], "retrieval": {"rewrite_query": True}}
        answer = desk.ask("once", long, **asked).json()
        [_, rewritten] = answer["retrieval"]["queries"]
        assert rewritten == desk.server.says
        prompts = [rendered(each["messages"]) for each in desk.server.asked]
        assert [UNEMBEDDABLE in prompt for prompt in prompts] == [False, True]

    def test_is_searched_in_other_words_too(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("rewrites")
        desk.fill("rewritten", {"handbook.pdf": handbook})
        desk.server.says = "How many days of leave are there a year?"
        answer = desk.ask("rewrites", collections=["rewritten"], retrieval={"rewrite_query": True}).json()
        assert answer["retrieval"]["queries"] == [QUESTION, "How many days of leave are there a year?"]
        assert QUESTION in desk.server.asked[-1]["messages"][-1]["content"]

    def test_numbers_that_were_not_given_are_noticed(self, desk: Desk) -> None:
        desk.ready("invents")
        desk.server.says = "Thirty [1, 7], not [ 3 ] or [x]."
        desk.fill("noted", {"a.txt": "There are thirty days of holidays a year."})
        answer = desk.ask("invents", collections=["noted"]).json()
        assert [row["text"] for row in answer["choices"][0]["message"]["annotations"]] == ["[1, 7]"]
        assert answer["retrieval"]["notices"] == ["The answer cites [7], and was given no such passage."]

    def test_without_these_fields_every_byte_is_passed_on(self, desk: Desk) -> None:
        served = desk.ready("untouched")
        asked = b'{ "model":"untouched","messages":[],"documents":null, "temperature":1.0e-5 }'
        counted = desk.server.counted
        desk.api.post("/v1/chat/completions", content=asked, headers={"content-type": "application/json"})
        assert desk.server.bodies[-1] == asked.replace(b'"untouched"', f'"{served}"'.encode())
        assert desk.server.counted == counted


class TestNothingFound:
    def test_is_said_without_asking_the_model(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("silence")
        desk.fill("foreign", {"handbook.pdf": handbook})
        answer = desk.ask(
            "silence", "xylophone", collections=["foreign"], retrieval={"min_similarity": 0.9}, n=2
        ).json()
        assert [row["message"]["content"] for row in answer["choices"]] == [NOTHING_FOUND] * 2
        assert {row["finish_reason"] for row in answer["choices"]} == {"stop"}
        assert answer["usage"]["total_tokens"] == 0
        assert answer["citations"] == []
        assert (answer["retrieval"]["found"], answer["model"]) == (0, "silence")
        assert desk.server.asked == []

    def test_what_is_still_being_read_or_could_not_be_is_said(
        self, desk: Desk, session_factory: SessionFactory
    ) -> None:
        desk.ready("waits")
        store, _ = desk.fill("partly", {"a.txt": "There are thirty days of holidays a year."})
        with transaction(session_factory) as session:
            collection = session.get_one(Collection, store)
            unread, failed = (desk.library.announce(session, collection, f"{n}.pdf") for n in "bc")
            job = add_job(session, kind=JobKind.INGEST, params={}, max_attempts=1)
            assign(session, [unread], job)
            session.get_one(Document, failed.id).status = "failed"
        expected = ["1 of 3 documents is still being read.", "1 of 3 documents could not be read."]
        some = desk.ask("waits", collections=["partly"]).json()
        assert (some["retrieval"]["indexing"], some["retrieval"]["notices"]) == (1, expected)
        none = desk.ask("waits", "xylophone", documents=[unread.file_id]).json()
        text = none["choices"][0]["message"]["content"]
        assert text == f"{NOTHING_FOUND} 1 of 1 document is still being read."

    def test_streams_too(self, desk: Desk, client: OpenAI) -> None:
        desk.ready("quiet")
        desk.fill("hollow", {})
        chunks = list(
            client.chat.completions.create(
                model="quiet",
                messages=[{"role": "user", "content": "Anything?"}],
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"collections": ["hollow"]},
            )
        )
        said = "".join(row.choices[0].delta.content or "" for row in chunks if row.choices)
        assert said == f"{NOTHING_FOUND} There are no documents to search."
        assert (chunks[0].model_extra or {})["citations"] == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 0
        assert desk.server.asked == []


class TestStreams:
    def test_begin_with_the_citations_and_go_on_untouched(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("pours")
        desk.fill("poured", {"handbook.pdf": handbook})
        answer = desk.ask("pours", collections=["poured"], stream=True)
        first, rest = answer.content.split(b"\n\n", 1)
        assert rest == streamed_bytes()
        chunk = json.loads(first.removeprefix(b"data: "))
        assert (chunk["object"], chunk["choices"][0]["delta"]) == ("chat.completion.chunk", {})
        assert "thirty days" in chunk["citations"][0]["text"]
        assert chunk["retrieval"]["given"] == len(chunk["citations"])
        assert answer.headers["content-type"].startswith("text/event-stream")

    def test_the_stock_client_reads_both(self, desk: Desk, client: OpenAI, handbook: bytes) -> None:
        desk.ready("stock")
        desk.fill("stocked", {"handbook.pdf": handbook})
        asked: Any = {
            "model": "stock",
            "messages": [{"role": "user", "content": QUESTION}],
            "extra_body": {"collections": ["stocked"], "retrieval": {"max_passages": 2}},
        }
        whole = client.chat.completions.create(**asked)
        cited = (whole.model_extra or {})["citations"]
        assert cited[0]["filename"] == "handbook.pdf"
        annotations = whole.choices[0].message.annotations
        assert annotations is not None
        assert (annotations[0].model_extra or {})["file_citation"]["number"] == 1
        with client.chat.completions.stream(**asked) as stream:
            final = stream.get_final_completion()
        assert (final.choices[0].message.content or "").startswith("w0 w1 ")
        first, *_ = client.chat.completions.create(**asked, stream=True)
        assert (first.model_extra or {})["citations"] == cited

    def test_hanging_up_ends_the_request_behind(self, desk: Desk, app_url: str, handbook: bytes) -> None:
        desk.ready("slow-pour")
        desk.fill("left", {"handbook.pdf": handbook})
        begun, left = desk.server.begun, desk.server.left
        messages = [{"role": "user", "content": QUESTION}]
        asked = {"model": "slow-pour", "messages": messages, "stream": True, "collections": ["left"]}
        body, address = json.dumps(asked).encode(), urlsplit(app_url)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: desk.server.begun == begun + 1)
        wait_until(lambda: desk.server.left == left + 1)


class TestGenerate:
    def test_answers_from_documents(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("short")
        desk.fill("brief", {"handbook.pdf": handbook})
        body = {"prompt": QUESTION, "model": "short", "params": {"n_predict": 9}, "collections": ["brief"]}
        answer = desk.api.post("/generate", json=body).json()
        assert (answer["text"], answer["finish_reason"]) == ("Thirty days [1].", "stop")
        assert answer["annotations"][0]["file_citation"]["number"] == 1
        assert "thirty days" in answer["citations"][0]["text"]
        assert (desk.server.asked[-1]["max_tokens"], len(desk.server.asked[-1]["messages"])) == (9, 2)
        body |= {"prompt": "xylophone", "retrieval": {"min_similarity": 0.9}}
        answer = desk.api.post("/generate", json=body).json()
        assert (answer["text"], answer["prompt_tokens"], answer["citations"]) == (NOTHING_FOUND, 0, [])

    def test_a_stream_tells_first_what_it_rests_on(self, desk: Desk, handbook: bytes) -> None:
        desk.ready("pour-short")
        desk.fill("poured-short", {"handbook.pdf": handbook})
        body = {"prompt": QUESTION, "model": "pour-short", "collections": ["poured-short"]}
        first, *pieces = SSEDecoder().iter_bytes(iter([desk.api.post("/agenerate", json=body).content]))
        assert first.event == "grounding"
        assert "thirty days" in first.json()["citations"][0]["text"]
        assert "".join(piece.data for piece in pieces).startswith("w0 w1 ")
        assert "thirty days" in json.dumps(desk.server.asked[-1]["messages"])
        body |= {"prompt": "xylophone", "retrieval": {"min_similarity": 0.9}}
        first, *pieces = SSEDecoder().iter_bytes(iter([desk.api.post("/agenerate", json=body).content]))
        assert (first.json()["citations"], [piece.data for piece in pieces]) == ([], [NOTHING_FOUND])

    def test_ollama_gets_it_in_the_users_turn(self, desk: Desk) -> None:
        desk.ready("herd", backend="ollama")
        desk.server.window = 1200
        desk.fill("herded", {f"{n}.txt": f"Many days of holidays a year, by {n}." for n in range(8)})
        body = {"prompt": QUESTION, "model": "herd", "collections": ["herded"], "params": {"top_k": 5}}
        answer = desk.api.post("/generate", json=body).json()
        assert (answer["text"], answer["annotations"]) == ("Answer", [])
        [message] = desk.server.asked[-1]["messages"]
        assert len(message["content"].encode()) < 900
        assert 0 < answer["retrieval"]["given"] < answer["retrieval"]["found"] == 8
        assert all(row["text"] in message["content"] for row in answer["citations"])

    def test_bad_fields_are_named(self, desk: Desk) -> None:
        error = error_of(desk.api.post("/generate", json={"prompt": "x", "collection": ["a"]}))
        assert error["message"] == "There is no field collection. Did you mean collections?"
