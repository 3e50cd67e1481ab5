from pathlib import Path

import pytest

from db.source_files import ENTRY_FILE
from worker.steps.recipe_cache import RecipeCache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class TestStore:
    def test_is_content_with_the_entry_of_another_process(self, tmp_path: Path, model: Path) -> None:
        cache = RecipeCache(tmp_path / "weights")
        cache.store("recipe", model, {"made_by": 1})
        cache.store("recipe", model, {"made_by": 2})
        assert cache.copy_to("recipe", tmp_path / "copy") == ({"made_by": 1}, "hit")
        assert [path.name for path in cache.root.iterdir()] == ["recipe"]

    def test_an_entry_is_a_copy_that_is_checked(self, tmp_path: Path, model: Path) -> None:
        cache = RecipeCache(tmp_path / "weights")
        cache.store("recipe", model, {})
        assert {path.name for path in (cache.root / "recipe").iterdir()} == {"model.safetensors", ENTRY_FILE}
        (cache.root / "recipe" / "model.safetensors").write_bytes(b"weighty")
        assert cache.copy_to("recipe", tmp_path / "copy") == (None, "damaged")
        assert cache.copy_to("recipe", tmp_path / "copy") == (None, "absent")
