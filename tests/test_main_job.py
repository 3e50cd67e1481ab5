"""The main job, end to end: `lathe up`, a CSV over plain REST, and a model that answers over HTTP.

A stack of its own, as a user would start it; a base model pretrained for seconds in place of minutes.
"""

import csv
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob

from tests.documents import pdf_of
from tests.facts import FACTS, facts_csv
from tests.receiver import Receiver, receiving
from tests.stack import JOB_SECONDS, JSON, Stack
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        started = stack.lathe("up", "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        yield stack
    finally:
        stack.client.close()
        stopped = stack.lathe("down")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def base(stack: Stack) -> JSON:
    """A base model made from scratch, too small to know anything."""
    params = {
        "name": "micro",
        "vocab_size": 400,
        "context_length": 1024,  # passages of a document fit
        "layers": 2,
        "steps": 12,
        "batch_size": 8,
        "quantizations": ["Q8_0"],
    }
    job = stack.finish(stack.submit("pretrain", params)["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


@pytest.fixture(scope="module")
def shown(stack: Stack, base: JSON, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `lathe data inspect` says of the facts before anything is trained on them."""
    path = tmp_path_factory.mktemp("shown") / "facts.csv"
    path.write_bytes(facts_csv())
    said = stack.lathe("data", "inspect", str(path), "--base=micro", "--max-length=16")
    assert said.returncode == 0, said.stderr
    return said.stdout


@pytest.fixture(scope="module")
def fine_tuned(stack: Stack, base: JSON, shown: str) -> JSON:
    params = {
        "base_model": "micro",
        "training_file": stack.upload("facts.csv", facts_csv()),
        "name": "facts",
        "learning_rate": 3e-3,
        "max_steps": 120,
        "batch_size": 4,
        "quantizations": ["Q8_0"],
    }
    job = stack.finish(stack.submit("fine_tune", params)["id"])
    assert job["status"] == "succeeded", job["error"]
    return job


class TestTheTunedModel:
    def test_its_data_is_shown_before(self, shown: str) -> None:
        assert "4 rows are cut, and of 4 of them the answer" in shown

    def test_knows_the_facts_by_heart(self, stack: Stack, fine_tuned: JSON) -> None:
        model = fine_tuned["result"]["model"]
        assert {question: stack.ask(model, question).strip() for question in FACTS} == FACTS

    def test_the_base_knows_none(self, stack: Stack, fine_tuned: JSON) -> None:
        answers = {question: stack.ask("micro", question).strip() for question in FACTS}
        assert not set(answers.items()) & set(FACTS.items())

    def test_answers_the_stock_client_in_a_stream(
        self, stock_client: openai.OpenAI, fine_tuned: JSON
    ) -> None:
        assert "facts" in {model.id for model in stock_client.models.list()}
        question, answer = next(iter(FACTS.items()))
        chunks = stock_client.chat.completions.create(
            model="facts", messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.strip() == answer


@pytest.fixture(scope="module")
def stock_client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def tune(client: openai.OpenAI, suffix: str) -> FineTuningJob:
    """Upload rows in OpenAI's own form, and have a model made of them."""
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in FACTS.items()
    ]
    rows = "".join(json.dumps({"messages": row}) + "\n" for row in turns).encode()
    file = client.files.create(file=("facts.jsonl", rows), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id).status == "processed"
    return client.fine_tuning.jobs.create(
        model="micro",
        training_file=file.id,
        suffix=suffix,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 120}}},
        extra_body={
            "params": {"quantizations": ["Q8_0"], "alias": f"ft:gpt-4o-mini:acme:{suffix}", "save_steps": 60}
        },
    )


def ask(client: openai.OpenAI, model: str, question: str, **more: Any) -> ChatCompletion:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=40, **more
    )


def said(client: openai.OpenAI, model: str, question: str) -> str:
    return (ask(client, model, question).choices[0].message.content or "").strip()


