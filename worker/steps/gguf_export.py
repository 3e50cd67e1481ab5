"""From weights and an adapter to the GGUF files of the asked quantizations.

In one pass, by a process of its own (`python -m worker.export`), which is given the memory of a few rows and
writes nothing but those files; where it cannot, by llama.cpp's three steps: merge, convert, quantise.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.errors import Exhausted, InvalidInput, StepFailed
from serving.llama_cpp import Tools
from worker.step import Step
from worker.steps.base_model import count_parameters
from worker.steps.gguf_files import convert, place, quantize, write_tokenizer
from worker.steps.merging import Weights, write_merged
from worker.steps.one_pass.refusals import NeedsThreeSteps
from worker.steps.programs import run_program
from worker.steps.runtime import require_disk

BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5}
BITS_OF_OTHERS = 6.6
EXIT_NEEDS_THREE_STEPS = 4  # as `worker.export` says it


@dataclass(frozen=True)
class Wanted:
    """Files to be made.

    Args:
        described: folder of the model's configuration and tokenizer.
        files: of each quantization.
        name: what the files say they are called.
    """

    weights: Weights
    described: Path
    files: Mapping[str, Path]
    name: str


def make_files(step: Step, tools: Tools, wanted: Wanted) -> None:
    """Make the file of each quantization, and tell how."""
    _require_disk(step, wanted, copies=0)
    refused = _in_one_pass(step, tools, wanted)
    if refused is None:
        return
    step.event(
        f"Not in one pass, since {refused}: the weights are merged, converted and quantised one after the "
        "other, which takes more time, memory and disk.",
        level="warn",
    )
    _require_disk(step, wanted, copies=1 if wanted.weights.adapter is None else 2)
    _in_three_steps(step, tools, wanted)


def quantize_each(
    step: Step, tools: Tools, full: Path, files: Mapping[str, Path], *, imatrix: Path | None = None
) -> None:
    """Have llama-quantize make files from a 16-bit one; `imatrix` says which columns matter."""
    for quantization, path in files.items():
        said = quantize(step, tools, full, path, quantization, imatrix=imatrix)
        _tell_fallbacks(step, quantization, said.fallbacks)


def _require_disk(step: Step, wanted: Wanted, *, copies: int) -> None:
    """See that there is room for the files, and for `copies` of the weights in 16 bits on the way.

    Raises:
        Exhausted: there is not.
    """
    bits = 16 * copies + sum(BITS.get(name, BITS_OF_OTHERS) for name in wanted.files)
    require_disk(step.input.folder, int(count_parameters(wanted.weights.base) * bits / 8), "This")


def _in_one_pass(step: Step, tools: Tools, wanted: Wanted) -> str | None:
    """Returns why it cannot be done so, if it cannot."""
    if tools.convert is None or tools.python is None:
        return "this llama.cpp came without converters"
    settings = step.input.settings
    argv = ["--described", str(wanted.described), "--cache", str(settings.cache_dir)]
    for quantization, path in wanted.files.items():
        argv += ["--type", quantization, "--out", str(path)]
    try:
        said = run_export(step, tools, wanted.weights, wanted.name, argv)
    except NeedsThreeSteps as refused:
        return str(refused)
    what = "Converted" if wanted.weights.adapter is None else "Merged in fp32, converted"
    step.event(f"{what} and quantised in one pass. {said['encoder']}", seconds=said["seconds"])
    for quantization, about in said["files"].items():
        _tell_fallbacks(step, quantization, about["fallbacks"])
    return None


def run_export(step: Step, tools: Tools, weights: Weights, name: str, argv: list[str]) -> dict[str, Any]:
    """Run `worker.export`, which must be able to find converters; returns what it says at its end.

    Raises:
        NeedsThreeSteps: it cannot make these files in one pass.
        InvalidInput, Exhausted: what it tells is wrong.
        StepFailed: it ended otherwise.
    """
    said: dict[str, Any] = {}

    def on_line(line: str) -> None:
        if not line.startswith("{"):
            return
        message = json.loads(line)
        if "done" in message:
            step.progress(message["done"], message["total"], unit="weights")
        else:
            said.update(message)

    settings = step.input.settings
    command = [
        sys.executable, "-m", "worker.export", "--base", str(weights.base), "--name", name,
        "--threads", str(settings.threads), "--tools", str(tools.bin), str(tools.convert), str(tools.python),
    ]  # fmt: skip
    command += ["--adapter", str(weights.adapter)] if weights.adapter is not None else []
    command += ["--like", str(weights.like)] if weights.like is not None else []
    try:
        run_program([*command, *argv], "The export in one pass", on_line)
    except StepFailed as error:
        if error.exit_code == EXIT_NEEDS_THREE_STEPS and "needs_three_steps" in said:
            raise NeedsThreeSteps(said["needs_three_steps"]) from None
        raise _explained(said) or error from None
    return said


def _explained(said: dict[str, Any]) -> Exception | None:
    """The error that the process told, if it told one."""
    if "error" not in said:
        return None
    if said["exhausted"]:
        return Exhausted(said["error"], code=said["code"])
    return InvalidInput(said["error"])


def _in_three_steps(step: Step, tools: Tools, wanted: Wanted) -> None:
    with tempfile.TemporaryDirectory(prefix="three-steps-", dir=step.input.folder) as work:
        model, full = Path(work) / "model", Path(work) / "full.gguf"
        write_merged(wanted.weights, model)
        write_tokenizer(wanted.described, model)
        own = wanted.weights.gguf_type
        convert(step, tools, model, full, own.lower(), name=wanted.name)
        if own in wanted.files:
            place(full, wanted.files[own])
        others = {name: path for name, path in wanted.files.items() if name != own}
        quantize_each(step, tools, full, others)


def _tell_fallbacks(step: Step, quantization: str, fallbacks: dict[str, int]) -> None:
    if not fallbacks:
        return
    others = ", ".join(f"{count} as {kind}" for kind, count in sorted(fallbacks.items()))
    step.event(
        f"Some tensors do not fit {quantization}, whose blocks are 256 wide, and were stored with more bits: "
        f"{others}.",
        level="warn",
        quantization=quantization,
        fallbacks=fallbacks,
    )
