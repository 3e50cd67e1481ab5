import io
import os
import pty
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.openai_server import SLOW, Heard, serving


@pytest.fixture
def other() -> Iterator[Heard]:
    with serving() as heard:
        yield heard


class TestOnePrompt:
    def test_streams_the_answer_without_thoughts_and_escapes(self, run: Run, other: Heard) -> None:
        ran = run("chat", "m", "hello", "--url", other.url, "--system", "be brief", "--temperature", "0")
        assert (ran.status, ran.out, ran.err) == (0, "You said hello.\n", "")
        assert other.bodies[0] == {
            "model": "m",
            "stream": True,
            "temperature": 0.0,
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello"},
            ],
        }

    def test_comes_from_stdin_where_that_is_no_terminal(
        self, run: Run, other: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("several\nlines\n"))
        assert run("chat", "m", "--url", f"{other.url}/v1/").out == "You said several\nlines.\n"

    def test_must_not_be_empty(self, run: Run, other: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
        assert run("chat", "m", "--url", other.url).status == 2

    def test_json_is_the_whole_answer(self, run: Run, other: Heard) -> None:
        answer = run("chat", "m", "hello", "--url", other.url, "--json").json()
        assert answer["choices"][0]["message"]["content"] == "whole"

    def test_a_stream_that_breaks_exits_with_3(self, run: Run, other: Heard) -> None:
        ran = run("chat", "m", "break", "--url", other.url)
        assert (ran.status, ran.out) == (3, "")
        assert "stopped in mid-answer" in ran.err

    def test_our_own_key_goes_to_no_other_server(
        self, run: Run, other: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LATHE_API_KEY", "secret")
        run("chat", "m", "hello", "--url", other.url)
        run("chat", "m", "hello", "--url", other.url, "--api-key", "theirs")
        assert other.keys == [None, "Bearer theirs"]

    def test_a_key_that_is_refused_says_which_it_was(self, run: Run, other: Heard) -> None:
        ran = run("chat", "m", "hello", "--url", other.url, "--api-key", "wrong")
        assert ran.status == 2
        assert ran.err == "Error: Invalid key. --api-key gives the key that is sent.\n"

    def test_of_an_unknown_model_exits_with_4(self, run: Run, api_url: str) -> None:
        ran = run("chat", "nothing", "hello")
        assert (ran.status, ran.out) == (4, "")
        assert "nothing" in ran.err


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        self.screen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="80", NO_COLOR="1")
            os.execv(argv[0], argv)  # noqa: S606 - no shell is what we want

    def expect(self, text: str, seconds: float = 15) -> None:
        """Wait until `text` has been shown since the last time."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.screen!r}"
            try:
                self.screen += os.read(self.fd, 65536).decode()
            except OSError:
                raise AssertionError(f"ended before {text!r}: {self.screen!r}") from None
        self.screen = self.screen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


class TestTalk:
    def test_keeps_history_and_ctrl_c_stops_only_the_answer(self, other: Heard) -> None:
        lathe = Path(sys.executable).with_name("lathe")
        terminal = Terminal(str(lathe), "chat", "m", "--url", other.url)
        terminal.expect(">>> ")
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