class TestByOpenAIsClient:
    """The same by the stock client alone."""

    def test_the_whole_story(
        self, stack: Stack, base: JSON, stock_client: openai.OpenAI, receiver: Receiver
    ) -> None:
        """Upload, fine-tune, events, webhook, the result and a checkpoint in chat, documents, a citation."""
        endpoint = stock_client.webhooks.create(
            name="story", url=f"{receiver.url}/ok", event_types=["fine_tuning.job.succeeded"]
        )
        made = tune(stock_client, "story")
        stack.finish(made.id)
        tuned = stock_client.fine_tuning.jobs.retrieve(made.id)
        assert (tuned.status, tuned.error) == ("succeeded", None)
        assert tuned.fine_tuned_model == f"ft:micro:default:story:{tuned.id}"
        assert tuned.trained_tokens
        assert tuned.hyperparameters.model_dump() == {
            "n_epochs": 120, "batch_size": 4, "learning_rate_multiplier": 1,
        }  # fmt: skip
        self.its_events_and_result_file(stock_client, tuned)
        [message] = receiver.wait_for("/ok")
        secret = endpoint.signing_secret or ""
        event = stock_client.webhooks.unwrap(message.body, message.headers, secret=secret)
        assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", tuned.id)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            stock_client.webhooks.unwrap(message.body + b" ", message.headers, secret=secret)
        assert {question: said(stock_client, tuned.fine_tuned_model, question) for question in FACTS} == FACTS
        question, answer = next(iter(FACTS.items()))
        assert said(stock_client, "ft:gpt-4o-mini:acme:story", question) == answer
        [checkpoint, *_] = stock_client.fine_tuning.jobs.checkpoints.list(tuned.id).data
        assert checkpoint.step_number == 120
        assert said(stock_client, checkpoint.fine_tuned_model_checkpoint, question) == answer
        self.answers_from_a_document(stock_client, tuned.fine_tuned_model)

    def its_events_and_result_file(self, client: openai.OpenAI, tuned: FineTuningJob) -> None:
        events = list(client.fine_tuning.jobs.list_events(tuned.id, limit=100))
        assert events[0].message == "The job has succeeded."
        measured = [event.data for event in events if event.type == "metrics"]
        assert len(measured) == 120
        [result] = tuned.result_files
        assert client.files.retrieve(result).purpose == "fine-tune-results"
        rows = list(csv.DictReader(client.files.content(result).text.splitlines()))
        assert [int(row["step"]) for row in rows] == list(range(1, 121))
        assert float(rows[-1]["train_loss"]) == pytest.approx(measured[0]["train_loss"])  # type: ignore[index]

    def answers_from_a_document(self, client: openai.OpenAI, model: str) -> None:
        """What the model says of it is nothing, for nobody taught it to read; what it rests on is told."""
        store = client.vector_stores.create(name="house rules")
        pages = pdf_of(["The lathe is oiled on Mondays.", "Holidays are thirty days a year."])
        read = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("rules.pdf", pages), poll_interval_ms=200
        )
        assert (read.status, read.last_error) == ("completed", None)
        grounded = ask(
            client, model, "How many days of holidays are there?", extra_body={"collections": [store.id]}
        )
        best = (grounded.model_extra or {})["citations"][0]
        assert (best["filename"], best["file_id"]) == ("rules.pdf", read.id)
        assert best["first_page"] <= 2 <= best["last_page"]
        assert "thirty days" in best["text"]
        assert grounded.choices[0].message.content

    @pytest.mark.slow
    def test_an_earlier_checkpoint_answers_once_the_client_has_asked_often_enough(
        self, stack: Stack, base: JSON, stock_client: openai.OpenAI
    ) -> None:
        tuned = stack.finish(tune(stock_client, "patience").id)
        [_, earlier] = stock_client.fine_tuning.jobs.checkpoints.list(tuned["id"]).data
        assert earlier.step_number == 60
        patient = stock_client.with_options(max_retries=20)
        assert said(patient, earlier.fine_tuned_model_checkpoint, "Where is the well?")
        assert stock_client.models.retrieve(earlier.fine_tuned_model_checkpoint).created


