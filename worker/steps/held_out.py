"""What is measured on held-out rows: how likely their answers are, and how near what is answered comes."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.openai_compatible import LlamaServer
from worker.step import Step
from worker.steps.answer_scores import ROUGE, is_exact, rouge
from worker.steps.evaluation_rows import EvaluationRow, EvaluationRows
from worker.steps.teacher_forcing import SLOTS, TOP, ForcedRow, answer_logits, perplexity
from worker.steps.trained_weights import trained_weights

if TYPE_CHECKING:
    import torch

JSON = dict[str, Any]


def loss_of_weights(step: Step, model_folder: Path, rows: EvaluationRows) -> JSON:
    """Mean negative log likelihood (nats) of every token of the answers, by the weights."""
    import torch

    found: list[float] = []
    with trained_weights(model_folder) as model, torch.inference_mode():
        for done, row in enumerate(rows.rows):
            step.progress(done, len(rows.rows), unit="rows")
            found += token_log_probabilities(model, row.forced).tolist()
    return {**_loss(found), "loss_from": "weights"}


def token_log_probabilities(model: Any, row: ForcedRow) -> "torch.Tensor":
    """Log probabilities (positions,) of the row's own tokens, fp32 on the CPU."""
    import torch

    logits = answer_logits(model, row)
    positions = torch.tensor(row.positions, device=logits.device)
    wanted = torch.tensor(row.ids, device=logits.device)[positions]
    before = positions - 1 - (len(row.ids) - len(logits))
    expected = torch.log_softmax(logits[before].float(), dim=-1)
    return expected.gather(-1, wanted[:, None])[:, 0].cpu()


def loss_served(step: Step, server: LlamaServer, rows: EvaluationRows) -> JSON:
    """The same by what a served file tells, a request for each token.

    Returns:
        with `tokens_untold`: tokens that are no whole character, and not among its likeliest either.
    """
    found: list[float | None] = []
    total = sum(len(row.forced.positions) for row in rows.rows)
    with ThreadPoolExecutor(SLOTS) as pool:
        # A row stays on one thread, so that the server finds its beginning in the slot's cache.
        for told in pool.map(lambda row: _told(server, row.forced), rows.rows):
            found += told
            step.progress(len(found), total, unit="tokens")
    known = [each for each in found if each is not None]
    return {**_loss(known), "tokens_untold": len(found) - len(known), "loss_from": "served"}


def _told(server: LlamaServer, row: ForcedRow) -> list[float | None]:
    return [server.log_probability(row.ids[:p], row.ids[p], top=TOP) for p in row.positions]


def _loss(log_probabilities: Iterable[float]) -> JSON:
    found = list(log_probabilities)
    loss = -sum(found) / max(1, len(found))
    return {"loss": loss, "perplexity": perplexity(found), "tokens": len(found)}


def score_answers(
    step: Step,
    server: LlamaServer,
    rows: EvaluationRows,
    *,
    max_tokens: int,
    context: int,
    metrics: list[str],
) -> tuple[JSON, list[str]]:
    """Let the server answer every row greedily, and hold its answers against the rows' own.

    Args:
        context: tokens of a slot of the server.

    Returns:
        the figures, and the answers in the order of the rows.
    """

    def ask(row: EvaluationRow) -> tuple[str, bool]:
        room = min(max_tokens, context - len(row.prompt))
        if room < 1:
            return "", False
        answer = server.complete(row.prompt, max_tokens=room)
        return answer.text, answer.stopped_by_itself

    answers: list[str] = []
    ended = 0
    with ThreadPoolExecutor(SLOTS) as pool:
        for text, stopped in pool.map(ask, rows.rows):
            answers.append(text)
            ended += stopped
            step.progress(len(answers), len(rows.rows), unit="rows")
    pairs = [(row.answer, answer) for row, answer in zip(rows.rows, answers, strict=True)]
    figures: JSON = {"answers": len(answers), "cut_off": len(answers) - ended}
    if "exact_match" in metrics:
        figures["exact_match"] = sum(is_exact(*pair) for pair in pairs) / len(pairs)
    if "rouge" in metrics:
        scores = [rouge(*pair) for pair in pairs]
        figures |= {name: sum(score[name] for score in scores) / len(scores) for name in ROUGE}
    return figures, answers
