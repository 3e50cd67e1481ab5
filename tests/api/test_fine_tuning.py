"""`client.fine_tuning.jobs` of OpenAI's own client, over jobs whose steps are written as rows."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from db.models import Model, ModelVersion
from db.queries.aliases import give_aliases
from db.queries.jobs import add_event, get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobStatus
from tests.api.conftest import Publish, upload
from tests.api.keyed import Keyed
from tests.api.test_jobs import end, run_first_step
from tests.trainings import Training, in_training


@pytest.fixture
def client(api_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{api_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def file_id(api: httpx.Client) -> str:
    return upload(api)


class TestCreate:
    def test_becomes_a_job_of_kind_fine_tune(self, client: OpenAI, api: httpx.Client, file_id: str) -> None:
        made = client.fine_tuning.jobs.create(
            model="org/base",
            training_file=file_id,
            validation_file=file_id,
            suffix="My FAQ!",
            seed=7,
            metadata={"team": "search"},
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 0.5}
                },
            },
        )
        assert (made.object, made.status, made.model, made.seed) == (
            "fine_tuning.job",
            "queued",
            "org/base",
            7,
        )
        assert made.metadata == {"team": "search"}
        assert made.hyperparameters.model_dump() == {
            "n_epochs": 3,
            "batch_size": 8,
            "learning_rate_multiplier": 0.5,
        }
        assert made.method is not None
        assert made.method.type == "supervised"
        assert (made.fine_tuned_model, made.result_files, made.trained_tokens) == (None, [], None)
        row = api.get(f"/v1/jobs/{made.id}").json()
        assert (row["kind"], row["metadata"]) == ("fine_tune", {"team": "search"})
        expected = {
            "name": "my-faq", "epochs": 3.0, "effective_batch_size": 8, "learning_rate_multiplier": 0.5,
            "validation_file": file_id, "seed": 7, "batch_size": "auto", "learning_rate": "auto",
        }  # fmt: skip
        assert row["params"].items() >= expected.items()

    def test_auto_and_the_older_place_of_hyperparameters(self, client: OpenAI, file_id: str) -> None:
        made = client.fine_tuning.jobs.create(
            model="org/base", training_file=file_id, hyperparameters={"n_epochs": "auto", "batch_size": 2}
        )
        shown = made.hyperparameters
        assert (shown.n_epochs, shown.batch_size, shown.learning_rate_multiplier) == ("auto", 2, "auto")
        other = client.fine_tuning.jobs.create(model="org/base", training_file=file_id)
        assert other.seed != made.seed  # each draws its own
        assert client.fine_tuning.jobs.retrieve(other.id).seed == other.seed

    def test_preferences_with_beta(self, client: OpenAI, api: httpx.Client) -> None:
        pair = {
            "input": {
                "messages": [{"role": "user", "content": "Who?"}],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": [{"role": "assistant", "content": "She did."}],
            "non_preferred_output": [{"role": "assistant", "content": "Nobody."}],
        }
        pairs = upload(api, json.dumps(pair).encode(), "pairs.jsonl")
        hyperparameters = {"beta": 0.2, "n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
        made = client.fine_tuning.jobs.create(
            model="org/base",
            training_file=pairs,
            method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},  # type: ignore[typeddict-item]
        )
        assert made.method is not None
        assert made.method.type == "dpo"
        assert made.method.dpo is not None
        assert made.method.dpo.hyperparameters is not None
        assert made.method.dpo.hyperparameters.model_dump() == hyperparameters
        assert (
            api.get(f"/v1/jobs/{made.id}").json()["params"].items() >= {"method": "dpo", "beta": 0.2}.items()
        )
        auto = client.fine_tuning.jobs.create(
            model="org/base", training_file=pairs, method={"type": "dpo", "dpo": {}}
        )
        assert auto.method is not None
        assert auto.method.dpo is not None
        assert auto.method.dpo.hyperparameters is not None
        assert auto.method.dpo.hyperparameters.beta == "auto"
        with pytest.raises(openai.BadRequestError, match='train by the method "dpo"') as caught:
            client.fine_tuning.jobs.create(model="org/base", training_file=pairs)
        assert caught.value.param == "training_file"

    def test_one_by_a_method_of_ours_has_none_of_openais(self, client: OpenAI, api: httpx.Client) -> None:
        rows = upload(api, b'{"prompt": "Who?", "completion": "She did.", "label": true}\n', "judged.jsonl")
        params = {"name": "judged", "base_model": "org/base", "training_file": rows, "method": "kto"}
        made = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert made.status_code == 202, made.text
        assert client.fine_tuning.jobs.retrieve(made.json()["id"]).method is None

    def test_bad_pairs_are_named_by_their_line(self, client: OpenAI, api: httpx.Client) -> None:
        turn = [{"role": "user", "content": "Who?"}]
        rows = [
            {"prompt": turn, "chosen": "She.", "rejected": "He."},
            {"prompt": turn, "chosen": "She.", "rejected": "She."},
        ]
        pairs = upload(api, b"\n".join(json.dumps(row).encode() for row in rows), "pairs.jsonl")
        with pytest.raises(openai.BadRequestError, match="Line 2: both answers are the same"):
            client.fine_tuning.jobs.create(model="org/base", training_file=pairs, method={"type": "dpo"})

    def test_takes_lathes_own_params_beside(self, client: OpenAI, api: httpx.Client, file_id: str) -> None:
        own = {"quantizations": ["Q8_0"], "name": "own-name", "alias": "ft:gpt-4o:acme::x1"}
        made = client.fine_tuning.jobs.create(
            model="org/base", training_file=file_id, extra_body={"params": own}
        )
        assert api.get(f"/v1/jobs/{made.id}").json()["params"].items() >= own.items()

    @pytest.mark.parametrize(
        ("given", "param", "words"),
        [
            (
                {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
                "method.dpo.hyperparameters.beta",
                "at most 2",
            ),
            ({"method": {"type": "dpo"}}, "training_file", "dpo learns from pairs"),
            ({"method": {"type": "kto"}}, "method.type", "POST /v1/jobs with the kind fine_tune"),
            ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "leave one of them out"),
            ({"extra_body": {"params": {"method": "dpo"}}}, "params.method", "by the field method"),
            ({"method": {"type": "reinforcement"}}, "method.type", "'reinforcement'"),
            ({"hyperparameters": {"n_epochs": -1}}, "hyperparameters.n_epochs", "greater than 0"),
            ({"model": "gpt-4o-mini"}, "model", "There are: tiny"),
            ({"suffix": "tiny"}, "suffix", "base model of this server"),
            ({"suffix": "???"}, "suffix", "letter"),
            ({"training_file": "file-0"}, "training_file", "upload it"),
            ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
            ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "at most 16"),
            (
                {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
                "integrations[0].wandb",
                "LATHE_TRACKERS",
            ),
            ({"extra_body": {"params": {"epochs": 2}}}, "params.epochs", "n_epochs"),
            ({"extra_body": {"params": {"alias": "gpt-4"}}}, "alias", "begins with ft:"),
            (
                {
                    "extra_body": {"params": {"learning_rate": 1e-3}},
                    "hyperparameters": {"learning_rate_multiplier": 2},
                },
                "learning_rate_multiplier",
                "exclude",
            ),
        ],
    )  # fmt: skip
    def test_refuses_what_it_cannot_do(
        self, client: OpenAI, file_id: str, given: dict[str, Any], param: str, words: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.create(**({"model": "org/base", "training_file": file_id} | given))
        assert caught.value.param == param
        assert words in caught.value.message


class TestList:
    def test_in_pages_and_by_metadata(self, client: OpenAI, api: httpx.Client, file_id: str) -> None:
        def create(**metadata: str) -> str:
            return client.fine_tuning.jobs.create(
                model="org/base", training_file=file_id, metadata=metadata
            ).id

        ids = [create(suite="list", number=str(number)) for number in range(3)]
        other_kind = {"kind": "pretrain", "params": {"name": "no-fine-tune"}, "metadata": {"suite": "list"}}
        assert api.post("/v1/jobs", json=other_kind).status_code == 202
        found = client.fine_tuning.jobs.list(metadata={"suite": "list"}, limit=2)
        assert [job.id for job in found] == ids[::-1]  # it pages by itself
        one = client.fine_tuning.jobs.list(metadata={"suite": "list", "number": "1"})
        assert [job.id for job in one] == [ids[1]]
        assert not list(client.fine_tuning.jobs.list(metadata={"suite": "none"}))
        assert client.fine_tuning.jobs.list(limit=1).data[0].id == ids[2]
        bare = client.fine_tuning.jobs.create(model="org/base", training_file=file_id).id
        without = [job.id for job in client.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
        assert without[0] == bare
        assert not set(ids) & set(without)
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.jobs.list(extra_query={"metadata": "team"})
        assert caught.value.param == "metadata"


class TestSteering:
    def test_pause_resume_and_cancel(self, client: OpenAI, file_id: str) -> None:
        jobs = client.fine_tuning.jobs
        made = jobs.create(model="org/base", training_file=file_id)
        assert jobs.pause(made.id).status == "paused"
        assert jobs.resume(made.id).status == "queued"
        ended = jobs.cancel(made.id)
        assert (ended.status, ended.error) == ("cancelled", None)
        assert ended.finished_at
        with pytest.raises(openai.ConflictError):
            jobs.resume(made.id)

    def test_what_is_no_fine_tune_is_none(self, client: OpenAI, api: httpx.Client) -> None:
        other = api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "other"}}).json()["id"]
        for ask in (client.fine_tuning.jobs.retrieve, client.fine_tuning.jobs.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(other)
        assert api.get(f"/v1/jobs/{other}").json()["status"] == "queued"


class TestProgress:
    def test_states_and_the_error(
        self, client: OpenAI, file_id: str, session_factory: SessionFactory
    ) -> None:
        made = client.fine_tuning.jobs.create(model="org/base", training_file=file_id)
        run_first_step(session_factory, made.id)
        assert client.fine_tuning.jobs.retrieve(made.id).status == "validating_files"
        end(session_factory, made.id, JobStatus.FAILED)
        failed = client.fine_tuning.jobs.retrieve(made.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("step_failed", "It broke.")

    def test_events_newest_first_in_pages(
        self, client: OpenAI, file_id: str, session_factory: SessionFactory
    ) -> None:
        made = client.fine_tuning.jobs.create(model="org/base", training_file=file_id)
        with transaction(session_factory) as session:
            add_event(session, made.id, "Read 3 rows.", data={"rows": 3})
            measured = {"step": 4, "loss": 0.25, "token_accuracy": 0.5, "learning_rate": 1e-3}
            add_event(session, made.id, "", type="metrics", data=measured)
            add_event(session, made.id, "It is slow.", level="warn")
        events = list(client.fine_tuning.jobs.list_events(made.id, limit=2))
        assert [(event.type, event.level, event.message) for event in events] == [
            ("message", "warn", "It is slow."),
            ("metrics", "info", "Step 4: training loss 0.25"),
            ("message", "info", "Read 3 rows."),
        ]
        assert events[1].data == {
            "step": 4,
            "train_loss": 0.25,
            "train_mean_token_accuracy": 0.5,
            "learning_rate": 1e-3,
        }
        assert {event.object for event in events} == {"fine_tuning.job.event"}


@pytest.fixture
def training(client: OpenAI, file_id: str, settings: Settings, session_factory: SessionFactory) -> Training:
    suffix = f"trained-{secrets.token_hex(3)}"
    made = client.fine_tuning.jobs.create(model="org/base", training_file=file_id, suffix=suffix)
    return in_training(made.id, settings.storage_root, session_factory)


def publish_as_the_job_does(publish: Publish, training: Training) -> str:
    """Write the version of a fine-tune and its aliases; returns the model's name."""
    with transaction(training.sessions) as session:
        name = get_job(session, training.job_id, project_id="default").params["name"]
    publish(name)
    with transaction(training.sessions) as session:
        job = get_job(session, training.job_id, project_id="default")
        model = session.query(Model).filter_by(name=name).one()
        version = session.get_one(ModelVersion, model.current_version_id)
        version.job_id = job.id
        give_aliases(session, job, version)
    return str(name)


