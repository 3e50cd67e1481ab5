"""How numbers of things are said."""

from collections.abc import Mapping
from typing import Any

BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def counted(number: int, noun: str) -> str:
    """Write `1 page`, `2 pages`, `12,000 chunks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def how_far(step: str, progress: Mapping[str, Any] | None) -> str:
    """Write `pull, 1.2 of 3.5 GB (34 %), about 80 s left`, of a running step."""
    done, total = (progress or {}).get("done"), (progress or {}).get("total")
    if progress is None or done is None or not total:
        return step
    if progress.get("unit") == "B":
        scale, unit = next(each for each in BYTES if total >= each[0])
        amount = f"{done / scale:.1f} of {total / scale:.1f} {unit}"
    else:
        amount = f"{done:,} of {total:,} {progress.get('unit') or ''}".rstrip()
    left = progress.get("eta_seconds")
    return f"{step}, {amount} ({int(100 * done / total)} %)" + (f", about {left:.0f} s left" if left else "")
