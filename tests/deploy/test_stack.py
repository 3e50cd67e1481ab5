"""`lathe up` and its kin, on real servers."""

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from deploy.local import state
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.deploy.conftest import Installation

PARTS = {"supervisor", "postgres", "valkey", "chat", "embeddings", "api", "worker", "flower"}


def interrupt_at(stage: str, installation: "Installation", exit_code: int) -> None:
    """Run `lathe up` until it has printed the line of `stage`, and press Ctrl-C."""
    process = installation.up()
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith(stage):
            break
    process.send_signal(signal.SIGINT)
    lines.append(process.stdout.read())
    process.stdout.close()
    assert process.wait(45) == exit_code, "".join(lines)
    watchdog.cancel()
    assert [str(left) for left in installation.processes()] == []


class TestRunning:
    def test_status_lists_every_part_well_and_with_its_memory(self, running: "Installation") -> None:
        status = running.status()
        assert status["ready"]
        parts = {part["name"]: part for part in status["parts"]}
        assert set(parts) == PARTS
        for name, part in parts.items():
            assert part["health"] == "ok", name
            assert psutil.pid_exists(part["pid"])
            assert part["rss_bytes"] > 2**20
            assert part["restarts"] == 0
        assert parts["api"]["port"] == running.ports["LATHE_API_PORT"]

    def test_status_for_people_names_addresses_and_the_password(self, running: "Installation") -> None:
        shown = running.lathe("status")
        assert shown.returncode == 0
        status = running.status()
        assert status["api_url"] in shown.stdout
        assert status["flower_password"] in shown.stdout

    def test_second_up_says_that_one_runs(self, running: "Installation") -> None:
        second = running.lathe("up", "--detach")
        status = running.status()
        assert second.returncode == 1
        assert f"pid {status['pid']}" in second.stdout
        assert status["api_url"] in second.stdout

    def test_secrets_are_in_no_argv_and_readable_by_their_owner_only(self, running: "Installation") -> None:
        folder = running.data_dir / "secrets"
        secrets = [path.read_text().strip() for path in folder.iterdir()]
        assert len(secrets) == 5
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
        command_lines = [" ".join(process.cmdline()) for process in running.processes()]
        assert len(command_lines) >= len(PARTS)
        assert not [line for line in command_lines for secret in secrets if secret in line]

    def test_flower_asks_for_the_password(self, running: "Installation") -> None:
        import httpx

        status = running.status()
        url = f"{status['flower_url']}/api/workers"
        assert httpx.get(url, trust_env=False).status_code == 401
        login = (status["flower_user"], status["flower_password"])
        assert httpx.get(url, auth=login, trust_env=False).status_code == 200

    def test_logs_prints_the_end_of_one_part(self, running: "Installation") -> None:
        shown = running.lathe("logs", "postgres", "-n", "3")
        assert shown.returncode == 0
        assert len(shown.stdout.splitlines()) == 3
        assert "ready to accept connections" in running.lathe("logs", "postgres").stdout

    def test_logs_names_the_logs_there_are(self, running: "Installation") -> None:
        shown = running.lathe("logs", "nothing")
        assert shown.returncode == 4
        assert "worker" in shown.stderr

    def test_doctor_knows_its_own_ports(self, running: "Installation") -> None:
        shown = running.lathe("doctor")
        assert shown.returncode == 0, shown.stdout
        assert "running" in shown.stdout

    @pytest.mark.parametrize("name", ["valkey", "worker"])
    def test_killed_part_is_started_again(self, running: "Installation", name: str) -> None:
        before = running.part(name)
        os.kill(before["pid"], signal.SIGKILL)

        def came_back() -> bool:
            stack = state.read(running.data_dir)
            assert stack is not None
            [now] = [part for part in stack.parts if part.name == name]
            return now.pid not in (None, before["pid"]) and now.state == "ready"

        # By the file, since each look by the command line is a process of its own.
        wait_until(came_back, seconds=30, every=0.2)
        wait_until(lambda: running.part(name)["health"] == "ok", seconds=30)
        after = running.part(name)
        assert after["restarts"] == before["restarts"] + 1
        assert after["note"] == "ended by SIGKILL"
        assert f"{name}: ended by SIGKILL" in (running.data_dir / "logs" / "supervisor.log").read_text()


