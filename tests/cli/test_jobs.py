from pathlib import Path

import pytest

from tests.cli.conftest import Hand, Run


@pytest.mark.usefixtures("api_url")
class TestJobs:
    def test_lists_the_newest_first(self, run: Run, hand: Hand) -> None:
        older, newer = hand.fine_tune("one"), hand.pretrain("two")
        hand.begin(older, "prepare")
        hand.progress(older, "prepare", 1, 4, 10)
        lines = run("jobs").out.splitlines()[2:]
        assert lines[0].split()[:4] == [newer, "pretrain", "two", "queued"]
        assert lines[1].split()[:6] == [older, "fine_tune", "one", "running", "prepare", "25%"]

    def test_filters_and_limits(self, run: Run, hand: Hand) -> None:
        hand.fine_tune()
        first, second = hand.pretrain("one"), hand.pretrain("two")
        hand.begin(first, "train")
        ids = [row["id"] for row in run("jobs", "--kind", "pretrain", "--json").json()]
        assert ids == [second, first]
        assert [row["id"] for row in run("jobs", "--status", "running", "--json").json()] == [first]
        assert len(run("jobs", "--limit", "2", "--json").json()) == 2
        assert run("jobs", "--status", "odd").status == 2

    def test_keeps_an_id_whole_on_a_narrow_screen(
        self, run: Run, hand: Hand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = hand.fine_tune()
        monkeypatch.setenv("COLUMNS", "80")
        long = hand.pretrain("a-name-of-some-length")
        hand.finish(long, "train", "export", "verify", "publish")
        hand.succeed(long)
        lines = run("jobs").out.splitlines()
        assert any(job in line for line in lines)
        assert any("succeeded" in line for line in lines)
        assert max(map(len, lines)) <= 80

    def test_says_when_there_are_none(self, run: Run) -> None:
        assert run("jobs").out == "There are no jobs yet.\n"
        assert run("jobs", "--json").out == "[]\n"


@pytest.mark.usefixtures("api_url")
class TestJob:
    def test_shows_steps_attempts_events_and_artifacts(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        hand.say(job, "prepare", "20 rows")
        hand.artifact(job, "adapter_config.json", b"{}")
        shown = run("job", job).out
        for part in (job, "fine_tune", "base_model", "prepare: 20 rows", "1 running", "adapter_config.json"):
            assert part in shown

    def test_shows_of_what_was_asked_what_is_set(self, run: Run, hand: Hand, tmp_path: Path) -> None:
        hand.publish("faq", "Q4_K_M")
        rows = tmp_path / "rows.csv"
        rows.write_text("question\nWhy?\n")
        asked = ("--prompt", "{question}", "--inference-kwargs", '{"temperature": 0}')
        job = run("predict", "--model", "faq", "--data", str(rows), *asked, "--json").json()["id"]
        facts = [line.split() for line in run("job", job).out.splitlines()]
        assert ["inference_kwargs", "temperature=0"] in facts
        assert ["name"] not in facts

    def test_leaves_out_lists_that_are_empty(self, run: Run, hand: Hand, tmp_path: Path) -> None:
        rows = tmp_path / "rows.csv"
        rows.write_text("question,answer\nWho?,She.\n")
        asked = ("fine-tune", "--base", "tiny", "--data", str(rows), "--name", "faq", "--json")
        shown = run("job", run(*asked).json()["id"]).out
        facts = dict(line.split(maxsplit=1) for line in shown.splitlines() if len(line.split()) > 1)
        assert facts["use_dora"].strip() == "false"
        assert "rewards" not in shown

    def test_tells_its_place_in_the_line(self, run: Run, hand: Hand) -> None:
        hand.pretrain()
        lines = run("job", hand.pretrain()).out.splitlines()
        assert any(line.split() == ["place", "in", "the", "line", "2"] for line in lines)
        assert not any("may start" in line for line in lines)  # there is no worker

    def test_shows_no_measured_values(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        hand.say(job, "prepare", "20 rows")
        for number in range(30):
            hand.say(job, "prepare", loss=1.0, number=number)
        shown = run("job", job).out
        assert shown.count("prepare: ") == 1
        assert "earlier events" not in shown

    def test_json_is_one_document_with_all_of_it(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        hand.say(job, "prepare", loss=2.0)
        document = run("job", job, "--json").json()
        assert document["steps"][0]["attempts"][0]["number"] == 1
        assert document["events"][0]["data"] == {"loss": 2.0}
        assert document["artifacts"] == []

    @pytest.mark.parametrize("wrong", ["job-nothing", "a/b", "%2e%2e"])
    def test_of_an_unknown_id_exits_with_4(self, run: Run, wrong: str) -> None:
        assert run("job", wrong).status == 4


@pytest.mark.usefixtures("api_url")
class TestCancelAndRetry:
    def test_cancel_and_retry_a_job(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        assert run("cancel", job).out == f"{job} cancelled\n"
        assert hand.job(job).status == "cancelled"
        assert run("retry", job, "--json").json()["status"] == "queued"

    def test_pause_and_resume_a_job(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        assert run("pause", job).out == f"{job} paused\n"
        assert run("resume", job).out == f"{job} queued\n"

    def test_a_paused_job_tells_how_long_it_ran(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.finish(job, "prepare")
        run("pause", job)
        shown = run("job", job).out
        assert "running for" not in shown

    def test_delete_a_job_that_has_ended(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        assert run("delete", job).status == 1
        run("cancel", job)
        assert run("delete", job).out == f"{job} deleted\n"
        assert run("delete", job).status == 4

    def test_says_of_a_cancelled_job_that_it_is(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        run("cancel", job)
        assert "The job is cancelled: there is nothing to pause." in run("pause", job).err

    def test_retry_with_more_time(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        run("cancel", job)
        assert run("retry", job, "--max-runtime", "1.5h", "--json").json()["max_runtime_seconds"] == 5400
        run("cancel", job)
        assert run("retry", job, "--max-runtime", "none", "--json").json()["max_runtime_seconds"] is None
        assert run("retry", job, "--max-runtime", "soon").status == 2

    def test_what_the_server_refuses_exits_with_1(self, run: Run, hand: Hand) -> None:
        ran = run("retry", hand.pretrain())
        assert ran.status == 1
        assert ran.err.startswith("Error: ")


@pytest.mark.usefixtures("api_url")
class TestClone:
    def test_changes_what_is_set_and_nothing_else(self, run: Run, hand: Hand) -> None:
        job = run("pretrain", "--name", "one", "--layers", "2", "--max-runtime", "90m", "--json").json()
        made = run("clone", job["id"], "-s", "name=two", "--set", "learning-rate=0.5", "--json").json()
        assert made["cloned_from"] == job["id"]
        assert made["params"] == job["params"] | {"name": "two", "learning_rate": 0.5}
        assert made["max_runtime_seconds"] == job["max_runtime_seconds"] == 5400
        again = run("clone", made["id"], "--set", "save_minutes=null", "--set", "quantizations=F16,Q8_0")
        assert again.out.splitlines()[0].endswith(" queued")
        params = hand.jobs()[-1].params
        assert (params["save_minutes"], params["quantizations"]) == (None, ["F16", "Q8_0"])

    def test_uploads_another_file(self, run: Run, hand: Hand, tmp_path: Path) -> None:
        text = tmp_path / "book.txt"
        text.write_text("Once upon a time.")
        job = run("pretrain", "--name", "one", "--json").json()
        made = run("clone", job["id"], "--set", f"training_file={text}", "--json").json()
        assert hand.upload_of(made["params"]["training_file"]) == text.read_bytes()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ("layers", "NAME=VALUE"),
            ("layers=many", "--set: layers: 'many' is not a whole number"),
            ("layer=3", "Did you mean layers?"),
        ],
    )
    def test_says_what_is_wrong_with_a_change(self, run: Run, hand: Hand, change: str, told: str) -> None:
        ran = run("clone", hand.pretrain(), "--set", change)
        assert ran.status == 2
        assert told in " ".join(ran.err.split())
