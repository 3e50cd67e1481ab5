"""Tables as all commands draw them."""

from rich import box
from rich.table import Table


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table as all commands draw it: no lines but one under the heads."""
    made = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def keep_whole(made: Table, *columns: int) -> None:
    """Let the other columns be folded before these, whose values are short, or there to be copied."""
    for column in columns:
        made.columns[column].no_wrap = True
