"""How the rows of one step of the optimiser are divided among processes that train together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """ranks × batch_size × accumulation is what the job asked for, whatever the number of ranks.

    Args:
        ranks: how many processes train together.
        batch_size: rows of one micro-batch, of each.
        accumulation: micro-batches to one step of the optimiser, of each.
        parallel: `ddp`, `fsdp` or `deepspeed`; None where one trains.
    """

    ranks: int
    batch_size: int
    accumulation: int
    parallel: str | None = None

    @property
    def effective_batch(self) -> int:
        return self.ranks * self.batch_size * self.accumulation

    @property
    def sharded(self) -> bool:
        return self.parallel == "fsdp"


def divide(batch_size: int, accumulation: int, ranks: int, *, least: int = 1) -> Division:
    """Divide among as many as can have equal shares, in micro-batches no larger than were asked for.

    Args:
        ranks: that there could be.
        least: rows that a micro-batch must have.
    """
    effective = batch_size * accumulation
    for each in range(ranks, 1, -1):
        share, rest = divmod(effective, each)
        fitting = range(min(batch_size, share), least - 1, -1)
        rows = next((rows for rows in fitting if share % rows == 0), None)
        if rest == 0 and rows is not None:
            return Division(each, rows, share // rows)
    return Division(1, batch_size, accumulation)
