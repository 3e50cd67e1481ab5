"""Which encoder an export gets, and why: the vectors' once they are proven here, ggml's otherwise."""

import hashlib
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from training_data.json_files import read_json, write_json
from worker.encoder.compiling import CannotCompile, compiled
from worker.encoder.vector_encoder import BLOCKS, VectorEncoder
from worker.steps.one_pass.encoding import Encoder, GgmlEncoder, ggml_library

PROOF_SECONDS = 300


@dataclass(frozen=True)
class Chosen:
    """An encoder, and the sentence that tells which it is."""

    encoder: Encoder
    ggml: GgmlEncoder
    said: str


def choose_encoder(bin_folder: Path, cache: Path) -> Chosen | None:
    """The fastest encoder with the bytes of the llama.cpp whose programs are in `bin_folder`.

    The first call on a machine compiles and proves, which takes some seconds.

    Returns:
        None: this llama.cpp brings no shared library, so that its encoder cannot be called.
    """
    library = ggml_library(bin_folder)
    if library is None:
        return None
    ggml = GgmlEncoder(library)
    try:
        vectors = compiled(cache)
        reason = doubt(vectors, library)
    except CannotCompile as error:
        reason = str(error)
    if reason is not None:
        return Chosen(ggml, ggml, f"Weights are encoded by ggml, not by vectors: {reason}.")
    encoder = VectorEncoder(vectors, ggml)
    said = (
        f"{', '.join(BLOCKS)} are encoded by vectors of {encoder.lanes} sub-blocks, with ggml's own bytes: "
        "proven on this machine."
    )
    return Chosen(encoder, ggml, said)


def doubt(vectors: Path, ggml: Path) -> str | None:
    """Why the library may not be used with this ggml; None: it has proven itself, now or earlier.

    Either answer holds for as long as neither library changes, and is kept beside the compiled one.
    """
    kept = vectors.with_name(f"proof-{hashlib.sha256(ggml.read_bytes()).hexdigest()[:16]}.json")
    if kept.is_file():
        reason: str | None = read_json(kept)["doubt"]
        return reason
    argv = [sys.executable, "-m", "worker.encoder.proof", str(vectors), str(ggml)]
    try:
        answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PROOF_SECONDS)
    except subprocess.TimeoutExpired:
        return f"its proof took more than {PROOF_SECONDS} s"  # perhaps of a busy moment: not kept
    reason = _reason(answer) if answer.returncode else None
    beside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
    write_json(beside, {"doubt": reason})
    beside.replace(kept)
    return reason


def _reason(answer: "subprocess.CompletedProcess[str]") -> str:
    if answer.returncode < 0:
        return f"its proof was ended by signal {-answer.returncode}"
    said = answer.stderr.strip().splitlines()
    return said[-1] if said else f"its proof ended with status {answer.returncode}"
