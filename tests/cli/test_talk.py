"""The conversation at the terminal."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.openai_server import SLOW, Heard, serving
from tests.cli.terminal import Terminal


@pytest.fixture
def other() -> Iterator[Heard]:
    with serving() as heard:
        yield heard


def talk_to(other: Heard) -> Terminal:
    """`lathe chat` at its first prompt."""
    lathe = Path(sys.executable).with_name("lathe")
    terminal = Terminal(str(lathe), "chat", "m", "--url", other.url)
    terminal.expect(">>> ")
    return terminal


class TestTalk:
    def test_keeps_history_and_ctrl_c_stops_only_the_answer(self, other: Heard) -> None:
        terminal = talk_to(other)
        terminal.type("one\r")
        terminal.expect("You said one.")
        terminal.expect(">>> ")
        terminal.type(f"{SLOW}\r")
        terminal.expect("word word")
        terminal.type("\x03")
        terminal.expect("Stopped.")
        assert other.left_early.wait(5)
        terminal.expect(">>> ")
        terminal.type("\x03")
        terminal.expect("Ctrl-D ends.")
        terminal.type('"""two\r')
        terminal.expect("... ")
        terminal.type('lines"""\r')
        terminal.expect("You said two")
        terminal.expect(">>> ")
        terminal.type("/reset\r")
        terminal.expect("Begun anew.")
        terminal.type("last\r")
        terminal.expect("You said last.")
        terminal.expect(">>> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
        asked = [[turn["content"] for turn in body["messages"]] for body in other.bodies]
        assert asked[1][:2] == ["one", "You said \x1b[31mone."]
        assert asked[2][2] == SLOW
        assert asked[2][3].endswith("word ")
        assert asked[2][-1] == "two\nlines"
        assert asked[3] == ["last"]

    def test_obeys_commands(self, other: Heard, tmp_path: Path) -> None:
        kept = tmp_path / "talk.json"
        terminal = talk_to(other)

        def order(line: str, *shown: str) -> None:
            terminal.type(f"{line}\r")
            terminal.expect(line)
            for text in shown:
                terminal.expect(text)
            terminal.expect(">>> ")

        order("/help", "/models", "/save FILE", "Ctrl-C")
        order("/nonsense", "There is no /nonsense. /help lists what there is.")
        order("/models", "* m", "  other")
        order("/model other", "Talking to other.")
        order("/model none-such", "no /v1/models/none-such")
        order("/system Be brief.", "System prompt: Be brief.")
        order("/set temperature 0.25", "temperature 0.25")
        order("/set num_predict 9", "max_tokens 9")
        order("/set top_p 7", "top_p takes a number from 0 to 1, or `default`: not '7'.")
        order("/set warmth 1", "There is no parameter 'warmth'.")
        order("/collections office nowhere", "There is no collection nowhere.")
        order("/collections 'two words'", "  office", "* two words")
        order("/copy", "There is no answer to copy yet.")
        order("break", "stopped in mid-answer", "/retry asks it again.")
        order("/collections none", "  office")
        order("/reset", "Begun anew.")
        order("first", "You said first.")
        order("/retry", "You said first.")
        order("/copy", "\x1b]52;c;WW91IHNhaWQg", "Copied, if")
        order(f"/save {kept}", "Saved 2 messages to")
        order("second", "You said second.")
        order(f"/save {kept}", "Saved 4 messages to")
        order("/reset", "Begun anew.")
        order(f"/load {kept}", "Loaded 4 messages from", "You said second.")
        order("/set max_tokens default")
        order("third", "You said third.")
        terminal.type("/bye\r")
        assert terminal.wait() == 0

        broken, _, again, *_, last = other.bodies
        assert (broken["model"], broken["collections"]) == ("other", ["two words"])
        assert (again["temperature"], again["max_tokens"], "collections" in again) == (0.25, 9, False)
        assert [turn["content"] for turn in again["messages"]] == ["Be brief.", "first"]
        assert "max_tokens" not in last
        assert [turn["content"] for turn in last["messages"] if turn["role"] == "user"] == [
            "first", "second", "third",
        ]  # fmt: skip

    def test_completes_commands(self, other: Heard) -> None:
        terminal = talk_to(other)
        terminal.type("/syst\t\r")
        terminal.expect("System prompt: none")
        terminal.expect(">>> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
