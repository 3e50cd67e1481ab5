"""Among how many processes a training is divided here, and what its user is told of it."""

from typing import Any

from training_data.division import Division, divide
from worker.step import Step


def divided(step: Step, chosen: dict[str, Any], ranks: int, *, least: int = 1) -> Division:
    """`divide`, and tell the user how; nothing is said where one process trains, as it always did."""
    division = divide(chosen["batch_size"], chosen["gradient_accumulation_steps"], ranks, least=least)
    effective = division.effective_batch
    if division.ranks < ranks:
        step.event(
            f"{ranks} processes could train together, but {effective} rows a step of the optimizer cannot be "
            f"divided among them equally: {division.ranks} train{'s' * (division.ranks == 1)}. An "
            f"effective_batch_size that is a multiple of {ranks * least} uses all.",
            level="warn",
            processes=division.ranks,
        )
    if division.ranks > 1:
        step.event(
            f"{division.ranks} processes train together: of the {effective} rows of a step of the optimizer "
            f"each takes {division.batch_size * division.accumulation}, in micro-batches of "
            f"{division.batch_size}.",
            processes=division.ranks,
            batch_size=division.batch_size,
            gradient_accumulation_steps=division.accumulation,
        )
    return division


def most_ranks(step: Step) -> int:
    """How many processes could train together here: one on each GPU, or as many as the settings say; of a
    cluster, as many as the operator says.
    """
    import torch

    if step.input.cluster is not None:
        return int(step.input.cluster["num_workers"])

    return torch.cuda.device_count() if torch.cuda.is_available() else step.input.settings.train_processes


def tell_repeated(step: Step, rows: int, division: Division) -> None:
    """Say of how many rows an epoch has too few for all processes to get as many batches."""
    repeated = -rows % (division.ranks * division.batch_size)
    if division.ranks > 1 and repeated:
        step.event(
            f"{repeated} of the {rows} rows are seen twice in each epoch, so that every process has as many.",
            repeated=repeated,
        )
