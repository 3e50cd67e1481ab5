"""Measure a model that was quantised to GPTQ beside the 16-bit one, by both weights on the same rows."""

import json
import math
from dataclasses import asdict
from typing import Any

from db.errors import InvalidInput
from worker.step import Step
from worker.steps.base_model import fetch_base
from worker.steps.quantize import JUDGED, MEMORY_ADVICE
from worker.steps.reference_difference import between
from worker.steps.runtime import memory_errors_explained, prepare_runtime
from worker.steps.teacher_forcing import ForcedRow, reference_of
from worker.steps.trained_weights import trained_weights


def run(step: Step) -> dict[str, Any]:
    """See that it loads, and how far it is from what it was made from.

    Raises:
        InvalidInput: it gives no numbers.
    """
    prepare_runtime(step.input.settings.threads)
    made, folder = step.input.results["quantize"], step.input.step_folders["quantize"]
    base = step.input.require_base()
    rows = [ForcedRow(**row) for row in json.loads((folder / JUDGED).read_text())]
    with memory_errors_explained(MEMORY_ADVICE):
        with trained_weights(fetch_base(base, step)) as model:
            before = reference_of(step, model, rows)
        with trained_weights(folder / made["folder"]) as model:
            after = reference_of(step, model, rows)
    apart = between(before, after, rows)
    if not math.isfinite(apart.kl):
        raise InvalidInput(
            "The quantised model gives no numbers: quantise it with 8 bits, smaller groups, or other rows.",
            param="bits",
            code="verification_failed",
        )
    where = "held-out rows" if made["held_out"] else "rows that it was calibrated on"
    step.event(
        f"Beside {base.name}: KL {apart.kl:.5f} nats, top-1 agreement {apart.top1_agreement:.4f}, perplexity "
        f"{apart.perplexity:.4g} ({apart.perplexity_first:.4g} before) over {apart.tokens} tokens of "
        f"{len(rows)} {where}.",
        **asdict(apart),
    )
    figures = {**asdict(apart), "perplexity_before": apart.perplexity_first, "rows": len(rows)}
    del figures["perplexity_first"]
    return {"files": [], "measured": {**figures, "held_out": made["held_out"]}}
