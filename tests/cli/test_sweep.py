"""A sweep's jobs: one for each combination, found again by their metadata, and compared."""

import csv
import io
from pathlib import Path

import pytest

from tests.cli.conftest import Hand, Run

FAQ = b"question,answer\nWhat is Lathe?,A service.\n"


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "faq.csv"
    path.write_bytes(FAQ)
    return ("sweep", "--base", "tiny", "--data", str(path), "--name", "faq")


@pytest.mark.usefixtures("api_url")
class TestSweep:
    def test_a_job_for_each_combination(self, run: Run, hand: Hand, given: tuple[str, ...]) -> None:
        ran = run(
            *given,
            "--learning-rate",
            "1e-4,2e-4",
            "--lora-rank",
            "8, 16",
            "--epochs",
            "3",
            "--quantization",
            "Q8_0",
            "--json",
        )
        assert (ran.status, ran.err) == (0, "")
        found = ran.json()
        assert found["best"] is None
        jobs = [job for job in hand.jobs() if job.kind == "fine_tune"]
        assert [(job.params["learning_rate"], job.params["lora_rank"]) for job in jobs] == [
            (1e-4, 8), (2e-4, 8), (1e-4, 16), (2e-4, 16),
        ]  # fmt: skip
        assert [job.params["name"] for job in jobs] == ["faq-1", "faq-2", "faq-3", "faq-4"]
        assert {job.params["epochs"] for job in jobs} == {3}
        assert len({job.params["training_file"] for job in jobs}) == 1
        assert jobs[0].notes == {
            "sweep": found["id"], "sweep.learning_rate": "0.0001", "sweep.lora_rank": "8",
        }  # fmt: skip

    def test_shows_the_best_by_evaluation_loss(self, run: Run, hand: Hand, given: tuple[str, ...]) -> None:
        sweep = run(*given, "--learning-rate", "1e-4,2e-4,3e-4", "--json").json()["id"]
        first, second, third = [job.id for job in hand.jobs() if job.kind == "fine_tune"]
        for job_id, losses in ((first, (0.9, 0.8)), (second, (0.7, 0.75)), (third, (0.1, 0.05))):
            hand.begin(job_id, "prepare")
            for step, loss in enumerate(losses, start=1):
                hand.say(job_id, "train", step=step, loss=1.0, eval_loss=loss)
        hand.succeed(first)
        hand.succeed(second)
        found = run("sweep", "show", sweep, "--json").json()
        assert (found["best"], found["by"]) == (second, "eval_loss")
        assert [row["id"] for row in found["jobs"]] == [second, first, third]  # the third has not ended
        assert found["jobs"][0]["eval_loss"] == 0.7
        shown = run("sweep", "show", sweep).out
        assert "The best by evaluation loss: faq-2" in shown
        assert "0.0002" in shown  # a number is not folded, however narrow the terminal
        assert "learning_rate" in shown
        table = list(csv.DictReader(io.StringIO(run("sweep", "show", sweep, "--csv").out)))
        assert [(row["model"], row["learning_rate"], row["best"]) for row in table] == [
            ("faq-2", "0.0002", "True"), ("faq-1", "0.0001", "False"), ("faq-3", "0.0003", "False"),
        ]  # fmt: skip

    def test_without_held_out_rows_it_says_what_the_best_is_by(
        self, run: Run, hand: Hand, given: tuple[str, ...]
    ) -> None:
        sweep = run(*given, "--bits", "4,16", "--json").json()["id"]
        for loss, job in enumerate(job for job in hand.jobs() if job.kind == "fine_tune"):
            hand.begin(job.id, "prepare")
            hand.say(job.id, "train", step=1, loss=float(loss))
            hand.succeed(job.id)
        assert "The lowest training loss: faq-1. No rows were held out" in run("sweep", "show", sweep).out

    def test_by_rewards_the_highest_is_the_best(self, run: Run, hand: Hand, given: tuple[str, ...]) -> None:
        flags = ("--method", "grpo", "--rewards", "exact_match", "--beta", "0.01,0.1")
        sweep = run(*given, *flags, "--json").json()["id"]
        jobs = [job for job in hand.jobs() if job.kind == "fine_tune"]
        for rewards, job in zip(((0.2, 0.6), (0.5, 0.4)), jobs, strict=True):
            hand.begin(job.id, "prepare")
            for step, reward in enumerate(rewards, start=1):
                hand.say(
                    job.id, "train", step=step, loss=0.0, reward=reward, eval_loss=0.0, eval_reward=reward
                )
            hand.succeed(job.id)
        found = run("sweep", "show", sweep, "--json").json()
        assert found["by"] == "eval_reward"
        assert [(row["eval_reward"], row["reward"]) for row in found["jobs"]] == [(0.6, 0.6), (0.5, 0.4)]
        assert "The best by evaluation reward: faq-1" in run("sweep", "show", sweep).out

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ((), "Nothing is swept"),
            (("--learning-rate", "1e-4,x"), "--learning-rate"),
            (("--learning-rate", "1e-4,1e-4"), "twice"),
            (("--lora-rank", "8,0"), "--lora-rank"),
            (("--seed", ",".join(map(str, range(65)))), "65 jobs"),
            (("--lora-rank", "8,16", "--base", "nothing"), "nothing"),
        ],
    )
    def test_submits_nothing_that_is_wrong(
        self, run: Run, hand: Hand, given: tuple[str, ...], flags: tuple[str, ...], message: str
    ) -> None:
        ran = run(*given, *flags)
        assert ran.status == 2
        assert message in ran.err
        assert [job for job in hand.jobs() if job.status != "cancelled"] == []

    def test_one_that_is_not_there(self, run: Run) -> None:
        ran = run("sweep", "show", "sweep-0")
        assert ran.status == 4
        assert "There is no sweep" in ran.err
