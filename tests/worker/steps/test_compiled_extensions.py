"""Builds that were killed are waited for by nobody; those that go on are left alone."""

from pathlib import Path

import pytest

from worker.steps.compiled_extensions import compiled_extensions, has_compiled


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """As a process leaves it that is killed while torch compiles."""
    mark = tmp_path / "deepspeed_shm_comm" / "lock"
    mark.parent.mkdir()
    mark.touch()
    return mark


def test_removes_what_a_killed_build_has_left(tmp_path, mark):
    with compiled_extensions(tmp_path) as environment:
        assert not mark.exists()
        assert environment == {"TORCH_EXTENSIONS_DIR": str(tmp_path)}


def test_leaves_the_build_of_another_training_alone(tmp_path, mark):
    with compiled_extensions(tmp_path):
        mark.touch()
        with compiled_extensions(tmp_path):
            assert mark.exists()
    with compiled_extensions(tmp_path):
        assert not mark.exists()


def test_tells_whether_there_is_something_to_wait_for(tmp_path, mark):
    assert not has_compiled(tmp_path)
    (mark.parent / "deepspeed_shm_comm.so").touch()
    assert has_compiled(tmp_path)
