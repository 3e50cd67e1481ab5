"""Checkpoints on the disk: written beside, sealed with sizes and hashes, checked, then renamed.

A checkpoint is a folder `checkpoints/checkpoint-<step>` of an attempt. Once it bears its name it never
changes, so the next attempt takes it over by hard links. The manifest proves itself too: its hash is in it.
"""

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from db.disk import DISK_FULL, file_sha256, flush, link_or_copy
from worker.answers import ANSWERS

FOLDER = "checkpoints"
MANIFEST = "checkpoint.json"
STATE_FILE = "lathe.json"  # what the step that wrote it has to know to go on
STAGING = ".writing"
PREFIX = "checkpoint-"
SAFETENSORS_HEADER_MAX_BYTES = 100_000_000  # the format's own limit


class BrokenCheckpoint(Exception):
    """A checkpoint is not as it was written. The message says what is wrong, for a person."""


def number_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def list_checkpoints(attempt_folder: Path) -> list[Path]:
    """The checkpoints of an attempt that bear their name, newest first."""
    found = (attempt_folder / FOLDER).glob(f"{PREFIX}*")
    numbered = [path for path in found if path.name.removeprefix(PREFIX).isdecimal() and path.is_dir()]
    return sorted(numbered, key=number_of, reverse=True)


def write_checkpoint(root: Path, number: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside; then seal, check and rename it.

    Args:
        root: the attempt's folder of checkpoints.
        write: is given the folder above the checkpoint's own, as trainers expect it.
    Raises:
        BrokenCheckpoint: what is on the disk is not what was written.
    """
    staging = root / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    written, final = staging / f"{PREFIX}{number}", root / f"{PREFIX}{number}"
    write(staging)
    seal(written)
    verify(written)
    written.rename(final)
    flush(root)
    shutil.rmtree(staging, ignore_errors=True)
    return final


def seal(folder: Path) -> None:
    """Bring every file of `folder` to the disk, and list them with sizes and hashes."""
    files = {}
    for path in _files(folder):
        flush(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_bytes(_manifest_bytes(files))
    flush(manifest)
    flush(folder)


def verify(folder: Path) -> None:
    """See that a checkpoint is, to the last bit, what was sealed.

    Raises:
        BrokenCheckpoint: it is not.
    """
    try:
        listed = _read_manifest(folder / MANIFEST)
        present = {str(path.relative_to(folder)): path for path in _files(folder)}
        if present.keys() != listed.keys():
            odd = sorted(present.keys() ^ listed.keys())
            raise BrokenCheckpoint(f"{odd[0]} is {'missing' if odd[0] in listed else 'not of it'}")
        for name, path in present.items():
            size = path.stat().st_size
            if size != listed[name]["bytes"]:
                raise BrokenCheckpoint(f"{name} has {size} bytes in place of {listed[name]['bytes']}")
            if file_sha256(path) != listed[name]["sha256"]:
                raise BrokenCheckpoint(f"{name} has another sha256 than when it was written")
            if path.suffix == ".safetensors":
                check_safetensors(path)
    except OSError as error:
        raise BrokenCheckpoint(f"it cannot be read: {error.strerror}") from error


def check_safetensors(path: Path) -> None:
    """See that a file's header is whole and describes exactly the bytes that follow.

    Source: the format's description, https://github.com/huggingface/safetensors#format
    Raises:
        BrokenCheckpoint: it is not, or does not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(SAFETENSORS_HEADER_MAX_BYTES, size - 8):
            raise BrokenCheckpoint(f"{path.name} has no whole safetensors header")
        try:
            header = json.loads(file.read(length))
            spans = sorted(
                tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenCheckpoint(f"{path.name} has an unreadable safetensors header") from error
    end = 0
    for begin, stop in spans:
        if begin != end or stop < begin:
            raise BrokenCheckpoint(f"{path.name} has tensors that do not follow each other")
        end = stop
    if end != size - 8 - length:
        raise BrokenCheckpoint(f"{path.name} ends elsewhere than its last tensor")


def take_over(checkpoint: Path, root: Path) -> Path:
    """Make an earlier attempt's checkpoint this attempt's own too, and check it.

    Raises:
        BrokenCheckpoint: it is not whole; nothing of it is left in `root`.
    """
    # Beside, and renamed once it is whole: from then on the earlier attempt's own may go.
    staging, own = root / STAGING, root / checkpoint.name
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, staging / checkpoint.name, copy_function=link_or_copy)
        verify(staging / checkpoint.name)
        (staging / checkpoint.name).rename(own)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise BrokenCheckpoint("it cannot be read") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return own


def outdated(root: Path, keep: int, spared: Collection[int]) -> list[Path]:
    """The checkpoints of `root` besides the newest `keep` and those in `spared`."""
    return [path for path in list_checkpoints(root.parent)[keep:] if number_of(path) not in spared]


def superfluous(attempts: Sequence[tuple[Path, int | None]], keep: int) -> list[Path]:
    """The checkpoints besides the newest `keep` of a whole step, each number once, and the best one.

    What a later attempt has passed over to go on from an older one is not counted: it was broken, or led
    to a crash.

    Args:
        attempts: oldest first, the folder of each and the number that it is known to have gone on from.
    """
    found: dict[int, Path] = {}
    every: list[Path] = []
    went_on_from = math.inf
    for folder, resumed_from in reversed(attempts):
        own = list_checkpoints(folder)
        every += own
        for path in own:
            if number_of(path) <= went_on_from:
                found.setdefault(number_of(path), path)
        if own:
            went_on_from = min(went_on_from, number_of(own[-1]) if resumed_from is None else resumed_from)
    newest = sorted(found, reverse=True)
    best = next(filter(None, (_best_step(found[number]) for number in newest)), None)
    staying = {found[number] for number in (*newest[:keep], best) if number in found}
    return [path for path in every if path not in staying]


def _best_step(checkpoint: Path) -> int | None:
    """The number of the best checkpoint when this one was written, if its step compares them."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return None
    best = state.get("best_step") if isinstance(state, dict) else None
    return best if isinstance(best, int) else None


def keep_only_checkpoints(attempt_folder: Path) -> list[Path]:
    """Remove all of a dead attempt's folder but what a later one can go on from.

    Returns:
        its checkpoints; when there are none, and no answers, the folder is gone.
    """
    kept = list_checkpoints(attempt_folder)
    if not kept and not (attempt_folder / ANSWERS).is_file():
        shutil.rmtree(attempt_folder, ignore_errors=True)
        return []
    spared_in = {attempt_folder: {FOLDER, ANSWERS}, attempt_folder / FOLDER: {path.name for path in kept}}
    for parent, spared in spared_in.items():
        for path in parent.iterdir() if parent.is_dir() else ():
            if path.name in spared:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return kept


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _manifest_bytes(files: dict[str, Any]) -> bytes:
    body = json.dumps(files, indent=1, sort_keys=True)
    proof = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"files": files, "sha256": proof}, indent=1, sort_keys=True).encode()


def _read_manifest(path: Path) -> dict[str, Any]:
    """The listed files of a manifest that is, byte for byte, one that `seal` writes."""
    try:
        content = path.read_bytes()
        files = json.loads(content)["files"]
        if _manifest_bytes(files) != content or not isinstance(files, dict):
            raise ValueError
    except FileNotFoundError as error:
        raise BrokenCheckpoint("it has no manifest: it was not finished") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpoint("its manifest is damaged") from error
    return files
