"""What an estimate takes: the params of the job that it is of."""

from db.params.fine_tune import FineTuneParams
from db.params.quantize import QuantizeParams


class EstimateParams(FineTuneParams):
    """What a fine-tune with these params would take, and whether it fits, without training."""


class EstimateQuantizeParams(QuantizeParams):
    """What quantising with these params would take, and whether it fits, without quantising."""
