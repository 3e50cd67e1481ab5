"""What encoding weights by vectors saves over ggml: `python -m bench.encoder [--quick] [--json]`.

Rows as weights are (normal, rounded to bf16) are encoded by both in turns, in one thread, and every byte is
compared. A missed goal is exit status 1.
"""

import statistics
import sys
import time
from typing import Any

import numpy as np

from bench.goals import run_bench, show_goals
from db.settings import load_settings
from serving.llama_cpp import require_tools
from worker.encoder.choosing import choose_encoder
from worker.encoder.vector_encoder import BLOCKS
from worker.steps.one_pass.encoding import Encoded, Encoder, Rows

COLUMNS = 4096
SIZES = {"quick": (256, 5), "full": (2048, 15)}  # rows, pairs
GOALS = {"Q4_K": 4.0, "Q6_K": 4.0}

JSON = dict[str, Any]


def weights(dice: np.random.Generator, rows: int) -> Rows:
    values = (dice.standard_normal((rows, COLUMNS)) / 50).astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def timed(encoder: Encoder, rows: Rows, type_name: str) -> tuple[Encoded, float]:
    """The blocks, and the CPU-seconds of this thread that they took."""
    began = time.thread_time()
    encoded = encoder.encode(rows, type_name)
    return encoded, time.thread_time() - began


def measure(vectors: Encoder, ggml: Encoder, rows: Rows, type_name: str, pairs: int) -> JSON:
    seconds: dict[str, list[float]] = {"vectors": [], "ggml": []}
    differing = 0
    for pair in range(pairs):
        both = [("vectors", vectors), ("ggml", ggml)]
        made = {}
        for name, encoder in both if pair % 2 else reversed(both):
            made[name], spent = timed(encoder, rows, type_name)
            seconds[name].append(spent)
        differing += int((made["vectors"] != made["ggml"]).sum())
    ratios = [slow / fast for slow, fast in zip(seconds["ggml"], seconds["vectors"], strict=True)]
    return {
        "type": type_name,
        "ggml_ns_per_weight": 1e9 * statistics.median(seconds["ggml"]) / rows.size,
        "vectors_ns_per_weight": 1e9 * statistics.median(seconds["vectors"]) / rows.size,
        "times": statistics.median(ratios),
        "times_least": min(ratios),
        "times_most": max(ratios),
        "bytes_that_differ": differing,
    }


def bench(*, quick: bool, seed: int) -> JSON:
    settings = load_settings()
    chosen = choose_encoder(require_tools(settings).bin, settings.cache_dir)
    if chosen is None or chosen.encoder is chosen.ggml:
        sys.exit(
            f"There is nothing to compare: {chosen.said if chosen else 'this llama.cpp has no library.'}"
        )
    rows, pairs = SIZES["quick" if quick else "full"]
    made = weights(np.random.default_rng(seed), rows)
    types = [measure(chosen.encoder, chosen.ggml, made, name, pairs) for name in BLOCKS]
    goals = [
        {
            "what": f"{row['type']}: ggml's CPU-seconds per ours",
            "result": round(row["times"], 1),
            "goal": f"≥ {GOALS[row['type']]:.0f}, and no byte differs",
            "met": row["times"] >= GOALS[row["type"]] and not row["bytes_that_differ"],
        }
        for row in types
        if row["type"] in GOALS
    ]
    return {"encoder": chosen.said, "weights": made.size, "pairs": pairs, "types": types, "goals": goals}


def show(result: JSON) -> None:
    print(
        f"{result['encoder']}\n{result['weights'] / 1e6:.1f} M weights, {result['pairs']} pairs, one thread"
    )
    for row in result["types"]:
        print(
            f"{row['type']}: ggml {row['ggml_ns_per_weight']:6.2f} ns a weight, vectors "
            f"{row['vectors_ns_per_weight']:5.2f}: {row['times']:4.1f} times as fast "
            f"({row['times_least']:.1f}–{row['times_most']:.1f}), {row['bytes_that_differ']} bytes differ"
        )
    show_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(run_bench(__doc__, bench, show, quick="some seconds, for a look", seed="of the weights"))
