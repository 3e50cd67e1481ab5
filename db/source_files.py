"""What lies in the folder that a job is made from, and how it is checked; for steps, without the database.

source/trained/     the adapter or the whole model, with the training tokenizer
source/rows/        of a fine-tune: the prepared rows, by split
source/text         of a model from scratch: the text it was given, if it was given one
source/gguf/        of a push: the files that are published
source/card/        of a push: what the training left for its card, recipe and curves, if it left them
start/trained/      of a fine-tune that goes on from an earlier one: what that has trained

What was linked is listed in `source.json` with the sizes and hashes that it had when it was written.
"""

import json
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput

DESCRIPTION = "source.json"
CHECKPOINT_MANIFEST = "checkpoint.json"
ATTEMPT_MANIFEST = "manifest.json"
ENTRY_FILE = "recipe.json"  # of what is kept by the hash of its recipe


def trained_source(source: Path) -> Path:
    return source / "trained"


def rows_source(source: Path) -> Path:
    return source / "rows"


def gguf_source(source: Path) -> Path:
    return source / "gguf"


def card_source(source: Path) -> Path:
    return source / "card"


def text_source(source: Path) -> Path | None:
    path = source / "text"
    return path if path.is_file() else None


def check_source(folder: Path) -> dict[str, Any]:
    """See that all that was held is, to the last bit, what was written.

    Returns:
        what it is.
    Raises:
        InvalidInput: it is not.
    """
    described = json.loads((folder / DESCRIPTION).read_text())
    for name, entry in described["files"].items():
        try:
            sha256 = file_sha256(folder / name)
        except OSError as error:
            raise _broken(name, f"cannot be read: {error.strerror}") from error
        if sha256 != entry["sha256"]:
            raise _broken(name, "has another sha256 than when it was written")
    about: dict[str, Any] = described["about"]
    return about


def _broken(name: str, how: str) -> InvalidInput:
    return InvalidInput(f"What was held for this job is not whole: {name} {how}.", code="source_broken")
