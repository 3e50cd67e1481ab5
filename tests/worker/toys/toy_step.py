"""A real step for tests of what runs steps. `params["do"][step]` says what it does; default: `quick`."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from db.errors import Exhausted, InvalidInput, StepFailed, Unavailable
from worker.checkpoints import write_checkpoint
from worker.step import Step, Stopped


def run(step: Step) -> dict[str, Any]:
    note(step, "began")
    what = step.input.params.get("do", {}).get(step.input.step, "quick")
    result: dict[str, Any] = BEHAVIOURS[what](step)
    note(step, "ended")
    return result


def note(step: Step, what: str) -> None:
    """Write to the ledger that the tests count by: one line, appended at once."""
    ledger = step.input.params.get("ledger")
    if ledger:
        line = f"{step.input.job_id} {step.input.step} {step.input.attempt} {what} {os.getpid()}\n"
        with Path(ledger).open("a") as file:
            file.write(line)


def quick(step: Step) -> dict[str, Any]:
    step.event("Working.", rows=3)
    step.metrics(step=1, loss=float("nan"), text_tokens=7)
    step.progress(1, 2, eta_seconds=0.5)
    (step.input.folder / "model").mkdir()
    (step.input.folder / "model" / "weights.bin").write_bytes(os.urandom(70_000))
    step.artifact("model/weights.bin", name=f"{step.input.step}.bin")
    step.checkpoint(1, "model", {"loss": 1.0})
    step.progress(2, 2)
    if step.input.step == "publish":
        file = {"quantization": "Q8_0", "path": "x.gguf", "bytes": 5, "sha256": "ab" * 32}
        file |= {"backend": "llama_server", "backend_name": "m-v-abababababab"}
        name = step.input.params["name"]
        return {"model": name, "default": file, "files": [file], "context_length": 64}
    if step.input.step == "verify":
        return {"files": [{"quantization": "Q8_0", "top1_agreement": 0.99}]}
    return {"step": step.input.step, "base": step.input.base.location if step.input.base else None}


def draws(step: Step) -> dict[str, Any]:
    """Draw from the generators that nobody has seeded."""
    import random

    import numpy

    return {"numpy": numpy.random.random(), "random": random.random()}  # noqa: S311


def measures(step: Step) -> dict[str, Any]:
    """Measure three training steps, from where `first` says."""
    first = int(step.input.params["first"])
    for number in range(first, first + 3):
        step.metrics(step=number, loss=1 / number)
    return {}


def slow(step: Step) -> dict[str, Any]:
    """Work for a minute, with a subprocess of its own and one that has left the session."""
    (step.input.folder / "half.bin").write_bytes(b"half")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    os.write(1, b"a word on stdout\n")
    for number in range(600):
        step.progress(number, 600)
        time.sleep(0.1)
    return {}


def once(step: Step) -> dict[str, Any]:
    """Slow at the first attempt, quick afterwards."""
    return slow(step) if step.input.attempt == 1 else quick(step)


def stubborn(step: Step) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return slow(step)


def hang(step: Step) -> dict[str, Any]:
    time.sleep(60)
    return {}


def gated(step: Step) -> dict[str, Any]:
    """Tell which devices it sees, and wait for the file `gate`."""
    step.event(f"Sees {os.environ.get('CUDA_VISIBLE_DEVICES')!r}.")
    gate = Path(step.input.params["gate"])
    for number in range(600):
        if gate.exists():
            return quick(step)
        step.progress(number, 600, eta_seconds=1000)
        time.sleep(0.1)
    raise TimeoutError


def hang_once(step: Step) -> dict[str, Any]:
    return hang(step) if step.input.attempt == 1 else quick(step)


def refuse(step: Step) -> dict[str, Any]:
    raise InvalidInput("Line 3 has no answer.", param="training_file")


def exhaust(step: Step) -> dict[str, Any]:
    raise Exhausted("The GPU's memory ran out.")


def fill_the_disk(step: Step) -> dict[str, Any]:
    """Meet a real error of a write that does not fit."""
    with Path("/dev/full").open("wb") as file:
        file.write(b"x" * 100_000)
    return {}


def fill_the_memory(step: Step) -> dict[str, Any]:
    limit = 1024**3
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return {"bytes": len(bytearray(2 * limit))}


def counts(step: Step) -> dict[str, Any]:
    """Count to 40, slowly unless it goes on; a checkpoint at every tenth, and when it shall stop."""
    root = step.input.folder / "checkpoints"
    start = int((step.input.resume_from[0] / "count").read_text()) if step.input.resume_from else 0
    if step.input.resume_from:
        step.resumed(start)
    step.event(f"Counting from {start}.")
    step.save_when_stopped()
    for number in range(start + 1, 41):
        step.progress(number, 40)
        time.sleep(0.001 if step.input.resume_from else 0.1)
        if number % 10 == 0 or step.stop_asked:
            step.checkpoint(
                number, write_checkpoint(root, number, lambda at, n=number: _write_count(at, n)), {}
            )
        if step.stop_asked:
            raise Stopped
    return quick(step)


def falls_over_its_newest(step: Step) -> dict[str, Any]:
    """Count to 40 with checkpoints; whoever goes on from that of 30 crashes, until it is passed over."""
    root = step.input.folder / "checkpoints"
    start = int((step.input.resume_from[0] / "count").read_text()) if step.input.resume_from else 0
    if start:
        step.resumed(start)
        step.event(f"Counting from {start}.")
    if start == 30 or step.input.attempt == 1:
        for number in (20, 30) if step.input.attempt == 1 else ():
            write_checkpoint(root, number, lambda at, n=number: _write_count(at, n))
        os.abort()
    return quick(step)


def _write_count(staging: Path, number: int) -> None:
    folder = staging / f"checkpoint-{number}"
    folder.mkdir()
    (folder / "count").write_text(str(number))


def lingers(step: Step) -> dict[str, Any]:
    """At the first attempt wait to be asked to stop, and then take some time for it."""
    step.save_when_stopped()
    if step.input.attempt == 1:
        for number in range(600):
            step.progress(number, 600)
            time.sleep(0.05)
            if step.stop_asked:
                note(step, "asked")
                time.sleep(1.5)
                raise Stopped
    return quick(step)


def needs_memory(step: Step) -> dict[str, Any]:
    """A batch of more than two rows does not fit."""
    batch = step.input.adjustments.get("batch_size", 8)
    less = {"batch_size": batch // 2, "gradient_accumulation_steps": 16 // batch} if batch > 1 else None
    step.if_memory_runs_out(less, "Buy more.")
    if batch > int(step.input.params.get("fits", 2)):
        raise MemoryError
    return quick(step)


def takes_memory(step: Step) -> dict[str, Any]:
    """Take `row_bytes` for each of its `rows`; `more_bytes` bounds it where no control group does."""
    from worker.steps.memory_ladder import halved  # here, for what it imports in its turn

    batch = step.input.adjustments.get("batch_size", step.input.params.get("rows", 8))
    accumulation = step.input.adjustments.get("gradient_accumulation_steps", 2)
    step.if_memory_runs_out(halved(batch, accumulation), "Take a smaller model.")
    if more := step.input.params.get("more_bytes"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    taken = bytearray(batch * int(step.input.params["row_bytes"]))
    for page in range(0, len(taken), resource.getpagesize()):
        taken[page] = 1
    return quick(step) | {"batch_size": batch, "gradient_accumulation_steps": accumulation}


def fills_its_disk(step: Step) -> dict[str, Any]:
    """Write `file_bytes` to its folder; to `full_device` in place of that at the first attempt, if given."""
    path = step.input.folder / "made.bin"
    if step.input.attempt == 1 and step.input.params.get("full_device"):
        path = Path(step.input.params["full_device"])
    step.artifact("made.bin")
    with path.open("wb") as file:
        for _ in range(int(step.input.params["file_bytes"]) // 1_000_000):
            file.write(os.urandom(1_000_000))
            file.flush()
    return quick(step)


def crash(step: Step) -> dict[str, Any]:
    raise RuntimeError("boom")


def miss_the_hub(step: Step) -> dict[str, Any]:
    raise Unavailable("The hub is away.", param="base_model", code="hub_unavailable")


def fail(step: Step) -> dict[str, Any]:
    raise StepFailed("llama-quantize failed: no such type")


def estimate(step: Step) -> dict[str, Any]:
    return {"estimate": {"foretold": {"seconds": 10.0, "peak_bytes": 100}}}


def take_memory(step: Step) -> dict[str, Any]:
    return {"peak_memory_bytes": 150, "reward_accuracy": 1.0}


def segfault(step: Step) -> dict[str, Any]:
    os.write(2, b"about to fall\n")
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


BEHAVIOURS = {
    function.__name__: function
    for function in (
        quick, measures, slow, once, stubborn, hang, hang_once, gated, refuse, exhaust, fill_the_disk,
        fill_the_memory, counts, lingers, needs_memory, crash, segfault, falls_over_its_newest, takes_memory,
        fills_its_disk, draws, miss_the_hub, fail, estimate, take_memory,
    )
}  # fmt: skip
