"""Hold a served file against weights: the same rows through both, token by token.

Every answer is forced: at each of its positions both are asked what comes next after the row's own
tokens, so one early difference does not carry on. The server tells its likeliest tokens; what they leave
of the probability counts as one token more. That sum is never more than the true KL divergence, and
misses only how the rest is spread.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.openai_compatible import LlamaServer, NextToken
from worker.step import Step

if TYPE_CHECKING:
    import torch

TOP = 64  # candidates asked of the server
SLOTS = 4  # rows in flight
# A quantisation that costs the base next to nothing (F16, Q8_0) would leave no room for rounding: a ratio
# of two tiny numbers says nothing. Below this the bound is absolute. 0.005 nats is what Q8_0 costs at
# worst; it changes the likelihood of a token by half a percent on average.
KL_FLOOR = 0.005
SMALLEST_PROBABILITY = 1e-9
LARGEST_PERPLEXITY = 1e30  # of numbers that a JSON document can hold
# Where the weights hold a second token for nearly as good as the first, which of them comes out is a coin
# that every rounding tosses. A position counts for top-1 agreement when the first is ahead by this much
# (odds of 1.6 to 1). Measured on unseen text with a model of 4 M parameters: Q4_K_M, at a KL of 0.002, agreed
# on 0.95 of all positions and on 1.00 of those; Q2_K, at 0.025, on 0.83 and 0.97. KL counts them all.
DECIDED_NATS = 0.5


@dataclass(frozen=True)
class ForcedRow:
    """A conversation's tokens.

    Args:
        ids: the whole row, ending with the token that ends the last answer.
        positions: indices into `ids` of the answer tokens that are compared.
        prompt_length: tokens before the last answer.
        messages: the conversation without its last answer.
    """

    ids: list[int]
    positions: list[int]
    prompt_length: int
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class Reference:
    """What the weights expect: log probabilities (positions, vocab) of each row, fp32 on the CPU.

    `by_heart[i]` says whether greedy decoding of row i's prompt gives exactly its answer, end included.
    """

    log_probabilities: "list[torch.Tensor]"
    by_heart: list[bool]


@dataclass(frozen=True)
class Difference:
    """Means over all compared tokens.

    Args:
        top1_agreement: share of the decided positions at which both expect the same token first.
        top1_agreement_all: the same over all positions, near ties included.
        kl: KL(weights || served) in nats, over all.
        tokens: positions compared.
        decided: positions at which the weights prefer their first token clearly.
        perplexity: of the row's own tokens, to what is served.
        perplexity_weights: of the same to the weights.
    """

    top1_agreement: float
    top1_agreement_all: float
    kl: float
    tokens: int
    decided: int
    perplexity: float
    perplexity_weights: float


@dataclass(frozen=True)
class Told:
    """What a server tells of one position.

    Args:
        token: the row's own.
        log_probability: its, in nats; None: the server does not tell.
    """

    expected: NextToken
    token: int
    log_probability: float | None


def reference_of(step: Step, model: Any, rows: list[ForcedRow]) -> Reference:
    """Run rows through weights that `trained_weights` loaded."""
    import torch

    kept, by_heart = [], []
    with torch.inference_mode():
        for done, row in enumerate(rows):
            step.progress(done, len(rows), unit="rows")  # on a CPU, a large model takes minutes for each
            logits = answer_logits(model, row)
            answer = torch.tensor(row.ids[row.prompt_length :], device=logits.device)
            by_heart.append(bool((logits[-len(answer) - 1 : -1].argmax(-1) == answer).all()))
            before = torch.tensor(row.positions, device=logits.device) - 1 - (len(row.ids) - len(logits))
            kept.append(torch.log_softmax(logits[before].float(), dim=-1).cpu())
    return Reference(kept, by_heart)


def answer_logits(model: Any, row: ForcedRow) -> "torch.Tensor":
    """Logits (length, vocab) of the row's end, from the one that predicts its first compared token on.

    For a long prompt and a large vocabulary, those of the whole row would take gigabytes.
    """
    import torch

    first = min(row.prompt_length, *row.positions) - 1
    options = {"logits_to_keep": len(row.ids) - first} if model._supports_logits_to_keep() else {}
    ids = torch.tensor([row.ids], device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **options).logits[0]
    return logits


def compare(step: Step, server: LlamaServer, rows: list[ForcedRow], reference: Reference) -> Difference:
    """Ask the server about every position and hold its answers against the reference."""
    return held_against(reference, ask_all(step, server, rows))


def held_against(reference: Reference, served: list[Told]) -> Difference:
    """Sum up what a server told of every position of the reference's rows."""
    return difference_of([row for rows in reference.log_probabilities for row in rows], served)


