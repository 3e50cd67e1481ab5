"""What the export in one pass saves over merging, saving, converting and quantising:

    python -m bench.export [--quick] [--seed N] [--rounds N] [--json FILE]

Models of random weights with an adapter of rank 16 on every layer, to Q4_K_M. In turns, each in processes of
its own: the classical path (peft's merge, unload and save_pretrained; convert_hf_to_gguf; llama-quantize),
the pass with ggml's encoder, the pass with the vectors', and the adapter alone. The
pass's file is held against the classical one to the byte, each time. A missed goal is exit status 1.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.export_shapes import SHAPES, Shape
from bench.goals import show_goals
from db.settings import load_settings
from serving.llama_cpp import (
    Tools,
    child_environment,
    convert_argv,
    quantize_argv,
    require_tools,
)

TYPE = "Q4_K_M"
MERGE = (
    "import sys; from pathlib import Path; from worker.steps.merging import merged_model; "
    "from worker.steps.gguf_files import write_tokenizer; "
    "base, adapter, target = map(Path, sys.argv[1:]); "
    "merged_model(base, adapter).save_pretrained(target); write_tokenizer(adapter, target)"
)
WATCHED_SECONDS = 0.05
MOST_ADAPTER_SECONDS = 10
LARGE = ("0.5 B", "1.3 B")  # of which peak memory has a goal

JSON = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one or more processes took, one after the other.

    Args:
        rss_mib: the most that one of them had in memory at once.
        written_mb: the sizes of the files they made.
    """

    wall: float
    cpu: float
    rss_mib: float
    written_mb: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.rss_mib, other.rss_mib),
            self.written_mb + other.written_mb,
        )


class Disk:
    """The most that a folder holds during a block, in MB; files without a name are on nobody's list."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ended, self.peak_mb = folder, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(WATCHED_SECONDS):
            self.peak_mb = max(self.peak_mb, size_mb(self._folder))

    def __enter__(self) -> "Disk":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak_mb = max(self.peak_mb, size_mb(self._folder))


def size_mb(path: Path) -> float:
    files = [path] if path.is_file() else list(path.rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def run(argv: Sequence[str | Path], log: Path, made: Path) -> Cost:
    """Run a program to its end; `made` is the file or the folder that it leaves."""
    environment = {**os.environ, **child_environment(), "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in argv], stdout=output, stderr=output, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text(errors="replace")[-3000:]
    wall = time.perf_counter() - started
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, size_mb(made))


class Bench:
    """One size of model, and each way to export it.

    Args:
        folder: of `base/` and `adapter/`; files that are made are beside them, and removed again.
    """

    def __init__(self, tools: Tools, folder: Path, threads: int) -> None:
        self._tools, self._folder, self._threads = tools, folder, threads
        self._base, self._adapter = folder / "base", folder / "adapter"
        self._log = folder / "log.txt"
        # As the export step starts it, which has read the settings.
        self._as_a_step = ["--tools", str(tools.bin), str(tools.convert), str(tools.python)]
        self._as_a_step += ["--cache", str(load_settings().cache_dir)]

    def classical(self) -> tuple[JSON, bytes]:
        """Returns what each step cost, and the file's digest."""
        work = self._folder / "classical"
        work.mkdir()
        merged, full, quantised = work / "model", work / "full.gguf", work / "out.gguf"
        merge: list[str | Path] = [sys.executable, "-c", MERGE, self._base, self._adapter, merged]
        convert = convert_argv(self._tools, merged, full, "bf16", name="out")
        quantize = quantize_argv(self._tools, full, quantised, TYPE, self._threads)
        with Disk(work) as disk:
            steps = {
                "merge": run(merge, self._log, merged),
                "convert": run(convert, self._log, full),
                "quantize": run(quantize, self._log, quantised),
            }
        total = steps["merge"] + steps["convert"] + steps["quantize"]
        told = {"total": asdict(total), "quantize": asdict(steps["quantize"]), "peak_disk_mb": disk.peak_mb}
        return {**told, "merge": asdict(steps["merge"]), "convert": asdict(steps["convert"])}, digest(work)

    def one_pass(self, encoder: str) -> tuple[JSON, bytes]:
        work = self._folder / encoder
        work.mkdir()
        argv: list[str | Path] = [sys.executable, "-m", "worker.export", "--base", self._base]
        argv += ["--adapter", self._adapter, "--out", work / "out.gguf", "--type", TYPE, *self._as_a_step]
        argv += ["--threads", str(self._threads), "--encoder", encoder]
        with Disk(work) as disk:
            cost = run(argv, self._log, work / "out.gguf")
        return {"total": asdict(cost), "peak_disk_mb": disk.peak_mb}, digest(work)

    def adapter_alone(self) -> JSON:
        """The adapter as a GGUF file of its own, for a base that is served already."""
        work = self._folder / "alone"
        work.mkdir()
        made = work / "adapter.gguf"
        argv: list[str | Path] = [sys.executable, "-m", "worker.export", "--base", self._base]
        argv += ["--adapter", self._adapter, "--out", made, "--adapter-alone", *self._as_a_step]
        cost = run(argv, self._log, made)
        digest(work)
        return {"total": asdict(cost)}


