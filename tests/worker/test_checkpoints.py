"""A checkpoint that is not, to the last bit, what was written is found."""

import random
import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from worker.checkpoints import (
    BrokenCheckpoint,
    check_safetensors,
    keep_only_checkpoints,
    list_checkpoints,
    number_of,
    outdated,
    take_over,
    verify,
    write_checkpoint,
)

CORRUPTED = 500


def write(staging: Path) -> None:
    folder = staging / "checkpoint-7"
    (folder / "tokenizer").mkdir(parents=True)
    weights = {"a": numpy.arange(12, dtype=numpy.float32), "b": numpy.ones((3, 4), dtype=numpy.float16)}
    save_file(weights, folder / "model.safetensors")
    (folder / "optimizer.pt").write_bytes(bytes(range(150)) * 2)
    (folder / "tokenizer" / "tokenizer.json").write_text('{"model": "BPE"}')


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "1" / "checkpoints", 7, write)


class TestVerify:
    def test_a_whole_one_passes(self, checkpoint):
        verify(checkpoint)
        assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-7"]

    def test_finds_every_flipped_bit_and_every_truncation(self, checkpoint):
        rng = random.Random(5)  # noqa: S311 - reproducible, not secret
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        for number in range(CORRUPTED):
            path = rng.choice(files)
            whole = path.read_bytes()
            broken = bytearray(whole)
            if number % 4 == 0:
                del broken[rng.randrange(len(whole)) :]
            else:
                broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            with pytest.raises(BrokenCheckpoint):
                verify(checkpoint)
            path.write_bytes(whole)
        verify(checkpoint)

    def test_finds_files_too_few_and_too_many(self, checkpoint):
        (checkpoint / "more").touch()
        with pytest.raises(BrokenCheckpoint, match="more is not of it"):
            verify(checkpoint)
        (checkpoint / "more").unlink()
        (checkpoint / "optimizer.pt").unlink()
        with pytest.raises(BrokenCheckpoint, match=r"optimizer.pt is missing"):
            verify(checkpoint)

    def test_one_without_a_manifest_was_not_finished(self, checkpoint):
        (checkpoint / "checkpoint.json").unlink()
        with pytest.raises(BrokenCheckpoint, match="not finished"):
            verify(checkpoint)


class TestSafetensorsHeader:
    @pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}x"])
    def test_has_to_describe_the_bytes(self, tmp_path, content):
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        with pytest.raises(BrokenCheckpoint):
            check_safetensors(path)


class TestTakeOver:
    def test_costs_no_disk_and_outlives_the_first(self, checkpoint, tmp_path):
        own = take_over(checkpoint, tmp_path / "2" / "checkpoints")
        assert (own / "optimizer.pt").samefile(checkpoint / "optimizer.pt")
        shutil.rmtree(checkpoint)
        verify(own)

    def test_leaves_nothing_of_a_broken_one(self, checkpoint, tmp_path):
        (checkpoint / "optimizer.pt").write_bytes(b"")
        root = tmp_path / "2" / "checkpoints"
        with pytest.raises(BrokenCheckpoint, match="0 bytes in place of 300"):
            take_over(checkpoint, root)
        assert list(root.iterdir()) == []


class TestWhatIsKept:
    def test_checkpoints_only(self, checkpoint, tmp_path):
        attempt = tmp_path / "1"
        (attempt / "half.bin").touch()
        (attempt / "checkpoints" / ".writing").mkdir()
        assert keep_only_checkpoints(attempt) == [checkpoint] == list_checkpoints(attempt)
        assert [path.name for path in attempt.rglob("*") if path.parent in (attempt, checkpoint.parent)] == [
            "checkpoints", "checkpoint-7",
        ]  # fmt: skip
        shutil.rmtree(checkpoint)
        assert keep_only_checkpoints(attempt) == []
        assert not attempt.exists()

    def test_the_newest_and_the_best(self, tmp_path):
        root = tmp_path / "checkpoints"
        for number in (2, 10, 4, 6):
            (root / f"checkpoint-{number}").mkdir(parents=True)
        assert [number_of(path) for path in outdated(root, 2, {2})] == [4]