def ask_all(step: Step, server: LlamaServer, rows: list[ForcedRow]) -> list[Told]:
    """What the server tells of every position, in the order of the rows."""
    served: list[Told] = []
    total = sum(len(row.positions) for row in rows)
    with ThreadPoolExecutor(SLOTS) as pool:
        # A row stays on one thread, so that the server finds its beginning in the slot's cache.
        for answer in pool.map(lambda row: [_ask(server, row.ids, p) for p in row.positions], rows):
            served += answer
            step.progress(len(served), total, unit="tokens")
    return served


def _ask(server: LlamaServer, ids: list[int], position: int) -> Told:
    before, token = ids[:position], ids[position]
    expected = server.next_token(before, top=TOP)
    likely = dict(expected.candidates).get(token)
    if likely is None:
        likely = server.log_probability(before, token, top=TOP)
    return Told(expected, token, likely)


def difference_of(expected: "list[torch.Tensor]", served: list[Told]) -> Difference:
    """Sum up position by position; `expected` are log probabilities (vocab,)."""
    agreed: list[bool] = []
    decided: list[bool] = []
    own: list[tuple[float, float]] = []  # how likely the row's own token is: to the server, to the weights
    kl = 0.0
    for weights, told in zip(expected, served, strict=True):
        first, second = weights.topk(2).values.tolist()
        agreed.append(told.expected.best == int(weights.argmax()))
        decided.append(first - second >= DECIDED_NATS)
        kl += divergence(weights, told.expected)
        if told.log_probability is not None:
            own.append((told.log_probability, float(weights[told.token])))
    clear = [agrees for agrees, is_clear in zip(agreed, decided, strict=True) if is_clear] or agreed
    total = len(agreed)
    return Difference(
        top1_agreement=sum(clear) / len(clear),
        top1_agreement_all=sum(agreed) / total,
        kl=kl / total,
        tokens=total,
        decided=sum(decided),
        perplexity=perplexity([served for served, _ in own]),
        perplexity_weights=perplexity([weights for _, weights in own]),
    )


def perplexity(log_probabilities: Sequence[float]) -> float:
    """The exponential of the mean negative log likelihood (nats), as far as JSON can write it."""
    loss = -sum(log_probabilities) / max(1, len(log_probabilities))
    return math.exp(loss) if loss < math.log(LARGEST_PERPLEXITY) else LARGEST_PERPLEXITY


def divergence(expected: "torch.Tensor", served: NextToken) -> float:
    """KL(expected || served) over the served candidates and one token that stands for the rest.

    Args:
        expected: log probabilities (vocab,).
    """
    ids = [token for token, _ in served.candidates]
    p = expected[ids].double().exp().tolist()
    q = [math.exp(logprob) for _, logprob in served.candidates]
    rest = (max(0.0, 1 - sum(p)), max(0.0, 1 - sum(q)))
    return max(0.0, sum(_term(a, b) for a, b in [*zip(p, q, strict=True), rest]))


def _term(p: float, q: float) -> float:
    if p < SMALLEST_PROBABILITY:
        return 0.0
    return p * math.log(p / max(q, SMALLEST_PROBABILITY))
