import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from cli.client import Client
from cli.following import follow
from db.errors import Unavailable
from tests.cli.conftest import Hand, Run


@pytest.mark.usefixtures("api_url")
class TestWatch:
    def test_tells_of_an_ended_job_and_how_to_use_it(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        hand.say(job, "prepare", "20 rows")
        hand.finish(job, "prepare", "train", "export", "verify", "publish")
        hand.succeed(job, model="faq", version=2, quantizations=["Q4_K_M"])
        ran = run("watch", job)
        assert (ran.status, ran.err) == (0, "")
        assert "prepare: 20 rows" in ran.out
        assert "faq@2 answers:  lathe chat faq" in ran.out

    def test_of_a_failed_job_prints_the_error_and_the_end_of_the_log(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.finish(job, "prepare")
        hand.begin(job, "train")
        log = "".join(f"line {number}\n" for number in range(1200)) + "\x1b[31mKilled\n"
        hand.fail(job, "train", "The process was ended by signal 9.", log)
        ran = run("watch", job)
        assert ran.status == 1
        assert "Failed: The process was ended by signal 9." in ran.err
        assert ran.err.splitlines()[-2:] == ["  line 1199", "  Killed"]
        assert "line 1000" not in ran.err

    def test_of_a_cancelled_job_exits_with_1(self, run: Run, hand: Hand) -> None:
        job = hand.pretrain()
        assert run("cancel", job).status == 0
        assert run("watch", job).status == 1

    def test_follows_the_job_that_is_waited_for(self, run: Run, hand: Hand) -> None:
        tiny = hand.pretrain()
        job = hand.fine_tune(waits_for=tiny)

        def work() -> None:
            hand.begin(tiny, "train")
            hand.say(tiny, "train", "It learns.")
            hand.finish(tiny, "train", "export", "verify", "publish")
            hand.succeed(tiny, model="tiny", version=1)
            hand.finish(job, "prepare", "train", "export", "verify", "publish")
            hand.succeed(job, model="faq", version=1)

        worker = threading.Timer(0.3, work)
        worker.start()
        ran = run("watch", job)
        worker.join()
        assert ran.status == 0
        assert f"fine_tune faq: waits for {tiny}" in ran.out
        assert ran.out.count("pretrain tiny: train: It learns.") <= 1
        assert "fine_tune faq: publish succeeded" in ran.out

    def test_json_is_lines_of_events_between_states_of_the_job(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        hand.say(job, "prepare", loss=1.5)
        hand.finish(job, "prepare", "train", "export", "verify", "publish")
        hand.succeed(job, model="faq", version=1)
        rows = [json.loads(line) for line in run("watch", job, "--json").out.splitlines()]
        assert [row["object"] for row in rows] == ["job", "job.event", "job.event"]
        assert rows[0]["result"] == {"model": "faq", "version": 1}
        assert rows[1]["data"] == {"loss": 1.5}
        assert {row.get("job_id", row["id"]) for row in rows} == {job}

    def test_reads_more_events_than_a_page_holds(self, run: Run, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        for number in range(130):
            hand.say(job, "prepare", f"row {number}.")
        hand.finish(job, "prepare", "train", "export", "verify", "publish")
        hand.succeed(job)
        told = [line for line in run("watch", job).out.splitlines() if "row " in line]
        assert len(told) == 130

    def test_of_an_unknown_job_exits_with_4(self, run: Run) -> None:
        ran = run("watch", "job-nothing")
        assert (ran.status, ran.out) == (4, "")
        assert "There is no job 'job-nothing'" in ran.err

    def test_ctrl_c_leaves_and_the_job_goes_on(self, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        command = [sys.executable, "-c", "from cli.app import main; main()", "watch", job]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert "running" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            _, err = watching.communicate(timeout=20)
        assert watching.returncode == 130
        assert f"The job goes on. Come back:  lathe watch {job}" in err
        assert "Traceback" not in err
        assert hand.job(job).status == "running"


class TestFollow:
    def test_bears_with_a_server_that_is_away_for_a_while(self, api_url: str, hand: Hand) -> None:
        job = hand.fine_tune()
        hand.begin(job, "prepare")
        with _Absence(api_url, 3) as away:
            worker = threading.Thread(target=lambda: hand.fail(job, "prepare", "enough"))
            away.once_it_is_back = worker.start
            ended = follow(away, job, _Silence(), poll_seconds=0.05)
        worker.join()
        assert ended["status"] == "failed"
        assert away.absences == 0

    def test_gives_up_in_the_end(self, api_url: str, hand: Hand) -> None:
        job = hand.fine_tune()
        with _Absence(api_url, 10**9) as away, pytest.raises(Unavailable):
            follow(away, job, _Silence(), poll_seconds=0.01, patience_seconds=0.1)


class _Silence:
    def update(self, job: dict[str, object]) -> None:
        pass

    def event(self, job_id: str, event: dict[str, object]) -> None:
        pass


class _Absence(Client):
    """A client whose server cannot be reached a number of times, after the first look."""

    def __init__(self, url: str, absences: int) -> None:
        super().__init__(url)
        self.absences = absences
        self.once_it_is_back: Callable[[], None] = lambda: None
        self._looked = False

    def job(self, job_id: str) -> dict[str, object]:
        if self._looked and self.absences:
            self.absences -= 1
            if not self.absences:
                self.once_it_is_back()
            raise Unavailable("away")
        self._looked = True
        return super().job(job_id)
