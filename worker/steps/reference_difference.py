"""How far two sets of weights are apart on the same rows, position by position."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.steps.teacher_forcing import DECIDED_NATS, ForcedRow, Reference, perplexity

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightsApart:
    """Means over all compared tokens, of the first weights and the second.

    Args:
        kl: KL(first || second) in nats, over the whole vocabulary.
        top1_agreement: where the first prefer a token clearly, the share at which the second prefer the same.
        perplexity, perplexity_first: of the rows' own tokens, to the second and to the first.
        tokens: positions compared.
    """

    kl: float
    top1_agreement: float
    perplexity: float
    perplexity_first: float
    tokens: int


def between(first: Reference, second: Reference, rows: list[ForcedRow]) -> WeightsApart:
    """Compare what two sets of weights expect of the same rows."""
    kl, agreed, own_first, own_second = 0.0, [], [], []
    for a, b, row in zip(first.log_probabilities, second.log_probabilities, rows, strict=True):
        kl += float((a.double().exp() * (a.double() - b.double())).sum())
        best = a.topk(2).values
        clear = best[:, 0] - best[:, 1] >= DECIDED_NATS
        agreed += (a.argmax(-1) == b.argmax(-1))[clear].tolist()
        own_first += _own(a, row)
        own_second += _own(b, row)
    return WeightsApart(
        kl=max(0.0, kl / max(1, len(own_first))),
        top1_agreement=sum(agreed) / len(agreed) if agreed else 1.0,
        perplexity=perplexity(own_second),
        perplexity_first=perplexity(own_first),
        tokens=len(own_first),
    )


def _own(log_probabilities: "torch.Tensor", row: ForcedRow) -> list[float]:
    """Those of the row's own tokens; (positions, vocab) -> positions."""
    return [float(each[row.ids[at]]) for each, at in zip(log_probabilities, row.positions, strict=True)]
