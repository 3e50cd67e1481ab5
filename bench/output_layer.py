"""What the output layer of a large vocabulary takes in training, in tiles and as a whole, on a CPU:

    python -m bench.output_layer [--quick] [--seed N] [--json FILE] [--vocabulary N] [--tokens N]

A Llama of one layer, hidden 1024, with the vocabulary of Qwen3 (151,936), bf16 weights at random. Loss and
gradients of a micro-batch, by transformers' own forward, which holds all logits, and by trl's fused output
layer, by which every method of Lathe's trains. Each in a process of its own: peak memory above what it had
before, CPU-seconds, the loss, and how far the gradients that reach the layers are apart. A missed goal is
exit status 1; CPU-seconds have none.
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
WAYS = ("whole", "tiles")
MEMORY_GOAL = 0.6
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
    if way != "whole":
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as trl's SFTTrainer has it
    ids = torch.randint(vocabulary, (1, tokens))
    more = {"fused_lm_head": True} if way != "whole" else {}
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
    whole, tiles = (found[way] for way in WAYS)
    memory = tiles["peak_bytes"] / whole["peak_bytes"]
    loss = abs(tiles["loss"] / whole["loss"] - 1)
    pairs = list(zip(tiles["gradient"], whole["gradient"], strict=True))
    apart = (sum((a - b) ** 2 for a, b in pairs) / sum(b**2 for _, b in pairs)) ** 0.5
    return [
        {
            "what": "peak memory of the output layer, in tiles / as a whole",
            "result": f"{memory:.2f} ({tiles['peak_bytes'] / 2**20:.0f} and "
            f"{whole['peak_bytes'] / 2**20:.0f} MiB)",
            "goal": f"<= {MEMORY_GOAL}", "met": memory <= MEMORY_GOAL,
        },
        {
            "what": "the loss, apart by a share of", "result": f"{loss:.2g}",
            "goal": f"<= {LOSS_GOAL}", "met": loss <= LOSS_GOAL,
        },
        {
            "what": "the gradient, apart by a share of its length", "result": f"{apart:.2g}",
            "goal": f"<= {GRADIENT_GOAL}", "met": apart <= GRADIENT_GOAL,
        },
    ]  # fmt: skip


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