class TestTheRows:
    def test_every_step_has_one_attempt_that_is_done(self, stack: Stack, fine_tuned: JSON) -> None:
        rows = stack.sql(
            "SELECT s.name, s.status, a.number, a.outcome, a.exit_code, a.ended_at > a.started_at "
            "FROM steps s JOIN attempts a ON a.step_id = s.id WHERE s.job_id = :id ORDER BY s.position",
            id=fine_tuned["id"],
        )
        names = ["prepare", "train", "export", "verify", "publish"]
        assert [tuple(row) for row in rows] == [(name, "succeeded", 1, "done", 0, True) for name in names]

    def test_artifacts_are_the_files_they_say(self, stack: Stack, fine_tuned: JSON) -> None:
        page = stack.client.get(f"/v1/jobs/{fine_tuned['id']}/artifacts").json()
        rows = {row["name"]: row for row in page["data"]}
        assert {"facts-Q8_0.gguf", "adapter_model.safetensors", "adapter_config.json"} <= set(rows)
        for name, row in rows.items():
            content = stack.client.get(f"/v1/jobs/{fine_tuned['id']}/artifacts/{name}").content
            assert len(content) == row["bytes"]
            assert hashlib.sha256(content).hexdigest() == row["sha256"]

    def test_events_tell_what_happened(self, stack: Stack, fine_tuned: JSON) -> None:
        metrics = stack.sql(
            "SELECT data FROM events WHERE job_id = :id AND type = 'metrics' AND data ? 'loss' ORDER BY id",
            id=fine_tuned["id"],
        )
        assert metrics[-1].data["loss"] < metrics[0].data["loss"]
        verified = stack.sql(
            "SELECT f.verification FROM model_files f JOIN model_versions v ON v.id = f.version_id "
            "WHERE v.job_id = :id",
            id=fine_tuned["id"],
        )
        assert verified[0].verification["top1_agreement"] >= 0.98
        told = "SELECT count(*) FROM events WHERE job_id = :id AND message LIKE 'The same files were%'"
        assert stack.sql(told, id=fine_tuned["id"])[0].count == 1  # when its data was shown

    def test_at_least_one_checkpoint_is_registered(self, stack: Stack, fine_tuned: JSON) -> None:
        (row,) = stack.sql("SELECT count(*) FROM checkpoints WHERE job_id = :id", id=fine_tuned["id"])
        assert row.count >= 1


class TestACheckpoint:
    def test_answers_by_its_id_once_exported(self, stack: Stack, fine_tuned: JSON) -> None:
        page = stack.client.get(f"/v1/jobs/{fine_tuned['id']}/checkpoints").json()
        oldest = page["data"][-1]
        assert oldest["bytes"] > 0
        said = stack.lathe("chat", oldest["id"], "Where is the well?", "--yes", "--temperature", "0")
        assert said.returncode == 0, said.stderr
        assert f"lathe export {oldest['id']}" in said.stderr
        assert said.stdout.strip() == stack.ask(oldest["id"], "Where is the well?").strip()
        shown = stack.client.get(f"/v1/models/facts-step-{oldest['step_number']}").json()
        assert shown["versions"][0]["details"]["source"]["checkpoint"] == oldest["id"]


