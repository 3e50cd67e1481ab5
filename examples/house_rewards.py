"""Rewards of one's own, for trainings by GRPO:

    PYTHONPATH=examples LATHE_REWARDS=rewards.toml lathe up

where rewards.toml has

    [reward.polite]
    function = "house_rewards:polite"

    [reward.near_the_price]
    function = "house_rewards:near_the_price"
"""

import re
from typing import Any

Messages = list[dict[str, str]]


def polite(completions: list[Messages], **others: Any) -> list[float]:
    """1 for an answer that thanks or asks kindly, else 0."""
    return [float(bool(re.search(r"(?i)\b(thank|please)", said[-1]["content"]))) for said in completions]


def near_the_price(completions: list[Messages], price: list[float], **others: Any) -> list[float]:
    """The nearer the first number of an answer comes to its row's column `price`, the nearer to 1."""
    found = [re.search(r"\d+(\.\d+)?", said[-1]["content"]) for said in completions]
    return [
        1 / (1 + abs(float(number[0]) - wanted)) if number else 0.0
        for number, wanted in zip(found, price, strict=True)
    ]
