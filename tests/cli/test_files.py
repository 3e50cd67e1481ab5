from pathlib import Path

from tests.cli.conftest import Hand, Run


class TestFiles:
    def test_are_uploaded_listed_and_deleted(
        self, run: Run, api_url: str, hand: Hand, tmp_path: Path
    ) -> None:
        assert "no files yet" in run("files").out
        path = tmp_path / "rows.csv"
        path.write_bytes(b"question,answer\nWho?,She.\n")
        file_id = run("files", "add", str(path)).out.strip()
        assert hand.upload_of(file_id) == path.read_bytes()
        shown = run("files").out.splitlines()[-1].split()
        assert shown[:5] == [file_id, "rows.csv", "26", "B", "fine-tune"]
        assert [row["id"] for row in run("files", "--json").json()] == [file_id]
        assert run("files", "delete", file_id).status == 0
        assert "no files yet" in run("files").out

    def test_what_is_not_there_is_told_before_anything_is_uploaded(
        self, run: Run, api_url: str, tmp_path: Path
    ) -> None:
        there = tmp_path / "rows.csv"
        there.write_text("question,answer\n")
        ran = run("files", "add", str(there), str(tmp_path / "gone.csv"))
        assert (ran.status, "gone.csv does not exist" in ran.err) == (2, True)
        assert "no files yet" in run("files").out
        assert run("files", "delete", "file-none").status == 4
