"""Rows to train on for the benchmarks of training: of lognormal length, cut from Python's own help."""

import csv
import math
import random
from itertools import cycle
from pathlib import Path
from statistics import NormalDist

from training_data.tokens import ChatTokenizer
from worker.steps.pretrain_text import read_passages

MEDIAN, P99 = 60, 512  # tokens of a row
NORMAL_P99 = 2.326  # standard deviations from the median to the 99th percentile
SHORTEST, LONGEST = 24, 1024
TEMPLATE_TOKENS = 14  # that the chat template adds to a row
ASKED_SHARE = 0.25  # of a row that is the question


def write_rows(
    path: Path, count: int, tokenizer: ChatTokenizer, *, seed: int, median: int = MEDIAN, p99: int = P99
) -> None:
    """Write a CSV of questions and answers.

    Their lengths are the quantiles of the distribution, in an order of chance: few rows are spread as many
    are.
    """
    dice = random.Random(seed)  # noqa: S311
    lengths = quantiles(count, median, p99)
    dice.shuffle(lengths)
    passages = read_passages(None)
    dice.shuffle(passages)
    ids = (token for passage in cycle(passages) for token in tokenizer.tokenizer.encode(passage).ids)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        for length in lengths:
            taken = [next(ids) for _ in range(length - TEMPLATE_TOKENS)]
            asked = max(2, round(len(taken) * ASKED_SHARE))
            writer.writerow([_text(tokenizer, taken[:asked]), _text(tokenizer, taken[asked:])])


def quantiles(count: int, median: int, p99: int) -> list[int]:
    """Lengths that share out the lognormal distribution evenly, within what a model takes."""
    normal = NormalDist(math.log(median), math.log(p99 / median) / NORMAL_P99)
    spread = [math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    return [round(min(LONGEST, max(SHORTEST, length))) for length in spread]


def _text(tokenizer: ChatTokenizer, ids: list[int]) -> str:
    text = tokenizer.tokenizer.decode(ids).replace("\ufffd", "").strip()
    return text or "what"
