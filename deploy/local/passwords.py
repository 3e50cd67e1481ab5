"""The local servers' passwords: made once, kept in <data_dir>/secrets, readable by their owner alone."""

import os
import secrets
import tempfile
from pathlib import Path


def password(folder: Path, name: str) -> str:
    """Return the password called `name`, making it on first use."""
    path = folder / name
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes the file 0600; the rename makes it appear whole.
        handle, beside = tempfile.mkstemp(dir=folder, prefix=".")
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(16) + "\n")
        Path(beside).rename(path)
    return path.read_text().strip()
