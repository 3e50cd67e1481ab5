"""`lathe checkpoints`, `lathe export`, and `lathe chat` with the id of a checkpoint."""

import threading

import pytest

from db.models import ModelVersion
from db.session import transaction
from db.settings import Settings
from db.states import JobKind
from tests.cli.conftest import Hand, Run
from tests.trainings import Training, in_training
from tests.waiting import wait_until


@pytest.fixture
def training(settings: Settings, hand: Hand, api_url: str) -> Training:
    return in_training(hand.fine_tune(), settings.storage_root, hand.sessions)


def publish(hand: Hand, checkpoint: str, job_id: str) -> None:
    """What workers make of an export, as far as rows go."""
    hand.publish("faq-step-20", "Q4_K_M")
    with transaction(hand.sessions) as session:
        session.query(ModelVersion).one().checkpoint_id = checkpoint
    hand.finish(job_id, "export", "verify", "publish")
    hand.succeed(job_id, model="faq-step-20", version=1)


class TestCheckpoints:
    def test_shows_what_each_costs_and_how_to_export_one(self, run: Run, training: Training) -> None:
        older, newer = training.checkpoint(10), training.checkpoint(20)
        lines = run("checkpoints", training.job_id).out.splitlines()
        assert lines[2].split()[:4] == [newer, "20", "2.5", "1.2"]
        assert lines[3].split()[0] == older
        assert f"lathe export {newer} --watch" in lines[-1]
        rows = run("checkpoints", training.job_id, "--limit", "1", "--json").json()
        assert [row["id"] for row in rows] == [newer]

    def test_says_when_there_are_none(self, run: Run, training: Training) -> None:
        assert run("checkpoints", training.job_id).out == "The job has no checkpoints.\n"


class TestExport:
    def test_takes_a_checkpoint_by_its_id(self, run: Run, hand: Hand, training: Training) -> None:
        checkpoint = training.checkpoint(20)
        job = run("export", checkpoint, "--name", "early", "--quantization", "q8_0", "--json").json()
        assert job["params"] == {
            "checkpoint": checkpoint, "job": None, "name": "early", "quantizations": ["Q8_0"],
            "imatrix": False, "publish": "merged",
        }  # fmt: skip
        flagged = run("export", "--checkpoint", checkpoint, "--json").json()
        assert flagged["params"]["name"] == "faq-step-20"

    def test_refuses_what_is_no_id_and_no_choice(self, run: Run, training: Training) -> None:
        assert "checkpoint-… or job-…" in run("export", "faq").err
        assert run("export").status == 2
        refused = run("export", training.job_id)
        assert refused.status == 1
        assert "training" in refused.err


class TestChat:
    def test_exports_first_and_says_so(self, run: Run, hand: Hand, training: Training) -> None:
        checkpoint = training.checkpoint(20)
        ran = []
        asking = threading.Thread(target=lambda: ran.append(run("chat", checkpoint, "hello", "--yes")))
        asking.start()
        [export] = wait_until(lambda: [job for job in hand.jobs() if job.kind == JobKind.EXPORT])
        publish(hand, checkpoint, export.id)
        asking.join(20)
        [chatted] = ran
        assert "has not been exported yet" in chatted.err
        assert f"Exporting it: {export.id}" in chatted.err
        # Nothing serves models here: that it is asked at all is what can be seen.
        assert chatted.status == 3
        assert "model" in chatted.err.splitlines()[-1]
        assert len([job for job in hand.jobs() if job.kind == JobKind.EXPORT]) == 1

    def test_of_an_unknown_checkpoint_exits_with_4(self, run: Run, training: Training) -> None:
        ran = run("chat", "checkpoint-" + "0" * 32, "hello")
        assert ran.status == 4
