"""What an estimate takes: the params of the fine-tune that it is of."""

from db.params.fine_tune import FineTuneParams


class EstimateParams(FineTuneParams):
    """What a fine-tune with these params would take, and whether it fits, without training."""
