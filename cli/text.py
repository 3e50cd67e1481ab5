"""How figures and foreign text are written for a person."""

import re
import time
import unicodedata

ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")

TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def duration(seconds: float) -> str:
    """Write a time span as `0.4 s`, `41 s`, `3m 05s` or `2h 07m`."""
    seconds = max(0.0, seconds)
    if 0 < seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds < 59.5 else "1m 00s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Write a number of bytes in decimal units, as disks and downloads are measured."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} TB"


def figure(value: float) -> str:
    """Write a measured value with the four digits that a person reads."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.2e}"


def moment(unix_seconds: float) -> str:
    """Write a time of today as a clock's, any other with its date, both local."""
    then = time.localtime(unix_seconds)
    today = time.localtime()
    same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def harmless(text: str) -> str:
    """Take out control characters, so that a model's answer or a log cannot command the terminal, and those
    that turn the direction of writing, so that it cannot show one thing and be another."""
    text = TURNING.sub("", ESCAPE_SEQUENCE.sub("", text))
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
