from pathlib import Path

from deploy.local import logs


class TestTail:
    def test_returns_the_last_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        path.write_text("".join(f"line {number}\n" for number in range(20_000)))
        assert logs.tail(path, 2) == ["line 19998", "line 19999"]

    def test_does_not_look_before_the_start(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        path.write_text("old\n")
        start = path.stat().st_size
        with path.open("a") as file:
            file.write("new\n")
        assert logs.tail(path, 5, start=start) == ["new"]

    def test_of_no_file_is_empty(self, tmp_path: Path) -> None:
        assert logs.tail(tmp_path / "none.log", 5) == []


class TestRotate:
    def test_leaves_a_small_log_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        path.write_text("short\n")
        assert not logs.rotate(path, limit_bytes=100)
        assert path.read_text() == "short\n"

    def test_keeps_three_and_its_writer_goes_on_at_the_beginning(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        with path.open("a") as writer:
            for number in range(5):
                writer.write(f"{number}" * 200 + "\n")
                writer.flush()
                assert logs.rotate(path, limit_bytes=100)
            writer.write("after\n")
        assert path.read_text() == "after\n"
        kept = sorted(file.name for file in tmp_path.iterdir())
        assert kept == ["part.log", "part.log.1", "part.log.2", "part.log.3"]
        assert path.with_name("part.log.1").read_text().startswith("4")


class TestFollower:
    def test_gives_whole_new_lines_once(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        path.write_text("before\n")
        follower = logs.Follower(path)
        with path.open("a") as file:
            file.write("first\nhal")
            file.flush()
            assert follower.lines() == ["first"]
            file.write("f\n")
            file.flush()
            assert follower.lines() == ["half"]
        assert follower.lines() == []

    def test_begins_anew_after_a_rotation(self, tmp_path: Path) -> None:
        path = tmp_path / "part.log"
        path.write_text("a long line before the rotation\n")
        follower = logs.Follower(path)
        logs.rotate(path, limit_bytes=1)
        with path.open("a") as file:
            file.write("new\n")
        assert follower.lines() == ["new"]