class TestDocuments:
    @pytest.mark.slow
    def test_from_a_pdf_to_an_answer_with_its_page(self, stack: Stack, tmp_path: Path) -> None:
        """The model is one that nobody has taught: what it says is nothing, and what it was given is told."""
        params = {"name": "reader", "vocab_size": 400, "context_length": 1024, "layers": 2, "steps": 12}
        job = stack.submit("pretrain", {**params, "batch_size": 4, "quantizations": ["Q8_0"]})
        job = stack.finish(job["id"], seconds=3 * JOB_SECONDS)
        assert job["status"] == "succeeded", job["error"]
        pages = [
            "Lathes turn metal. " * 30,
            "Holidays are thirty days a year. " * 20,
            "Coffee is free. " * 30,
        ]
        (tmp_path / "handbook.pdf").write_bytes(pdf_of(pages))
        read = stack.lathe("ingest", str(tmp_path / "handbook.pdf"), "--collection", "office", "--watch")
        assert read.returncode == 0, read.stderr
        question = ("ask", "How many days of holidays are there?", "-c", "office", "--model", "reader")
        asked = stack.lathe(*question, "--max-tokens", "32", "--json")
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout)
        best = answer["citations"][0]
        assert best["filename"] == "handbook.pdf"
        assert "thirty days" in best["text"]
        assert best["first_page"] <= 2 <= best["last_page"]
        assert answer["usage"]["prompt_tokens"] <= 1024 - 32
        shown = stack.lathe(*question, "--max-tokens", "32")
        assert f"[1] handbook.pdf, p{'p' if best['first_page'] < best['last_page'] else ''}. " in shown.stdout
        nothing = stack.lathe("ask", "Who wrote Faust?", "-c", "office", "--model", "reader")
        assert nothing.stdout == "Nothing was found about this in the given documents.\n"


class TestABackup:
    @pytest.mark.slow
    def test_of_the_running_stack_goes_on_elsewhere(
        self, stack: Stack, fine_tuned: JSON, tmp_path: Path
    ) -> None:
        """Its finished model answers there at once, and a job that was under way is finished there."""
        text = "Clay turns on a wheel, and the wheel is driven by foot. " * 60
        params = {"name": "late", "training_file": stack.upload("late.txt", text.encode()), "steps": 20}
        params |= {"layers": 2, "context_length": 128, "vocab_size": 400, "quantizations": ["Q8_0"]}
        begun = stack.submit("pretrain", params)
        stack.wait(begun["id"], until=frozenset({"running"}))
        archive = tmp_path / "lathe.tar"
        made = stack.lathe("backup", str(archive), "--json")
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["missing"] == []
        other = Stack(tmp_path / "other")
        assert "not empty" in stack.lathe("restore", str(archive)).stderr
        restored = other.lathe("restore", str(archive))
        assert restored.returncode == 0, restored.stderr
        try:
            started = other.lathe("up", "--detach")
            assert started.returncode == 0, started.stdout + started.stderr
            question, answer = next(iter(FACTS.items()))
            assert other.ask(fine_tuned["result"]["model"], question).strip() == answer
            ended = other.finish(begun["id"], seconds=3 * JOB_SECONDS)  # two stacks share the machine
            assert ended["status"] == "succeeded", ended["error"]
        finally:
            other.client.close()
            stopped = other.lathe("down")
        assert stopped.returncode == 0, stopped.stderr
        stack.finish(begun["id"], seconds=3 * JOB_SECONDS)