def digest(work: Path) -> bytes:
    """Hash the file that was made, and clear all away."""
    found = b""
    if (work / "out.gguf").is_file():
        with (work / "out.gguf").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
    shutil.rmtree(work)
    return found


def measure(tools: Tools, shape: Shape, *, rounds: int, seed: int, threads: int) -> JSON:
    """All ways in turns, `rounds` times; the first file of each round is what the others must equal."""
    told: dict[str, list[JSON]] = {"classical": [], "ggml": [], "auto": [], "adapter": []}
    with tempfile.TemporaryDirectory(prefix="lathe-bench-export-") as folder:
        # In a process of its own: what this one holds would count as the most that its children had.
        subprocess.run(
            [sys.executable, "-m", "bench.export_models", shape.name, folder, str(seed)], check=True
        )
        bench = Bench(tools, Path(folder), threads)
        for _ in range(rounds):
            first, expected = bench.classical()
            told["classical"].append(first)
            for encoder in ("ggml", "auto"):
                one, made = bench.one_pass(encoder)
                assert made == expected, f"{shape.name}: the pass with {encoder} made other bytes"
                told[encoder].append(one)
            told["adapter"].append(bench.adapter_alone())
    return {
        "model": shape.name,
        "weights": shape.weights,
        "ways": {way: median(runs) for way, runs in told.items()},
    }


def median(runs: list[JSON]) -> JSON:
    """Of each number by itself."""
    first = runs[0]
    return {
        key: median([run[key] for run in runs]) if isinstance(value, dict)
        else round(statistics.median(run[key] for run in runs), 2)
        for key, value in first.items()
    }  # fmt: skip


def goals(measured: JSON) -> list[JSON]:
    name, ways = measured["model"], measured["ways"]
    classical, ggml, ours = ways["classical"], ways["ggml"], ways["auto"]
    total, alone = classical["total"], ways["adapter"]["total"]
    quantising, ggml_pass, our_pass = classical["quantize"], ggml["total"], ours["total"]
    found = [
        _ratio(f"{name}: wall, ggml's encoder / llama-quantize alone", ggml_pass, quantising, "wall", 1.2),
        _ratio(f"{name}: wall, the vectors' encoder / classical", our_pass, total, "wall", 1 / 5),
        _ratio(f"{name}: bytes written / classical", our_pass, total, "written_mb", 1 / 6),
        _ratio(f"{name}: bytes of the adapter alone / classical", alone, total, "written_mb", 1 / 50),
        {
            "what": f"{name}: seconds for the adapter alone", "result": alone["wall"], "goal": "<= 10",
            "met": alone["wall"] <= MOST_ADAPTER_SECONDS,
        },
    ]  # fmt: skip
    if name in LARGE:
        found.append(_ratio(f"{name}: peak memory / classical", our_pass, total, "rss_mib", 1 / 5))
    return found


def _ratio(what: str, ours: JSON, theirs: JSON, measure: str, goal: float) -> JSON:
    """Beside a ratio of wall times stands that of the CPU's, which other work on the machine changes less."""
    ratio = ours[measure] / theirs[measure]
    beside = f", of CPU-seconds {ours['cpu'] / theirs['cpu']:.3f}" if measure == "wall" else ""
    return {"what": what, "result": f"{ratio:.3f}{beside}", "goal": f"<= {goal:.3f}", "met": ratio <= goal}


def show(measured: JSON) -> None:
    print(f"\n{measured['model']}: {measured['weights'] / 1e6:.0f} M weights to {TYPE}")
    print(f"{'':28}{'wall s':>9}{'CPU s':>9}{'RSS MiB':>9}{'written MB':>12}{'peak disk MB':>14}")
    ways = measured["ways"]
    rows = {
        "merge, save, convert, quantise": ways["classical"],
        "  of it llama-quantize": {"total": ways["classical"]["quantize"]},
        "one pass, ggml's encoder": ways["ggml"],
        "one pass, vectors": ways["auto"],
        "the adapter alone": ways["adapter"],
    }
    for name, told in rows.items():
        cost = told["total"]
        disk = f"{told['peak_disk_mb']:14.0f}" if "peak_disk_mb" in told else ""
        numbers = f"{cost['wall']:9.1f}{cost['cpu']:9.1f}{cost['rss_mib']:9.0f}{cost['written_mb']:12.1f}"
        print(f"{name:30}{numbers[2:]}{disk}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest model, once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    shapes, rounds = (SHAPES[:1], 1) if options.quick else (SHAPES, options.rounds)
    threads = min(2, len(os.sched_getaffinity(0)))
    tools = require_tools(load_settings())
    told: JSON = {
        "load_before": os.getloadavg(),
        "threads": threads,
        "rounds": rounds,
        "models": [],
        "goals": [],
    }
    for shape in shapes:
        measured = measure(tools, shape, rounds=rounds, seed=options.seed, threads=threads)
        show(measured)
        told["models"].append(measured)
        told["goals"] += goals(measured)
    told["load_after"] = os.getloadavg()
    print(f"\nload (1, 5, 15 min): {told['load_before']} before, {told['load_after']} after")
    show_goals(told["goals"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in told["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
