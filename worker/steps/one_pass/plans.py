"""Which type each tensor gets, as llama-quantize itself plans it.

`llama-quantize --dry-run` reads a header and sizes, and no weights: so it is given a file that is all hole
behind its header.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf

from worker.steps.one_pass.headers import Layout
from worker.steps.one_pass.refusals import NeedsThreeSteps

TENSOR = re.compile(r"^\[\s*\d+/\s*\d+\] (\S+)\s+- \[.*?\], type =\s*(\w+), size = [^(]*(?:\((\w+)\))?\s*$")
FALLBACK = re.compile(r"falling back to\s+(\w+)")
NEEDS_IMATRIX = "will require an imatrix"
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Plan:
    """What llama-quantize would do.

    Args:
        kinds: the type of each tensor, in the order of the file.
        fallbacks: how many tensors get another type than asked for since their rows do not fit it, by type.
    """

    kinds: dict[str, gguf.GGMLQuantizationType]
    fallbacks: dict[str, int] = field(default_factory=dict)


def plan_types(llama_quantize: Path, source: Layout, quantization: str, folder: Path) -> Plan:
    """Ask for the plan of one quantization.

    Args:
        source: of the 16-bit file.
        folder: on a file system that keeps holes; nothing stays there.

    Raises:
        NeedsThreeSteps: llama-quantize does not say, or wants an importance matrix.
    """
    with tempfile.TemporaryFile(dir=folder) as hollow:
        hollow.write(source.header)
        hollow.truncate(source.total_bytes)
        hollow.flush()
        argv = [str(llama_quantize), "--dry-run", f"/dev/fd/{hollow.fileno()}", quantization]
        answer = subprocess.run(
            argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            pass_fds=[hollow.fileno()], stdin=subprocess.DEVNULL, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    if answer.returncode or NEEDS_IMATRIX in answer.stdout:
        last = answer.stdout.strip().splitlines()[-1:]
        raise NeedsThreeSteps(f"llama-quantize does not plan {quantization}: {''.join(last)}")
    return read_plan(answer.stdout)


def read_plan(output: str) -> Plan:
    """Read what `llama-quantize --dry-run` prints.

    Raises:
        NeedsThreeSteps: it names a type that gguf does not know.
    """
    kinds: dict[str, gguf.GGMLQuantizationType] = {}
    fallbacks: dict[str, int] = {}
    for line in output.splitlines():
        if (tensor := TENSOR.match(line)) is not None:
            name, before, after = tensor.groups()
            kinds[name] = _kind(after or before)
        elif (fallback := FALLBACK.search(line)) is not None:
            kind = fallback[1].upper()
            fallbacks[kind] = fallbacks.get(kind, 0) + 1
    return Plan(kinds, fallbacks)


def _kind(name: str) -> gguf.GGMLQuantizationType:
    try:
        return gguf.GGMLQuantizationType[name.upper()]
    except KeyError:
        raise NeedsThreeSteps(f"llama-quantize plans the type {name}, which is not known here") from None
