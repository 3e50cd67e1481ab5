"""What was made here, kept by the hash of its recipe in a folder of that name: weights in `<cache>/weights`,
rows that were read in `<storage>/prepared/<project>`.

An entry is written beside and renamed, with a list of sha256s that is checked before each reuse; an
entry that fails the check is removed and made again.
"""

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.source_files import ENTRY_FILE


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Hash everything that an entry depends on, independent of the order of keys."""
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


class RecipeCache:
    """A folder of entries.

    Args:
        root: made when the first entry is stored.
        copy: how a file gets into an entry and out of it; a link will do for what never changes.
    """

    def __init__(self, root: Path, copy: Callable[[str, str], object] = shutil.copy2) -> None:
        self.root = root
        self._copy = copy

    def copy_to(self, recipe: str, target: Path) -> tuple[dict[str, Any] | None, str]:
        """Copy an entry's files into `target`, which must not exist.

        Returns:
            what was stored with it, or None when it is absent or damaged; and which of these it was:
            "hit", "absent" or "damaged". A damaged entry is removed.
        """
        entry = self.root / recipe
        if not (entry / ENTRY_FILE).is_file():
            return None, "absent"
        try:
            described = json.loads((entry / ENTRY_FILE).read_text())
            shutil.copytree(
                entry, target, ignore=shutil.ignore_patterns(ENTRY_FILE), copy_function=self._copy
            )
            intact = all(file_sha256(target / name) == sha for name, sha in described["sha256"].items())
        except (OSError, ValueError, KeyError):
            intact = False
        if intact:
            return described["result"], "hit"
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(entry, ignore_errors=True)
        return None, "damaged"

    def store(self, recipe: str, source: Path, result: dict[str, Any]) -> None:
        """Keep the files of `source`; another process storing the same recipe first is as good."""
        self.root.mkdir(parents=True, exist_ok=True)
        staging = self.root / f".{recipe}.{uuid.uuid4().hex}"
        try:
            shutil.copytree(source, staging, copy_function=self._copy)
            hashes = {
                str(path.relative_to(staging)): file_sha256(path)
                for path in sorted(staging.rglob("*"))
                if path.is_file()
            }
            (staging / ENTRY_FILE).write_text(json.dumps({"sha256": hashes, "result": result}, indent=1))
            try:
                staging.rename(self.root / recipe)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
