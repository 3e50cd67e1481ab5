from pathlib import Path

import pytest

from tests.cli.conftest import Hand, Run

CONTENT = bytes(range(256)) * 9000


@pytest.fixture
def job(hand: Hand) -> str:
    job_id = hand.fine_tune()
    hand.artifact(job_id, "faq-Q4_K_M.gguf", CONTENT)
    hand.artifact(job_id, "adapter_config.json", b"{}")
    return job_id


@pytest.mark.usefixtures("api_url")
class TestDownload:
    def test_brings_everything(self, run: Run, job: str, tmp_path: Path) -> None:
        ran = run("download", job, "--dir", str(tmp_path / "new"))
        assert (ran.status, ran.err) == (0, "")
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
            "adapter_config.json",
            "faq-Q4_K_M.gguf",
        ]
        assert (tmp_path / "new" / "faq-Q4_K_M.gguf").read_bytes() == CONTENT

    def test_brings_what_is_named_once(self, run: Run, job: str, tmp_path: Path) -> None:
        arguments = ("download", job, "adapter_config.json", "--dir", str(tmp_path), "--json")
        row = run(*arguments).json()[0]
        assert (row["name"], row["bytes"], row["downloaded"]) == ("adapter_config.json", 2, True)
        assert run(*arguments).json()[0]["downloaded"] is False

    def test_goes_on_where_it_stopped(self, run: Run, job: str, tmp_path: Path) -> None:
        (tmp_path / "faq-Q4_K_M.gguf.part").write_bytes(CONTENT[:1_000_000])
        assert run("download", job, "faq-Q4_K_M.gguf", "--dir", str(tmp_path)).status == 0
        assert (tmp_path / "faq-Q4_K_M.gguf").read_bytes() == CONTENT
        assert not (tmp_path / "faq-Q4_K_M.gguf.part").exists()

    def test_what_arrives_damaged_gets_no_name(self, run: Run, job: str, tmp_path: Path) -> None:
        # Wrong bytes, which are kept as they are: so only the rest was asked for.
        (tmp_path / "faq-Q4_K_M.gguf.part").write_bytes(b"\0" * 1_000_000)
        ran = run("download", job, "faq-Q4_K_M.gguf", "--dir", str(tmp_path))
        assert ran.status == 1
        assert "arrived damaged" in ran.err
        assert list(tmp_path.glob("*.gguf*")) == []
        assert run("download", job, "faq-Q4_K_M.gguf", "--dir", str(tmp_path)).status == 0

    @pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
    def test_a_part_that_is_whole_or_too_long_is_no_obstacle(
        self, run: Run, job: str, tmp_path: Path, length: int
    ) -> None:
        (tmp_path / "faq-Q4_K_M.gguf.part").write_bytes((CONTENT + b"extra")[:length])
        assert run("download", job, "faq-Q4_K_M.gguf", "--dir", str(tmp_path)).status == 0
        assert (tmp_path / "faq-Q4_K_M.gguf").read_bytes() == CONTENT

    def test_replaces_another_file_of_that_name(self, run: Run, job: str, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("[]")
        assert run("download", job, "adapter_config.json", "--dir", str(tmp_path)).status == 0
        assert (tmp_path / "adapter_config.json").read_text() == "{}"

    def test_of_an_unknown_name_lists_those_there_are(self, run: Run, job: str, tmp_path: Path) -> None:
        ran = run("download", job, "nothing", "--dir", str(tmp_path / "new"))
        assert ran.status == 4
        assert "adapter_config.json" in ran.err
        assert not (tmp_path / "new").exists()

    def test_of_a_job_that_made_nothing_says_so(self, run: Run, hand: Hand) -> None:
        ran = run("download", hand.pretrain())
        assert ran.status == 4
        assert "nothing that can be downloaded yet" in ran.err
