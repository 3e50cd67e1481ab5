"""What the output layer of a large vocabulary takes in training, in tiles and held as a whole, on a CPU:

    python -m bench.output_layer [--quick] [--seed N] [--json FILE] [--vocabulary N] [--tokens N]

A Llama of one layer, hidden 1024, with the vocabulary of Qwen3 (151,936), bf16 weights at random. Loss and
gradients of a micro-batch: by transformers' own forward; by trl's fused output layer, in tiles; and as Lathe
trains on a CPU, whose logits become their own gradient (`worker/steps/whole_logits.py`). Each in a process of
its own: peak memory above what it had before, CPU-seconds, the loss, and how far the gradients that reach the
layers are apart. A missed goal is exit status 1.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.goals import show_goals

VOCABULARY, HIDDEN = 151_936, 1024
TOKENS, QUICK_TOKENS = 2048, 512
WAYS = ("transformers", "tiles", "lathe")
MEMORY_GOAL = 1.0  # of the tiles'
TIME_GOAL = 0.5
LOSS_GOAL = 1e-3  # of the whole one's: rounded to 16 bits in other places
GRADIENT_GOAL = 0.02

JSON = dict[str, Any]


def measure(way: str, vocabulary: int, tokens: int, seed: int, threads: int) -> JSON:
    """Loss and gradients once, after a small batch that lets everything load."""
    from worker.steps.runtime import prepare_runtime

    prepare_runtime(threads)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=8,
        vocab_size=vocabulary, tie_word_embeddings=False, dtype=torch.bfloat16,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    learning = model.model.norm.weight.requires_grad_(True)  # what the head's gradient reaches first
    if way != "transformers":
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as trl's SFTTrainer has it
    if way == "lathe":
        from worker.steps.whole_logits import hold_whole_logits

        assert hold_whole_logits(model)
    ids = torch.randint(vocabulary, (1, tokens))
    more = {"fused_lm_head": True} if way != "transformers" else {}
    model(input_ids=ids[:, :16], labels=ids[:, :16], **more).loss.backward()
    learning.grad = None
    before, began = _peak_from_now(), time.process_time()
    loss = model(input_ids=ids, labels=ids, use_cache=False, **more).loss
    loss.backward()
    assert learning.grad is not None
    return {
        "cpu_seconds": time.process_time() - began,
        "peak_bytes": _kilobytes("VmHWM") * 1024 - before,
        "loss": float(loss),
        "gradient": learning.grad.float().tolist(),
    }


def _peak_from_now() -> int:
    """Forget the highest mark of memory so far. Returns what is held now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS") * 1024


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def goals(found: JSON) -> list[JSON]:
    whole, tiles, lathe = (found[way] for way in WAYS)
    memory = lathe["peak_bytes"] / tiles["peak_bytes"]
    time_taken = lathe["cpu_seconds"] / tiles["cpu_seconds"]
    loss = max(abs(each["loss"] / whole["loss"] - 1) for each in (tiles, lathe))
    apart = max(_apart(each["gradient"], whole["gradient"]) for each in (tiles, lathe))
    rows = [
        ("peak memory of the output layer, Lathe's / in tiles", f"{memory:.2f}", MEMORY_GOAL, memory),
        ("its CPU-seconds, Lathe's / in tiles", f"{time_taken:.2f}", TIME_GOAL, time_taken),
        ("the loss, apart by a share of", f"{loss:.2g}", LOSS_GOAL, loss),
        ("the gradient, apart by a share of its length", f"{apart:.2g}", GRADIENT_GOAL, apart),
    ]
    return [
        {"what": what, "result": result, "goal": f"<= {goal}", "met": found <= goal}
        for what, result, goal, found in rows
    ]


def _apart(one: list[float], other: list[float]) -> float:
    pairs = list(zip(one, other, strict=True))
    return float((sum((a - b) ** 2 for a, b in pairs) / sum(b**2 for _, b in pairs)) ** 0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TOKENS} tokens, not {TOKENS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--tokens", type=int, help="of the micro-batch")
    options = parser.parse_args()
    tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS)
    threads = min(2, len(os.sched_getaffinity(0)))
    told: JSON = {"load_before": os.getloadavg(), "vocabulary": options.vocabulary, "tokens": tokens}
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            ran = process.submit(measure, way, options.vocabulary, tokens, options.seed, threads)
            told[way] = ran.result()
        print(
            f"{way}: {told[way]['peak_bytes'] / 2**20:.0f} MiB, {told[way]['cpu_seconds']:.2f} CPU-s, "
            f"loss {told[way]['loss']:.5f}",
            flush=True,
        )
    told["load_after"] = os.getloadavg()
    told["goals"] = goals(told)
    for way in WAYS:
        del told[way]["gradient"]
    show_goals(told["goals"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in told["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
