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
        lines = run("jobs").out.splitlines()
        assert job in lines[2]
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

    def test_what_the_server_refuses_exits_with_1(self, run: Run, hand: Hand) -> None:
        ran = run("retry", hand.pretrain())
        assert ran.status == 1
        assert ran.err.startswith("Error: ")
