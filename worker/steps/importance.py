"""An importance matrix: how much flows through each column of the weights when the model reads its own rows.

A quantiser that has one spends its bits where the user's rows need them. llama-imatrix makes it from the
16-bit file and the text of the training rows, rendered as the model learnt them.
"""

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from db.errors import Unavailable
from db.source_files import rows_source
from serving.llama_cpp import Tools, imatrix_argv
from training_data.chat_templates import ChatTemplateError, unweighted
from training_data.tokens import ChatTokenizer
from worker.step import Step, StepInput
from worker.steps.pretrain_text import read_passages, trained_text
from worker.steps.programs import run_program

# Names within the step's folder: llama.cpp writes both into the files that it makes, which others may get.
TEXT, MATRIX = "importance.txt", "importance.gguf"
# llama.cpp's authors call 50,000 tokens ample; a large model on a CPU reads some tens a second.
MOST_TOKENS = 50_000
CHUNKS = (512, 256, 128, 64, 32)  # tokens that are read at once
SHUFFLING = 0  # the same rows each time
CHUNKS_TO_READ = re.compile(r"computing over (\d+) chunks")


@dataclass(frozen=True)
class Importance:
    """A matrix, as llama-quantize takes it, and how much text it was made from."""

    file: Path
    rows: int
    tokens: int


def importance_matrix(
    step: Step, tools: Tools, full: Path, tokenizer: ChatTokenizer, context: int
) -> Importance | None:
    """Make the matrix of a 16-bit GGUF file, and offer it as an artifact.

    Args:
        full: the file.
        tokenizer: of the training, with its template.
        context: tokens that the model can read.

    Returns:
        None: there is too little text, and an event says so.

    Raises:
        Unavailable: this llama.cpp has no llama-imatrix.
    """
    if not tools.imatrix.is_file():
        raise Unavailable(
            f"The llama.cpp in {tools.bin} has no llama-imatrix: leave imatrix out, or use one that has.",
            code="llama_cpp_missing",
        )
    folder = step.input.folder
    rows, tokens = write_text(_texts(step.input, tokenizer), tokenizer, folder / TEXT)
    chunk = next((chunk for chunk in CHUNKS if chunk <= context and tokens >= 2 * chunk), None)
    if chunk is None:
        step.event(
            f"There is no importance matrix: the training rows hold {tokens} tokens, and "
            f"{2 * CHUNKS[-1]} are needed.",
            level="warn",
            tokens=tokens,
        )
        return None
    started = time.monotonic()
    argv = imatrix_argv(
        tools, full, TEXT, MATRIX, chunk=chunk, threads=step.input.settings.threads,
        n_gpu_layers=step.input.settings.n_gpu_layers,
    )  # fmt: skip
    run_program(argv, "llama-imatrix", _Chunks(step).line, folder=folder)
    (folder / TEXT).unlink()
    step.artifact(MATRIX)
    seconds = time.monotonic() - started
    step.event(
        f"Importance matrix from {rows} training rows, {tokens} tokens ({seconds:.1f} s).",
        rows=rows,
        tokens=tokens,
        seconds=round(seconds, 2),
    )
    return Importance(folder / MATRIX, rows, tokens)


def write_text(texts: Iterator[str], tokenizer: ChatTokenizer, target: Path) -> tuple[int, int]:
    """Write texts until MOST_TOKENS are reached; returns how many texts and tokens these are."""
    rows = tokens = 0
    with target.open("w", encoding="utf-8") as file:
        for text in texts:
            if tokens >= MOST_TOKENS:
                break
            file.write(f"{text}\n")
            rows += 1
            tokens += len(tokenizer.encode_text(text))
    return rows, tokens


def _texts(step_input: StepInput, tokenizer: ChatTokenizer) -> Iterator[str]:
    """What the model was trained on, as it read it, in a random order that is always the same."""
    prepared = step_input.step_folders.get("prepare")
    if step_input.source is not None:
        prepared = rows_source(step_input.source)
    if prepared is None or not (prepared / "train.jsonl").is_file():
        passages = read_passages(trained_text(step_input))
        random.Random(SHUFFLING).shuffle(passages)  # noqa: S311 - no secret
        yield from passages
        return
    with (prepared / "train.jsonl").open(encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    random.Random(SHUFFLING).shuffle(lines)  # noqa: S311
    for line in lines:
        try:
            yield tokenizer.template.render(unweighted(json.loads(line)["messages"]))
        except ChatTemplateError:
            continue  # such a row was told of when it was prepared


class _Chunks:
    """Progress of llama-imatrix, which prints a line after each chunk that it has read."""

    def __init__(self, step: Step) -> None:
        self._step, self._done, self._total = step, 0, 1

    def line(self, text: str) -> None:
        total = CHUNKS_TO_READ.search(text)
        if total is not None:
            self._done, self._total = 0, int(total[1])
        elif not text.strip():
            self._done = min(self._done + 1, self._total)
            self._step.progress(self._done, self._total, unit="chunks")
