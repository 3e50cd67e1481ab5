"""The pass in a process that started as `worker.export` does, without most of torch and transformers.

    python -m tests.worker.steps.one_pass_lean CONVERT GGUF_PYTHON BIN CACHE

It makes the files that each line of its stdin asks for, and answers {"refused": why, or null}. At the end it
tells {"left_out": modules that nothing has looked into, "shapes_known": before and after they were wanted}.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from serving.convert_driver import find_modules, prepare_converter
from serving.llama_cpp import Tools
from worker.deferred_imports import is_deferred
from worker.steps.one_pass.start import know_all_shapes, start_lean

CONVERT, GGUF, BIN, CACHE = map(Path, sys.argv[1:])
find_modules(CONVERT, GGUF)
start_lean(CACHE)
prepare_converter()

import torch  # noqa: E402

from worker.encoder.choosing import choose_encoder  # noqa: E402
from worker.steps.merging import Weights  # noqa: E402
from worker.steps.one_pass.encoding import NotEncodable  # noqa: E402
from worker.steps.one_pass.program import Wanted, export, say  # noqa: E402
from worker.steps.one_pass.refusals import NeedsThreeSteps  # noqa: E402

TOOLS = Tools(BIN, CONVERT, GGUF, "tests", "setting")
LEFT_OUT = ("torch._meta_registrations", "torch.optim", "torch.distributions")


def made(asked: dict[str, Any]) -> str | None:
    adapter = None if asked["adapter"] is None else Path(asked["adapter"])
    files = {kind: Path(path) for kind, path in asked["files"].items()}
    weights = Weights(Path(asked["base"]), adapter)
    wanted = Wanted(weights, Path(asked["tokenizer"]), None, "tested", files, threads=2)
    try:
        export(TOOLS, wanted, choose_encoder(BIN, CACHE))
    except (NeedsThreeSteps, NotEncodable) as error:
        return str(error)
    return None


def shapes_known() -> bool:
    """Whether an operation is known whose shape only what was left out can tell."""
    try:
        shape = torch.fft.fft(torch.empty(3, 4, dtype=torch.complex64, device="meta")).shape
    except NotImplementedError:
        return False
    return shape == (3, 4)


def main() -> None:
    logging.disable(logging.WARNING)
    for line in sys.stdin:
        say({"refused": made(json.loads(line))})
    left_out = [name for name in LEFT_OUT if is_deferred(name)]
    known = [shapes_known()]
    know_all_shapes()
    say({"left_out": left_out, "shapes_known": [*known, shapes_known()]})


if __name__ == "__main__":
    main()
