"""Adapters that llama-server's router serves beside their base's file, of which there is one for all of them.

<served>/<name>.gguf             an adapter: by its suffix the router lists a model of this name
<served>/<name>.json             which file it goes with
<served>/bases/<sha256>/<file>   files of bases, each for as long as an adapter goes with it
<served>/adapters.ini            llama-server's presets: `model` and `lora` of each name

The presets are made from all else, and anew where the folder is served from, for they hold absolute paths.
"""

import fcntl
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from db.disk import link_or_copy
from db.errors import InvalidInput
from serving.llama_cpp import ADAPTER_PRESETS, lora_value

BASES, LOCK = "bases", ".adapters.lock"
# With which a comment begins or a line ends in a preset: there is no way to write them.
UNWRITABLE = "#;\n\r"


@dataclass(frozen=True)
class BaseFile:
    """A base's GGUF file, by its content."""

    path: Path
    sha256: str


def base_files_folder(cache: Path) -> Path:
    """Where files of bases are made and kept, a folder for each base."""
    return cache / "base-gguf"


def prepare_folder(served: Path) -> None:
    """Make the folder that a router is started on, with presets for where it lies now."""
    with _alone(served):
        _write_presets(served)


def put_beside(served: Path, name: str, base: BaseFile) -> None:
    """Have the adapter `<name>.gguf`, which is in the folder, served beside its base from the next reload on.

    Raises:
        InvalidInput: llama-server's presets cannot hold the folder's path.
    """
    if any(character in str(served) for character in UNWRITABLE):
        raise InvalidInput(
            f"llama-server's presets cannot name files in {served}: a path with any of {UNWRITABLE[:2]!r} is "
            'cut there. Move LATHE_DATA_DIR, or publish "merged".',
            param="publish",
        )
    target = served / BASES / base.sha256 / base.path.name
    staged = served / f".{base.path.stem}.{uuid.uuid4().hex}"
    try:
        if not target.is_file():
            link_or_copy(base.path, staged)  # across file systems a copy: others need not wait for it
        with _alone(served):
            if not target.is_file():
                if not staged.is_file():  # the last adapter that went with it has gone meanwhile
                    link_or_copy(base.path, staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(target)
            _replace(_note(served, name), json.dumps({"base": str(target.relative_to(served))}))
            _write_presets(served)
    finally:
        staged.unlink(missing_ok=True)


def base_beside(served: Path, name: str) -> Path | None:
    """The base's file that a served adapter goes with; None: the name is a whole model's, or nobody's."""
    try:
        return served / str(json.loads(_note(served, name).read_text())["base"])
    except FileNotFoundError:
        return None


def withdraw(served: Path, name: str) -> None:
    """Take a file out of the folder, and of its base's file what no other adapter goes with."""
    _adapter(served, name).unlink(missing_ok=True)
    if not _note(served, name).is_file():
        return
    with _alone(served):
        _note(served, name).unlink(missing_ok=True)
        _remove_unneeded(served)
        _write_presets(served)


def _adapter(served: Path, name: str) -> Path:
    return served / f"{name}.gguf"


def _note(served: Path, name: str) -> Path:
    return served / f"{name}.json"


def _pairs(served: Path) -> dict[str, Path]:
    """The base's file of each adapter that is there."""
    names = [path.stem for path in sorted(served.glob("*.json")) if path.with_suffix(".gguf").is_file()]
    found = {name: base_beside(served, name) for name in names}
    return {name: base for name, base in found.items() if base is not None}


def _remove_unneeded(served: Path) -> None:
    """Notes without their adapter, of a removal that was broken off, and bases without any."""
    pairs = _pairs(served)
    for note in served.glob("*.json"):
        if note.stem not in pairs:
            note.unlink()
    for path in served.glob(f"{BASES}/*/*"):
        if path not in pairs.values():
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _write_presets(served: Path) -> None:
    sections = [
        f"[{name}]\nmodel = {base}\nlora = {lora_value(_adapter(served, name))}\n"
        for name, base in _pairs(served).items()
    ]
    written = "\n".join(sections)
    presets = served / ADAPTER_PRESETS
    if not presets.is_file() or presets.read_text() != written:
        _replace(presets, written)


def _replace(path: Path, content: str) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_text(content)
    beside.replace(path)


@contextmanager
def _alone(served: Path) -> Iterator[None]:
    """One process at a time."""
    served.mkdir(parents=True, exist_ok=True)
    with (served / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
