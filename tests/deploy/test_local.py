import io
import json
import shutil
import socket
import stat
from pathlib import Path

import pytest

from db.errors import Conflict, InvalidInput
from db.settings import Settings
from deploy.local import doctor, parts, passwords, ports, postgres, report, state
from deploy.local.parts import Secrets
from deploy.local.ports import Port


class TestPassword:
    def test_is_made_once_and_private(self, tmp_path: Path) -> None:
        folder = tmp_path / "secrets"
        first = passwords.password(folder, "postgres")
        assert len(first) == 32
        assert passwords.password(folder, "postgres") == first
        assert passwords.password(folder, "valkey") != first
        assert stat.S_IMODE((folder / "postgres").stat().st_mode) == 0o600

    def test_of_a_database_that_exists_is_not_made_anew(self, tmp_path: Path) -> None:
        (tmp_path / "postgres").mkdir()
        (tmp_path / "postgres" / "PG_VERSION").write_text("18")
        with pytest.raises(Conflict, match="password of the database"):
            _ = Secrets(Settings(data_dir=tmp_path)).postgres

    def test_of_the_user_goes_before_ours(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, flower_password="chosen")
        assert Secrets(settings).flower == "chosen"
        assert not (tmp_path / "secrets").exists()


class TestPorts:
    def test_two_parts_on_one_port_are_told(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, api_port=9000, flower_port=9000)
        with pytest.raises(Conflict, match=r"LATHE_API_PORT or LATHE_FLOWER_PORT"):
            ports.require_free(parts.wanted_ports(settings))

    def test_every_problem_is_told_at_once(self) -> None:
        with socket.socket() as first, socket.socket() as second:
            taken = []
            for holder in (first, second):
                holder.bind(("127.0.0.1", 0))
                holder.listen()
                taken.append(holder.getsockname()[1])
            wanted = [Port("one", "LATHE_ONE_PORT", taken[0]), Port("two", "LATHE_TWO_PORT", taken[1])]
            with pytest.raises(Conflict) as error:
                ports.require_free(wanted)
        assert "LATHE_ONE_PORT" in error.value.message
        assert "LATHE_TWO_PORT" in error.value.message

    def test_named_servers_want_no_port(self, tmp_path: Path) -> None:
        settings = Settings(
            data_dir=tmp_path,
            database_url="postgresql://db/lathe",
            redis_url="redis://broker/0",
            ollama_host="box:11434",
            embedding_server_url="http://embed:8082",
        )
        assert {port.part for port in parts.wanted_ports(settings)} == {"the API", "Flower"}
        assert [external.name for external in parts.externals(settings)] == [
            "postgres", "valkey", "chat", "embeddings",
        ]  # fmt: skip


class TestAddresses:
    def test_are_shown_without_their_secrets(self) -> None:
        url = "postgresql+psycopg2://user:secret@db.example:5432/lathe?sslpassword=secret"
        assert parts.without_secrets(url) == "postgresql+psycopg2://db.example:5432/lathe"

    def test_open_to_others_want_a_key(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="LATHE_API_KEY"):
            parts.require_guarded(Settings(data_dir=tmp_path, api_host="192.0.2.1"))
        parts.require_guarded(Settings(data_dir=tmp_path, api_host="192.0.2.1", api_key="k"))


class TestState:
    def test_is_held_only_while_held(self, tmp_path: Path) -> None:
        assert not state.is_held(tmp_path)
        with state.hold(tmp_path):
            assert state.is_held(tmp_path)
            with pytest.raises(Conflict, match="already runs"), state.hold(tmp_path):
                pass
        assert not state.is_held(tmp_path)

    def test_file_that_is_broken_is_no_state(self, tmp_path: Path) -> None:
        state.run_folder(tmp_path).mkdir()
        (state.run_folder(tmp_path) / "stack.json").write_text('{"pid": 1}')
        assert state.read(tmp_path) is None

    def test_a_pid_that_became_another_process_is_not_ours(self) -> None:
        import os

        assert state.process_of(os.getpid(), state.own_create_time()) is not None
        assert state.process_of(os.getpid(), state.own_create_time() - 100) is None


class TestPipeReporter:
    def test_is_replayed_into_another(self) -> None:
        pipe = io.StringIO()
        sender = report.PipeReporter(pipe)
        sender.done("Postgres", "127.0.0.1:5432")
        sender.problem("worker: exit code 1")
        shown = io.StringIO()
        ready = report.replay(io.StringIO(pipe.getvalue()), report.PlainReporter(shown))
        assert not ready
        assert shown.getvalue().splitlines() == [
            "  Postgres           127.0.0.1:5432",
            "worker: exit code 1",
        ]

    def test_tells_that_the_stack_is_ready(self) -> None:
        lines = json.dumps(["finished", {"API": "http://127.0.0.1:1"}]) + "\n"
        assert report.replay(io.StringIO(lines), report.PlainReporter(io.StringIO()))


class TestDoctor:
    def test_names_every_check_and_how_to_mend_it(self, tmp_path: Path) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            settings = Settings(data_dir=tmp_path, api_port=port)
            findings = doctor.examine(settings)
        by_name = {finding.check: finding for finding in findings}
        assert {"python", "compiler", "cmake", "memory", "shared memory", "gpu", "user"} <= set(by_name)
        assert by_name[f"port {port}"].status == "fail"
        assert by_name[f"port {port}"].fix == "set LATHE_API_PORT"
        assert all(finding.fix for finding in findings if finding.status == "fail")

    def test_postgres_of_another_version_fails(self, tmp_path: Path) -> None:
        (tmp_path / "postgres").mkdir()
        (tmp_path / "postgres" / "PG_VERSION").write_text("15")
        assert any(
            "Postgres 15" in f.message and f.status == "fail"
            for f in doctor.examine(Settings(data_dir=tmp_path))
        )


class TestPostgres:
    def test_makes_a_database_from_binaries_in_a_closed_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = postgres.binaries().parent.parent
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        for folder in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(folder, closed / folder.name, symlinks=True)
        monkeypatch.syspath_prepend(closed)
        assert postgres.binaries().is_relative_to(closed)
        postgres.initialise(closed / "postgres", "password")
        assert (closed / "postgres" / "PG_VERSION").read_text().strip() == str(postgres.MAJOR_VERSION)
