"""An uploaded .zip of a model's folder, unpacked: configuration, tokenizer and safetensors, nothing else.

No name in it becomes a path: each file is written by its bare name into one folder. What it claims to hold
is counted before anything is written, and what is written is counted too.
"""

import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from db.errors import InvalidInput
from serving.model_formats import PICKLES
from worker.step import Step
from worker.steps.base_model import safetensors_header
from worker.steps.runtime import require_disk

MEMBERS_MAX = 2_000
TEXT_MAX_BYTES = 256 * 1024**2  # of a tokenizer or a configuration
# Weights hardly shrink: who claims more is a bomb.
SHRINKS_MOST = 20
TEXTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.(json|jinja|model|txt)")
WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
CHUNK_BYTES = 4 * 1024**2


def unpack(step: Step, archive: Path, name: str, target: Path) -> None:
    """Unpack what a model is loaded from into `target`.

    Raises:
        InvalidInput: it is no archive, holds no model, or more than it may.
        Exhausted: the disk has no room for it.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _chosen(step, opened, name)
            require_disk(step.input.folder, sum(member.file_size for member in members), "Unpacking it")
            target.mkdir()
            for number, member in enumerate(members):
                step.progress(number, len(members), unit="files")
                _write(opened, member, target / PurePosixPath(member.filename).name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise _refused(f"{name} is no .zip that can be read: {error}.") from None
    for path in target.glob("*.safetensors"):
        safetensors_header(path)


def _chosen(step: Step, opened: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    members = [member for member in opened.infolist() if not member.is_dir()]
    if len(members) > MEMBERS_MAX:
        raise _refused(f"{name} holds {len(members)} files: a model has at most {MEMBERS_MAX}.")
    folder = _folder_of_config(members, name)
    chosen: dict[str, zipfile.ZipInfo] = {}
    left_out = []
    for member in members:
        path = PurePosixPath(member.filename)
        is_wanted = TEXTS.fullmatch(path.name) or WEIGHTS.fullmatch(path.name)
        if path.parent != folder or not is_wanted:
            left_out.append(member.filename)
            continue
        if path.name in chosen:
            raise _refused(f"{name} holds {path.name} twice.")
        chosen[path.name] = _bounded(member, name)
    if not any(WEIGHTS.fullmatch(each) for each in chosen):
        pickles = [each for each in left_out if each.lower().endswith(PICKLES)]
        why = f"; {pickles[0]} is a pickle, which can run code when it is loaded" if pickles else ""
        raise _refused(f"{name} holds no safetensors{why}: save the model by save_pretrained, and zip that.")
    if left_out:
        step.event(
            f"{len(left_out)} files are left out, for a model is not loaded from them: "
            f"{', '.join(left_out[:5])}{' …' if len(left_out) > 5 else ''}.",
            level="warn",
        )
    return list(chosen.values())


def _folder_of_config(members: list[zipfile.ZipInfo], name: str) -> PurePosixPath:
    """Where the model lies in the archive: beside its config.json, of which there is one."""
    paths = [PurePosixPath(member.filename) for member in members]
    folders = {path.parent for path in paths if path.name == "config.json"}
    if not folders:
        raise _refused(f"{name} holds no config.json: zip the whole folder of the model.")
    outermost = min(folders, key=lambda folder: len(folder.parts))
    if sum(len(folder.parts) == len(outermost.parts) for folder in folders) > 1:
        raise _refused(f"{name} holds several models: upload each by itself.")
    return outermost


def _bounded(member: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    is_text = WEIGHTS.fullmatch(PurePosixPath(member.filename).name) is None
    most = TEXT_MAX_BYTES if is_text else SHRINKS_MOST * member.compress_size + 1024**2
    if member.file_size > most:
        raise _refused(
            f"{name}: {member.filename} would be {member.file_size} bytes, of {member.compress_size}: "
            f"at most {most} are taken."
        )
    return member


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    # Reading ends at the size that was claimed, and checks the CRC there.
    with opened.open(member) as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, CHUNK_BYTES)


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, param="source", code="bad_model_archive")