def asked(client: OpenAI, model: str) -> str | None:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
    return answer.choices[0].message.content


class TestNames:
    def test_the_alias_answers_and_is_shown_and_deleted(
        self, client: OpenAI, api: httpx.Client, training: Training, publish: Publish
    ) -> None:
        model = publish_as_the_job_does(publish, training)
        name = f"ft:org/base:default:{model}:{training.job_id}"
        assert asked(client, name) == "Answer"
        assert client.models.retrieve(name).id == name
        [version] = api.get(f"/v1/models/{model}").json()["versions"]
        assert version["aliases"] == [name]
        second = publish(model)  # by another job: the alias stays with the version that is its own
        assert second == f"{model}-2-q4_k_m"
        assert api.get(f"/v1/models/{name}").json()["version"] == 1
        assert client.models.delete(name).deleted
        assert [row["number"] for row in api.get(f"/v1/models/{model}").json()["versions"]] == [2]
        with pytest.raises(openai.NotFoundError) as caught:
            asked(client, name)
        assert caught.value.code == "model_not_found"

    def test_an_alias_that_there_was_moves_and_the_job_says_so(
        self, client: OpenAI, api: httpx.Client, settings: Settings, training: Training, publish: Publish
    ) -> None:
        file_id = upload(api)
        alias = f"ft:gpt-4o:acme::{secrets.token_hex(3)}"
        made = []
        for _ in range(2):
            job = client.fine_tuning.jobs.create(
                model="org/base", training_file=file_id, extra_body={"params": {"alias": alias}}
            )
            tuned = in_training(job.id, settings.storage_root, training.sessions)
            made.append(publish_as_the_job_does(publish, tuned))
        assert api.get(f"/v1/models/{alias}").json()["name"] == made[1]
        [event] = client.fine_tuning.jobs.list_events(job.id).data
        assert (event.level, alias in event.message, f"{made[0]}@1" in event.message) == ("warn", True, True)

    def test_an_alias_is_its_projects_alone(self, keyed: Keyed, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError):
            asked(client, "ft:tiny:default:nobody:job-0")
        stranger = keyed.client(keyed.project("stranger"))
        answer = stranger.get("/v1/models/ft:org/base:default:trained:job-0")
        assert answer.status_code == 404


