"""Rows that were read once, kept for later jobs of the project: by the hash of all that they depend on.

That is the content of their files and how it is read, the tokenizer with its template, and the code that
reads: so what is taken from here is what reading again would make, to the byte. The seed and the split are
not among it, for rows are parted after this. Files are linked, not copied; none changes once written.
"""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import training_data
from db.disk import file_sha256, link_or_copy
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.recipe_cache import RecipeCache, recipe_hash

# What of others' a row passes through on its way to tokens.
LIBRARIES = ("charset-normalizer", "Jinja2", "pyarrow", "tokenizers")
TOLD = "told.json"
READING = (Path(__file__), Path(__file__).with_name("dataset.py"))


class KeptRows:
    """The place of one reading.

    Args:
        recipe: what it depends on, to which the hashes of files, tokenizer and code are added here.
    """

    def __init__(
        self, step: Step, recipe: dict[str, Any], files: list[Path], tokenizer: ChatTokenizer
    ) -> None:
        self._step, self._root = step, step.input.prepared
        if self._root is None:
            return
        self._cache = RecipeCache(self._root, copy=link_or_copy)
        self._files = [file_sha256(path) for path in files]
        inner = sorted(path for path in tokenizer.folder.iterdir() if path.is_file())
        self._recipe = recipe_hash(
            {
                **recipe,
                "files": self._files,
                "tokenizer": {path.name: file_sha256(path) for path in inner},
                "code": _code_hash(),
                "libraries": {name: version(name) for name in LIBRARIES},
            }
        )

    def take(self, folder: Path) -> dict[str, Any] | None:
        """Put what was kept into `folder`, which must not be there.

        Returns:
            what was told of it when it was kept; None where there is nothing.
        """
        if self._root is None:
            return None
        kept, state = self._cache.copy_to(self._recipe, folder)
        if kept is None:
            if state == "damaged":
                self._step.event(
                    "What was kept of these rows is damaged: they are read again.",
                    level="warn",
                    prepared=self._recipe,
                )
            return None
        with suppress(OSError):
            os.utime(self._root / self._recipe)  # what is used least goes first
        told: dict[str, Any] = json.loads((folder / TOLD).read_text())
        rows = told["rows"]
        self._step.event(
            f"The same files were read before in the same way: their {rows:,} rows and tokens are taken from "
            "then.",
            prepared=self._recipe,
            rows=rows,
        )
        return told

    def keep(self, folder: Path, told: dict[str, Any]) -> None:
        """Keep what lies in `folder`, with what is to be told of it. That it cannot be kept stops nothing."""
        if self._root is None:
            return
        try:
            (folder / TOLD).write_text(json.dumps(told))
            self._cache.store(self._recipe, folder, {"files": self._files})
        except OSError as error:
            self._step.event(
                f"What was read cannot be kept for later jobs: {error}.",
                level="warn",
                prepared=self._recipe,
            )


@cache
def _code_hash() -> str:
    """Of the code that makes rows and tokens of files: another version of it may make others."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(training_data.__path__[0]).glob("*.py")), *READING]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