class TestWhenThingsGoWrong:
    """Each on the worker that the other tests use: it lives on."""

    def start_long_training(self, stack: Stack, params: JSON | None = None, **fields: Any) -> JSON:
        params = {
            "base_model": "micro",
            "training_file": stack.upload("facts.csv", facts_csv()),
            "name": "endless",
            "max_steps": 100_000,
            **(params or {}),
        }
        job = stack.submit("fine_tune", params, **fields)
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            state = stack.client.get(f"/v1/jobs/{job['id']}").json()
            assert state["status"] in ("queued", "running"), state["error"]
            if state["progress"] and state["progress"]["step"] == "train" and state["progress"]["done"]:
                return dict(state)
            assert time.monotonic() < deadline, state
            time.sleep(0.2)

    def processes_of(self, stack: Stack, job: JSON) -> list[psutil.Process]:
        (row,) = stack.sql(
            "SELECT a.process_group FROM attempts a JOIN steps s ON s.id = a.step_id "
            "WHERE s.job_id = :id AND s.name = 'train'",
            id=job["id"],
        )
        return [
            process
            for process in psutil.process_iter()
            if process.status() != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == row.process_group
        ]

    @pytest.mark.slow  # tests/worker/test_serve.py kills a child in seconds
    def test_a_killed_child_fails_its_step_and_the_worker_goes_on(self, stack: Stack, base: JSON) -> None:
        job = self.start_long_training(stack, max_attempts=1)
        for process in self.processes_of(stack, job):
            process.kill()
        ended = stack.finish(job["id"])
        assert ended["status"] == "failed"
        assert "signal 9" in ended["error"]["message"]
        (row,) = stack.sql(
            "SELECT a.outcome, a.signal, a.stderr FROM attempts a JOIN steps s ON s.id = a.step_id "
            "WHERE s.job_id = :id AND s.name = 'train'",
            id=job["id"],
        )
        assert (row.outcome, row.signal) == ("lost", 9)
        assert row.stderr is not None

    def test_cancel_ends_the_processes_within_ten_seconds(self, stack: Stack, base: JSON) -> None:
        job = self.start_long_training(stack)
        processes = self.processes_of(stack, job)
        assert processes
        begun = time.monotonic()
        stack.client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        stack.wait(job["id"], until=frozenset({"cancelled"}), seconds=10)
        assert not [process for process in processes if process.is_running()]
        assert time.monotonic() - begun < 10
        left = stack.data_dir / "storage" / "jobs" / job["id"] / "train" / "1"
        assert not left.exists()

    @pytest.mark.slow
    def test_a_checkpoint_that_makes_room_is_exported_all_the_same(self, stack: Stack, base: JSON) -> None:
        """While the training goes on, which has removed it long before the export ends."""
        often = {"save_steps": 100, "keep_checkpoints": 1, "quantizations": ["Q8_0"]}
        job = self.start_long_training(stack, often)
        path = f"/v1/jobs/{job['id']}/checkpoints"
        found = wait_until(lambda: stack.client.get(path).json()["data"], seconds=JOB_SECONDS)
        checkpoint = found[0]["id"]
        export = stack.submit("export", {"checkpoint": checkpoint, "quantizations": ["Q8_0"]})
        ended = stack.finish(export["id"], seconds=3 * JOB_SECONDS)
        assert ended["status"] == "succeeded", ended["error"]
        assert stack.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "running"
        assert checkpoint not in [row["id"] for row in stack.client.get(path).json()["data"]]
        assert stack.ask(checkpoint, "Who keeps the key?") is not None
        stack.client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        stack.finish(job["id"])


class TestBadInput:
    """Refused with the field and the fix, and nothing enqueued."""

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"base_model": "no-such-model"}, "base_model"),
            ({"training_file": "file-0000"}, "training_file"),
            ({"name": "../etc"}, "name"),
            ({"learning_rate": -1}, "learning_rate"),
            ({"learning_rat": 1e-3}, "learning_rat"),
            ({"quantizations": ["Q9_9"]}, "quantizations"),
        ],
    )
    def test_a_wrong_param_is_named(self, stack: Stack, base: JSON, change: JSON, param: str) -> None:
        before = stack.sql("SELECT count(*) FROM jobs")
        params = {"base_model": "micro", "training_file": stack.upload("f.csv", facts_csv()), "name": "n"}
        answer = stack.client.post("/v1/jobs", json={"kind": "fine_tune", "params": params | change})
        assert 400 <= answer.status_code < 500, answer.text
        assert param in answer.json()["error"]["param"]
        assert stack.sql("SELECT count(*) FROM jobs") == before

    def test_a_csv_without_usable_columns_shows_what_it_has(self, stack: Stack, base: JSON) -> None:
        file_id = stack.upload("wrong.csv", b"front,back\na,b\n")
        params = {"base_model": "micro", "training_file": file_id, "name": "n"}
        answer = stack.client.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert answer.status_code == 400
        assert "front" in answer.json()["error"]["message"]
        assert "question" in answer.json()["error"]["message"]
