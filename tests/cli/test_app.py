import json
import os
import subprocess
import sys

import httpx
import pytest

from cli.output import ExitStatus, exit_status
from db.errors import Conflict, InvalidInput, LatheError, NotFound, Unavailable
from tests.cli.conftest import Run


class TestExitStatus:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (InvalidInput("x"), ExitStatus.USAGE),
            (NotFound("x"), ExitStatus.NOT_FOUND),
            (Unavailable("x"), ExitStatus.UNREACHABLE),
            (Conflict("x"), ExitStatus.FAILED),
            (LatheError("x"), ExitStatus.FAILED),
        ],
    )
    def test_tells_errors_apart(self, error: LatheError, status: ExitStatus) -> None:
        assert exit_status(error) is status

    def test_help_explains_it(self, run: Run) -> None:
        ran = run("--help")
        assert ran.status == 0
        for status in ExitStatus:
            assert f"{status.value} " in ran.out


class TestStart:
    def test_loads_nothing_that_only_servers_need(self) -> None:
        heavy = ("celery", "sqlalchemy", "fastapi", "torch", "transformers", "uvicorn")
        code = f"import cli.app, sys; print([name for name in {heavy} if name in sys.modules])"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert shown.stdout == "[]\n"

    def test_colours_are_for_terminals_alone(self, run: Run, api_url: str) -> None:
        ran = run("pretrain", "--name", "small")
        assert "\x1b" not in ran.out + ran.err


class TestVersion:
    def test_tells_those_of_command_api_and_llama_cpp(
        self, run: Run, api_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cli.version.QUICK", httpx.Timeout(60))  # where much else runs, nothing is quick
        versions = run("version", "--json").json()
        assert versions["lathe"] == versions["api"]
        assert versions["api_url"] == api_url
        assert versions["llama_cpp"]

    def test_does_without_a_server(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATHE_API_URL", "http://127.0.0.1:1")
        ran = run("version")
        assert ran.status == 0
        assert "does not answer" in ran.out


class TestKey:
    def test_is_sent_to_our_own_api(self, run: Run, monkeypatch: pytest.MonkeyPatch, api_url: str) -> None:
        monkeypatch.setenv("LATHE_API_KEY", "anything")
        assert run("jobs").status == 0


def test_json_to_a_pipe_is_one_line(run: Run, api_url: str) -> None:
    out = run("models", "--json").out
    assert out.count("\n") == 1
    assert isinstance(json.loads(out), list)
    assert "LATHE_API_URL" in os.environ
