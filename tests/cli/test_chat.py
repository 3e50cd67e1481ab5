import io
import json
import os
import signal
import subprocess
import sys
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


class TestPipes:
    """Through a shell's pipes, as a process of its own."""

    @staticmethod
    def run_piped(other: Heard, *argv: str, stdin: bytes | None) -> subprocess.CompletedProcess[bytes]:
        lathe = Path(sys.executable).with_name("lathe")
        environment = {**os.environ, "FORCE_COLOR": "", "TERM": "xterm"}
        return subprocess.run(
            [lathe, "chat", "m", *argv, "--url", other.url], input=stdin, capture_output=True, timeout=30,
            check=False, env=environment,
        )  # fmt: skip

    def test_what_is_piped_in_follows_the_prompt_and_no_colours_come_out(self, other: Heard) -> None:
        ran = self.run_piped(other, "summarise", stdin=b"a long text\n")
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout == b"You said summarise\n\na long text.\n"
        assert other.bodies[0]["messages"] == [{"role": "user", "content": "summarise\n\na long text"}]

    def test_a_file_that_is_empty_adds_nothing(self, other: Heard, tmp_path: Path) -> None:
        ran = self.run_piped(other, "hello", stdin=b"")
        assert ran.stdout == b"You said hello.\n"

    def test_an_interrupt_ends_it_with_130(self, other: Heard) -> None:
        lathe = Path(sys.executable).with_name("lathe")
        argv = [lathe, "chat", "m", SLOW, "--url", other.url]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 130


class TestFiles:
    def test_a_conversation_goes_on_from_run_to_run(self, run: Run, other: Heard, tmp_path: Path) -> None:
        kept = tmp_path / "talk.json"
        first = ("--system", "be brief", "--temperature", "0.5", "--save", str(kept))
        assert run("chat", "m", "one", "--url", other.url, *first).status == 0
        assert (
            run("chat", "n", "two", "--url", other.url, "--load", str(kept), "--save", str(kept)).status == 0
        )
        body = other.bodies[1]
        assert (body["model"], body["temperature"]) == ("n", 0.5)
        roles = [(turn["role"], turn["content"]) for turn in body["messages"]]
        assert [role for role, _ in roles] == ["system", "user", "assistant", "user"]
        assert [roles[0][1], roles[-1][1]] == ["be brief", "two"]
        saved = json.loads(kept.read_text())
        assert [turn["role"] for turn in saved["messages"]][-2:] == ["user", "assistant"]

    def test_another_file_is_not_written_over(self, run: Run, other: Heard, tmp_path: Path) -> None:
        kept = tmp_path / "letter.json"
        kept.write_text("mine")
        ran = run("chat", "m", "one", "--url", other.url, "--save", str(kept))
        assert (ran.status, kept.read_text(), other.bodies) == (2, "mine", [])
        assert "is there already" in ran.err

    def test_an_answer_from_a_collection_says_where_it_stands(self, run: Run, other: Heard) -> None:
        ran = run("chat", "m", "hello", "--url", other.url, "-c", "office")
        assert other.bodies[0]["collections"] == ["office"]
        assert ran.out == "You said hello.\n\n[1] handbook.pdf, p. 2 (Leave)\n"
        assert "One is missing." in ran.err
