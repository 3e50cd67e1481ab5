import io
from typing import Any

from rich.console import Console

from cli.data_view import print_inspection

JSON = dict[str, Any]
SPANS = [
    {"text": "<user>Who?", "learnt": False, "cut": False},
    {"text": "She.\x1b[2J", "learnt": True, "cut": False},
    {"text": " And he.", "learnt": True, "cut": True},
]


def found(**changes: Any) -> JSON:
    conversation = {"side": "chosen", "tokens": 9, "learnt_tokens": 3, "characters": 40, "spans": SPANS}
    return {
        "data_files": [
            {"filename": "a.csv", "kind": "csv", "format": "kto", "columns": "x", "rows": 12, "weight": 0.5}
        ],
        "rows": {"train": 10, "validation": 1, "test": 1},
        "left_out": 2,
        "method": "dpo",
        "roles": {"user": 12, "assistant": 12},
        "tokens": {
            "percentiles": {"p50": 8},
            "longest": 900,
            "histogram": [{"from": 0, "to": 500, "rows": 11}, {"from": 500, "to": 1000, "rows": 1}],
        },
        "max_length": 400,
        "context_length": 512,
        "cut": {"rows": 1, "answers": 1},
        "samples": [{"file": "a.csv", "line": 2, "label": None, "conversations": [conversation]}],
        **changes,
    }


def shown(inspection: JSON, warnings: list[str], *, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=colour, color_system="standard" if colour else None)
    print_inspection(console, inspection, warnings)
    return out.getvalue()


class TestInspection:
    def test_tells_rows_lengths_and_what_is_cut(self) -> None:
        text = shown(found(), ["2 rows say what an earlier row says"])
        assert "10 rows to train on, 1 to validate, 1 to test, 2 left out; by the method dpo." in text
        assert "Turns: 12 of the user, 12 of the assistant." in text
        assert "max_length 400 of the model's 512: 1 rows are cut, and of 1 of them the answer." in text
        assert "! 2 rows say what an earlier row says" in text

    def test_shows_a_row_with_what_is_learnt_in_colour(self) -> None:
        text = shown(found(), [], colour=True)
        assert "a.csv:2, chosen: 9 tokens, 3 learnt" in text
        assert "\x1b[1;32mShe.\x1b[0m" in text
        assert "\x1b[9;31m And he.\x1b[0m" in text

    def test_says_how_much_of_a_long_row_is_not_shown(self) -> None:
        assert "more characters" in shown(found(), [])

    def test_lets_no_row_command_the_terminal(self) -> None:
        assert "\x1b[2J" not in shown(found(), [], colour=True)