class TestCheckpoints:
    def test_are_listed_with_metrics_and_a_name(
        self, client: OpenAI, api: httpx.Client, training: Training
    ) -> None:
        named = api.get(f"/v1/jobs/{training.job_id}").json()["params"]["name"]
        older, newer = training.checkpoint(10), training.checkpoint(20)
        rows = list(client.fine_tuning.jobs.checkpoints.list(training.job_id, limit=1))
        assert [row.id for row in rows] == [newer, older]
        assert rows[0].fine_tuned_model_checkpoint == (
            f"ft:org/base:default:{named}:{training.job_id}:ckpt-step-20"
        )
        assert (rows[0].step_number, rows[0].metrics.step, rows[0].metrics.train_loss) == (20, 20, 2.5)

    def test_the_one_that_was_published_answers_at_once(
        self, client: OpenAI, api: httpx.Client, training: Training, publish: Publish
    ) -> None:
        training.checkpoint(10)
        training.checkpoint(20)
        training.succeed("train")
        with transaction(training.sessions) as session:
            train = get_job(session, training.job_id, project_id="default").steps[1]
            train.result = {"best_checkpoint": "checkpoints/checkpoint-20"}
        model = publish_as_the_job_does(publish, training)
        [newest, older] = client.fine_tuning.jobs.checkpoints.list(training.job_id).data
        assert asked(client, newest.fine_tuned_model_checkpoint) == "Answer"
        assert api.get(f"/v1/models/{newest.fine_tuned_model_checkpoint}").json()["name"] == model
        assert api.get(f"/v1/models/{older.fine_tuned_model_checkpoint}").status_code == 404

    def test_another_is_exported_once_it_is_asked(
        self, client: OpenAI, api: httpx.Client, training: Training, session_factory: SessionFactory
    ) -> None:
        training.checkpoint(10)
        training.succeed("train")
        [row] = client.fine_tuning.jobs.checkpoints.list(training.job_id).data
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as caught:
                asked(client, row.fine_tuned_model_checkpoint)
            assert (caught.value.status_code, caught.value.code) == (503, "checkpoint_exporting")
            assert 2 <= int(caught.value.response.headers["retry-after"]) <= 60
        exports = api.get("/v1/jobs", params={"kind": "export"}).json()["data"]
        [mine] = [job for job in exports if job["params"]["checkpoint"] == row.id]
        end(session_factory, mine["id"], JobStatus.FAILED)
        with pytest.raises(openai.NotFoundError, match=mine["id"]):
            asked(client, row.fine_tuned_model_checkpoint)

    def test_who_may_not_write_has_none_exported(self, keyed: Keyed) -> None:
        owner = keyed.client("default")
        body = {
            "kind": "fine_tune",
            "params": {"base_model": "tiny", "training_file": upload(owner), "name": "k"},
        }
        job_id = owner.post("/v1/jobs", json=body).json()["id"]
        in_training(job_id, keyed.settings.storage_root, keyed.sessions).checkpoint(10)
        asking = keyed.client("default", "inference")
        question = {"messages": [{"role": "user", "content": "?"}]}
        model = f"ft:tiny:default:k:{job_id}:ckpt-step-10"
        answer = asking.post("/v1/chat/completions", json={**question, "model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "checkpoint_not_exported")
        assert owner.get("/v1/jobs", params={"kind": "export"}).json()["data"] == []
