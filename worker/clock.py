"""The host's clock for leases: shared by a worker and its children, and running on while a host sleeps."""

import time


def host_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
