"""torch.compile for the layers of a model (`speed_choices.py` says when).

The parts of each layer are compiled in place and by themselves: all layers share what is compiled of one,
checkpointing, which computes a layer again, stays around them, and weights keep their names, so that
checkpoints are those of a training without it. Attention by rows stays as it is: its shapes differ from batch
to batch. What is not trained on, evaluations and answers, is computed as without (`as_written`).
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from db.errors import InvalidInput
from worker.steps.row_attention import NAME, row_attention

PARAM = "training_args"
INDUCTOR = "inductor"


def compile_layers(
    model: Any, kept_in: Path, *, backend: str | None = None, mode: str | None = None, forgiving: bool = False
) -> int:
    """Compile each part of each layer that has weights, at its first use.

    Args:
        kept_in: the folder for what inductor has compiled, which finds it there again.
        forgiving: what cannot be compiled is computed as it is written.
    Returns:
        how many layers there are; 0: nothing is compiled.
    Raises:
        InvalidInput: there is no such backend or mode, or no compiler for it.
    """
    import torch._dynamo

    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if layers and backend in (None, INDUCTOR):
        _require_compiler()
    # One process, whose end is the end of all: no workers of inductor's that outlive it.
    os.environ.update({"TORCHINDUCTOR_CACHE_DIR": str(kept_in), "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    torch._dynamo.config.suppress_errors = forgiving
    # A row of another length would be another graph.
    AttentionInterface.register(NAME, torch.compiler.disable(row_attention))
    for part in (part for layer in layers for part in layer.children()):
        try:
            part.compile(backend=backend or INDUCTOR, mode=mode, dynamic=True)
        except RuntimeError as error:
            raise InvalidInput(f"{PARAM}: torch.compile refuses: {error}", param=PARAM) from error
    return len(layers)


def as_written() -> AbstractContextManager[Any]:
    """Within it, nothing is compiled, and what is compiled is not used."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise InvalidInput(
            f"{PARAM}: torch_compile needs a C++ compiler, and the worker's machine has none: its operator "
            "installs g++, or leave it out.",
            param=PARAM,
            code="compiler_missing",
        ) from error
