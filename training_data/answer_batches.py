"""What GRPO settles beside other methods: how many answers a prompt gets, how long they may be, and how they
make batches. A batch is counted in answers, and holds all of each of its prompts.

Sources: Shao et al. 2024 (arXiv:2402.03300) for the method and the KL divergence's weight of 0.04; trl's own
number of answers, 8; Yu et al. 2025 (arXiv:2503.14476) for a temperature of 1.
"""

import math
from collections.abc import Mapping
from typing import Any

GRPO = "grpo"
ANSWERS = 8  # to one prompt
PROMPTS = 8  # of one step of the optimiser
ANSWER_LENGTH = 256  # tokens, as far as the model was made for so many
SHORTEST_SHARE = 4  # where prompts leave little, an answer has one part in so many of the model's context
TEMPERATURE = 1.0
# Micro-batches whose answers are written at once: what a layer keeps of a token for the answer's next one is
# a small part of what it keeps for the backward pass.
WRITTEN_AT_ONCE = 8


def settle_answers(
    params: Mapping[str, Any], chosen: Mapping[str, Any], *, longest: int, context_length: int
) -> dict[str, Any]:
    """What is GRPO's own of the hyperparameters, as far as it is not given.

    Args:
        params: of the fine-tune.
        chosen: the hyperparameters that are given.
        longest: tokens of the longest prompt.
    """
    room = int(chosen.get("max_length", context_length))
    shortest = max(1, room // SHORTEST_SHARE)
    return {
        "rewards": params["rewards"],
        "reward_weights": params["reward_weights"] or [1.0] * len(params["rewards"]),
        "num_generations": _number_of_answers(chosen),
        "max_completion_length": min(ANSWER_LENGTH, max(room - longest, shortest)),
        "temperature": TEMPERATURE,
        **{name: chosen[name] for name in ("num_generations", "max_completion_length", "temperature")
           if name in chosen},
    }  # fmt: skip


def _number_of_answers(chosen: Mapping[str, Any]) -> int:
    """As many as usual, or what divides a batch whose size is given."""
    effective = chosen.get("effective_batch_size")
    if effective is None and {"batch_size", "gradient_accumulation_steps"} <= chosen.keys():
        effective = chosen["batch_size"] * chosen["gradient_accumulation_steps"]
    if effective is None:
        return ANSWERS
    fewer = (number for number in range(min(ANSWERS, effective), 1, -1) if effective % number == 0)
    more = (number for number in range(ANSWERS + 1, effective + 1) if effective % number == 0)
    return next(fewer, None) or next(more)


def batches_of_answers(chosen: Mapping[str, Any], *, prompts: int, fitting: int) -> tuple[int, int]:
    """Answers of a micro-batch, and micro-batches of a step of the optimiser.

    Args:
        chosen: with num_generations; of batch_size, gradient_accumulation_steps and effective_batch_size
            those that are given.
        prompts: that are trained on.
        fitting: answers that fit into a micro-batch with ease.
    """
    answers = int(chosen["num_generations"])
    batch, accumulation = chosen.get("batch_size"), chosen.get("gradient_accumulation_steps")
    if batch is not None and accumulation is not None:
        return batch, accumulation
    wanted = chosen.get("effective_batch_size") or answers * min(PROMPTS, prompts)
    if batch is None and accumulation is None:
        micro = max(number for number in range(1, max(1, fitting) + 1) if wanted % number == 0)
        return micro, wanted // micro
    given = int(batch or accumulation or 1)
    unit = math.lcm(answers, given)
    times = round(wanted / unit)
    if batch is None:
        times = min(times, fitting * given // unit)
    other = unit * max(1, times) // given
    return (given, other) if batch is not None else (other, given)