class TestEnd:
    def test_kill_of_the_supervisor_leaves_nothing(self, running: "Installation") -> None:
        """The last that looks at the running stack: it ends it."""
        supervisor = running.status()["pid"]
        assert len(running.processes()) >= len(PARTS)
        os.kill(supervisor, signal.SIGKILL)
        # At once: some of the old parts are still ending.
        interrupt_at("Stop", running, exit_code=0)
        assert running.lathe("status").returncode == 3
        assert "nothing runs" in running.lathe("down").stdout

    @pytest.mark.parametrize("stage", ["Postgres", "migrations"])
    def test_interrupt_leaves_nothing(self, installation: "Installation", stage: str) -> None:
        interrupt_at(stage, installation, exit_code=130)

    def test_interrupt_while_the_database_is_made_leaves_nothing(self, installation: "Installation") -> None:
        process = installation.up()
        wait_until(lambda: list(installation.data_dir.glob(".postgres-*")))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=45)
        assert process.returncode == 130, output
        assert [str(p) for p in installation.processes()] == []
        assert not list(installation.data_dir.glob(".postgres-*"))


class TestRefusals:
    def test_taken_port_is_named_with_its_holder_and_its_setting(self, installation: "Installation") -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", installation.ports["LATHE_CHAT_PORT"]))
            holder.listen()
            refused = installation.lathe("up", "--detach")
        assert refused.returncode == 1
        assert f"port {installation.ports['LATHE_CHAT_PORT']}" in refused.stdout
        assert "LATHE_CHAT_PORT" in refused.stdout
        assert f"pid {os.getpid()}" in refused.stdout
        assert installation.processes() == []

    def test_postgres_of_another_major_version_is_refused(self, installation: "Installation") -> None:
        folder = installation.data_dir / "postgres"
        folder.mkdir(parents=True)
        (folder / "PG_VERSION").write_text("16\n")
        refused = installation.lathe("up", "--detach")
        assert refused.returncode == 1
        assert "Postgres 16" in refused.stdout
        assert "pg_dumpall" in refused.stdout
        doctor = installation.lathe("doctor")
        assert doctor.returncode == 1
        assert "pg_dumpall" in " ".join(doctor.stdout.split())

    def test_open_address_without_a_key_is_refused(self, installation: "Installation") -> None:
        refused = installation.lathe("up", "--detach", LATHE_API_HOST="192.0.2.1")
        assert refused.returncode == 1
        assert "LATHE_API_KEY" in refused.stdout

    def test_part_that_keeps_dying_is_reported_with_the_end_of_its_log(
        self, installation: "Installation", database_url: str, redis_url: str
    ) -> None:
        installation.environment |= {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        # Where the worker expects the file that ties the folder to its database.
        (installation.data_dir / "storage" / "storage-id").mkdir(parents=True)
        refused = installation.lathe("up", "--detach")
        assert refused.returncode == 1
        assert "does not start (exit code 1)" in refused.stdout
        assert "IsADirectoryError" in refused.stdout
        assert installation.processes() == []

    def test_folder_that_cannot_be_written_is_named(
        self, installation: "Installation", tmp_path: Path
    ) -> None:
        blocker = tmp_path / "file"
        blocker.write_text("")
        refused = installation.lathe("up", "--detach", LATHE_DATA_DIR=str(blocker / "data"))
        assert refused.returncode != 0
        assert str(blocker) in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr


class TestServersOfTheUser:
    def test_are_used_in_place_of_ours(
        self, installation: "Installation", database_url: str, redis_url: str
    ) -> None:
        theirs = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        installation.environment |= theirs
        started = installation.lathe("up", "--detach")
        assert started.returncode == 0, started.stdout
        assert started.stdout.count("(yours)") == 2
        parts = {part["name"]: part for part in installation.status()["parts"]}
        stopped: subprocess.CompletedProcess[str] = installation.lathe("down")
        assert parts["postgres"]["state"] == "external"
        assert parts["postgres"]["pid"] is None
        assert parts["postgres"]["health"] == "ok"
        assert "@" not in parts["postgres"]["address"]
        assert parts["valkey"]["state"] == "external"
        assert stopped.returncode == 0
        assert installation.processes() == []
