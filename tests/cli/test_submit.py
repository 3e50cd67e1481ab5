from pathlib import Path

import httpx
import pytest

from db.settings import Settings
from serving.local_port import free_port
from tests.cli.conftest import Hand, Run

FAQ = b"question,answer\nWhat is Lathe?,A service.\n"


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "my faq.csv"
    path.write_bytes(FAQ)
    return path


@pytest.mark.usefixtures("api_url")
class TestFineTune:
    def test_uploads_the_data_and_submits_the_job(self, run: Run, hand: Hand, csv: Path) -> None:
        ran = run(
            "fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq", "--epochs", "3", "--json"
        )
        assert (ran.status, ran.err) == (0, "")
        job = ran.json()
        assert (job["kind"], job["status"]) == ("fine_tune", "queued")
        assert job["params"]["epochs"] == 3
        assert job["params"]["learning_rate"] == "auto"
        assert hand.upload_of(job["params"]["training_file"]) == FAQ

    def test_says_how_to_follow_it(self, run: Run, hand: Hand, csv: Path) -> None:
        ran = run("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq")
        tiny, job = hand.jobs()
        assert ran.out.splitlines() == [
            f"{job.id} queued",
            f"It waits for {tiny.id}, which makes its base model.",
            f"Follow it:  lathe watch {job.id}",
        ]

    def test_takes_an_uploaded_files_id_as_it_is(self, run: Run, hand: Hand, csv: Path) -> None:
        arguments = ("fine-tune", "--base", "tiny", "--json", "--data")
        first = run(*arguments, str(csv), "--name", "one").json()["params"]["training_file"]
        second = run(*arguments, first, "--validation", first, "--name", "two").json()["params"]
        assert (second["training_file"], second["validation_file"]) == (first, first)

    def test_names_the_flag_that_the_api_refuses(self, run: Run, hand: Hand, csv: Path) -> None:
        ran = run("fine-tune", "--base", "nothing", "--data", str(csv), "--name", "faq")
        assert ran.status == 2
        assert "nothing" in ran.err
        assert "tiny" in ran.err
        assert "(--base)" in ran.err
        assert hand.jobs() == []

    def test_names_the_file_as_it_is_called(self, run: Run, csv: Path) -> None:
        ran = run("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq", "--method", "dpo")
        assert ran.err.startswith("Error: my faq.csv has question,answer: answers.")

    def test_reads_an_object_from_pairs(self, run: Run, csv: Path) -> None:
        arguments = ("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq", "--json")
        columns = ("--columns", "question=question,answer=answer")
        ran = run(*arguments, *columns, "--training-args", "weight_decay=0.1,optim=sgd,tf32=null")
        assert ran.json()["params"]["training_args"] == {"weight_decay": 0.1, "optim": "sgd", "tf32": None}

    def test_takes_back_what_it_uploaded_for_a_job_that_is_refused(
        self, run: Run, hand: Hand, csv: Path, api_url: str
    ) -> None:
        def kept() -> list[str]:
            return [row["id"] for row in httpx.get(f"{api_url}/v1/files").json()["data"]]

        run("fine-tune", "--base", "nothing", "--data", str(csv), "--name", "faq")
        assert kept() == []
        run("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq")
        [uploaded] = kept()
        run("fine-tune", "--base", "nothing", "--data", uploaded, "--name", "faq")
        assert kept() == [uploaded]

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("--learning-rate", "-1"), "--learning-rate"),
            (("--name", "../faq"), "--name"),
            (("--validation", "missing.csv"), "missing.csv does not exist"),
            (("--surprise", "1"), "No such option"),
        ],
    )
    def test_refuses_bad_input_before_it_uploads(
        self, run: Run, hand: Hand, csv: Path, arguments: tuple[str, str], told: str
    ) -> None:
        ran = run("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq", *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert told in ran.err
        assert not (hand.settings.storage_root / "files").exists()


@pytest.mark.usefixtures("api_url")
class TestPretrain:
    def test_needs_nothing_but_a_name(self, run: Run, hand: Hand) -> None:
        ran = run(
            "pretrain", "--name", "small", "--steps", "10", "--max-attempts", "1", "--priority=-5", "--json"
        )
        assert ran.status == 0
        assert ran.json()["params"]["steps"] == 10
        assert (ran.json()["max_attempts"], ran.json()["priority"]) == (1, -5)

    def test_says_what_is_wrong_with_a_webhooks_address(self, run: Run) -> None:
        ran = run("pretrain", "--name", "small", "--webhook-url", "http://10.0.0.1/hook")
        assert ran.status != 0
        assert "LATHE_WEBHOOK_ALLOWED_NETWORKS" in ran.err


class TestTooLarge:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_file_bytes": 1_000_000})

    @pytest.mark.usefixtures("api_url")
    def test_a_file_says_what_the_limit_is(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "large.csv"
        with path.open("wb") as file:
            file.truncate(200_000_000)
        ran = run("fine-tune", "--base", "tiny", "--data", str(path), "--name", "faq")
        assert ran.status == 2
        assert "LATHE_MAX_FILE_BYTES" in ran.err


class TestNoServer:
    def test_says_what_to_start(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("LATHE_API_URL", url)
        ran = run("pretrain", "--name", "small")
        assert (ran.status, ran.out) == (3, "")
        assert f"Nothing answers at {url}" in ran.err
        assert "Is `lathe up` running?" in ran.err

    def test_says_which_setting_is_wrong(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATHE_API_PORT", "many")
        ran = run("jobs")
        assert ran.status == 2
        assert "LATHE_API_PORT" in ran.err

    @pytest.mark.parametrize(
        ("networks", "told"), [("10.0.0.1/8", "10.0.0.1/8 has host bits set"), ("home", "'home'")]
    )
    def test_says_what_is_wrong_with_a_network(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, networks: str, told: str
    ) -> None:
        monkeypatch.setenv("LATHE_WEBHOOK_ALLOWED_NETWORKS", f"127.0.0.0/8,{networks}")
        ran = run("jobs")
        assert ran.status == 2
        assert f"LATHE_WEBHOOK_ALLOWED_NETWORKS: {told}" in ran.err


@pytest.mark.usefixtures("api_url")
def test_two_files_of_one_name_do_not_replace_each_other(run: Run, hand: Hand, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(name)
    files = [str(tmp_path / name / "README.md") for name in ("one", "two")]
    ran = run("ingest", *files, "--collection", "manuals")
    assert ran.status == 2
    assert all(word in ran.err for word in (*files, "--keep"))
    assert hand.jobs() == []
    assert run("ingest", *files, "--collection", "manuals", "--keep").status == 0
    [job] = hand.jobs()
    assert len(job.params["files"]) == 2


@pytest.mark.usefixtures("api_url")
class TestPredict:
    def test_uploads_the_rows_and_submits_the_job(self, run: Run, hand: Hand, csv: Path) -> None:
        hand.publish("faq", "Q4_K_M")
        ran = run(
            "predict", "--model", "faq", "--data", str(csv), "--prompt", "{question}", "--json",
            "--inference-kwargs", '{"temperature": 0}', "--concurrency", "4",
        )  # fmt: skip
        assert (ran.status, ran.err) == (0, "")
        params = ran.json()["params"]
        assert hand.upload_of(params["input_file"]) == FAQ
        assert params["inference_kwargs"]["temperature"] == 0
        assert params["concurrency"] == 4

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("--prompt", "{nothing}"), "Error: There is no column 'nothing'. The rows have: "),
            (("--prompt", "{nothing}"), "(--prompt)"),
            (("--prompt", "{question}", "--inference-kwargs", "{"), "is no JSON"),
            (("--prompt", "{question}", "--target", "x"), "(--target)"),
        ],
    )
    def test_names_the_flag_that_is_wrong(
        self, run: Run, hand: Hand, csv: Path, arguments: tuple[str, ...], told: str
    ) -> None:
        hand.publish("faq", "Q4_K_M")
        ran = run("predict", "--model", "faq", "--data", str(csv), *arguments)
        assert ran.status == 2
        assert told in ran.err
        assert hand.jobs() == []
