"""An inspection of training data, as a person reads it in a terminal."""

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from cli.tables import table
from cli.text import harmless

JSON = dict[str, Any]
BAR_COLUMNS = 40
# Of a piece of text: what bears the loss, what is only read, what is cut off.
LEARNT, READ, CUT = "bold green", "dim", "red strike"


def print_inspection(console: Console, found: JSON, warnings: list[str]) -> None:
    """Files, lengths, what is odd, and the first rows in colour."""
    _print_files(console, found)
    _print_lengths(console, found)
    for warning in warnings:
        console.print(Text(f"! {harmless(warning)}", "yellow"), soft_wrap=True)
    if not warnings:
        console.print("Nothing is cut, doubled, leaks or is odd.", style="green")
    for sample in found["samples"]:
        _print_sample(console, sample)
    if found["samples"]:
        legend = Text.assemble(("learnt", LEARNT), "  ", ("read", READ), "  ", ("cut off", CUT))
        console.print(legend)


def _print_files(console: Console, found: JSON) -> None:
    made = table("File", "Kind", "Format", "Columns", "Rows", "Weight", right=("Rows", "Weight"))
    for file in found["data_files"]:
        weight = f"{file['weight']:g}"
        made.add_row(
            harmless(file["filename"]), file["kind"], file["format"], harmless(file["columns"]),
            f"{file['rows']:,}", weight,
        )  # fmt: skip
    console.print(made)
    rows, roles = found["rows"], found["roles"]
    left_out = f", {found['left_out']} left out" if found["left_out"] else ""
    console.print(
        f"{rows['train']:,} rows to train on, {rows['validation']:,} to validate, {rows['test']:,} to test"
        f"{left_out}; by the method {found['method']}.",
        markup=False,
    )
    if roles:
        spoken = ", ".join(f"{count:,} of the {role}" for role, count in roles.items())
        console.print(f"Turns: {spoken}.", markup=False)


def _print_lengths(console: Console, found: JSON) -> None:
    tokens = found["tokens"]
    shown = "  ".join(f"{name} {count:,}" for name, count in tokens["percentiles"].items())
    console.print(f"Tokens of a row: {shown}  longest {tokens['longest']:,}", markup=False, soft_wrap=True)
    most = max(bar["rows"] for bar in tokens["histogram"])
    for bar in tokens["histogram"]:
        length = round(BAR_COLUMNS * bar["rows"] / most)
        beyond = bar["from"] >= found["max_length"]
        line = Text(f"{bar['from']:>8,} ")
        line.append("█" * length or ("▏" if bar["rows"] else ""), "red" if beyond else "cyan")
        line.append(f" {bar['rows']:,}" if bar["rows"] else "", "dim")
        console.print(line)
    console.print(
        f"max_length {found['max_length']:,} of the model's {found['context_length']:,}: "
        f"{found['cut']['rows']:,} rows are cut, and of {found['cut']['answers']:,} of them the answer.",
        markup=False,
    )


def _print_sample(console: Console, sample: JSON) -> None:
    for conversation in sample["conversations"]:
        text = Text()
        for span in conversation["spans"]:
            text.append(harmless(span["text"]), CUT if span["cut"] else LEARNT if span["learnt"] else READ)
        shown = sum(len(span["text"]) for span in conversation["spans"])
        if shown < conversation["characters"]:
            text.append(f" … {conversation['characters'] - shown:,} more characters", "italic")
        side = f", {conversation['side']}" if conversation["side"] else ""
        label = "" if sample["label"] is None else f", {'good' if sample['label'] else 'bad'}"
        title = (
            f"{sample['file']}:{sample['line']}{side}{label}: {conversation['tokens']} tokens, "
            f"{conversation['learnt_tokens']} learnt"
        )
        console.print(Panel(text, title=Text(harmless(title)), title_align="left", border_style="dim"))
