"""How numbers of things are said."""


def counted(number: int, noun: str) -> str:
    """Write `1 page`, `2 pages`, `12,000 chunks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
