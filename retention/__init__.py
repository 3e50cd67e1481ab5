"""What ages out, and what was left behind: found, and removed.

Each rule finds what may go, a batch at a time, and removes one thing in one short transaction that looks
again first. A worker does it at a modest pace (`worker/housekeeping.py`), `lathe gc` at once.
"""

from retention.jobs import JOBS
from retention.leavings import LEAVINGS
from retention.records import RECORDS
from retention.reusable import REUSABLE
from retention.rule import HOUSEKEEPING_LOCK, Batch, Expired, House, Removal, Rule
from retention.vector_indexes import VECTOR_INDEXES

RULES: tuple[Rule, ...] = (*JOBS, *RECORDS, *REUSABLE, *LEAVINGS, *VECTOR_INDEXES)

__all__ = ["HOUSEKEEPING_LOCK", "RULES", "Batch", "Expired", "House", "Removal", "Rule"]
