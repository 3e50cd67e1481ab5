"""`lathe keys` on the database of this machine, and `lathe projects` against the API that runs on it."""

import httpx
import pytest

from db.models import ApiKey, AuditEntry
from db.session import SessionFactory
from db.settings import Settings
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def this_machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", settings.require_database_url())
    monkeypatch.setenv("LATHE_DATA_DIR", str(settings.data_dir))


def authorized(api_url: str, key: str | None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{api_url}/v1/models", headers=headers, trust_env=False).status_code


class TestKeys:
    def test_a_first_key_lets_its_holder_in_and_the_story_ends_with_its_revocation(
        self, run: Run, api_url: str, session_factory: SessionFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "no API keys yet" in run("keys").out
        made = run("keys", "create", "laptop", "--scope", "admin", "--days", "30")
        secret = made.out.strip()
        assert secret.startswith("sk-lathe-")
        assert "from now on every request needs a key" in " ".join(made.err.split())
        assert (authorized(api_url, secret), authorized(api_url, None)) == (200, 401)
        refused = run("projects")
        assert refused.status == 2
        assert "lathe keys create" in refused.err

        monkeypatch.setenv("LATHE_API_KEY", secret)
        assert "default" in run("projects").out
        [row] = run("keys", "list", "--json").json()
        assert (row["name"], row["scopes"], row["status"]) == ("laptop", ["admin"], "active")
        listed = run("keys").out
        assert secret not in listed
        assert [row["id"], "laptop", "default", "admin", "active"] == listed.splitlines()[2].split()[:5]
        assert listed.splitlines()[3].split() == [f"{row['prefix']}…"]
        assert run("keys", "revoke", row["id"], "--json").json()["status"] == "revoked"
        assert "revoked" in run("keys").out
        with session_factory() as session:
            told = [entry.action for entry in session.query(AuditEntry).filter_by(path="lathe keys")]
            assert session.query(ApiKey).count() == 1
        assert sorted(told) == ["create_api_key", "revoke_api_key"]

    @pytest.mark.parametrize(
        ("argv", "status", "said"),
        [
            (("create", "x", "--project", "nowhere"), 4, "no project 'nowhere'"),
            (("create", "x", "--scope", "root"), 2, "root"),
            (("revoke", "key-none"), 4, "no API key 'key-none'"),
        ],
    )
    def test_says_what_is_wrong(self, run: Run, argv: tuple[str, ...], status: int, said: str) -> None:
        ran = run("keys", *argv)
        assert ran.status == status
        assert said in ran.err


@pytest.mark.usefixtures("api_url")
class TestProjects:
    def test_are_made_limited_shown_archived_and_restored(self, run: Run) -> None:
        assert run("projects", "create", "lab", "--jobs", "2", "--bytes", "5000000").status == 0
        changed = run("projects", "quota", "lab", "--jobs", "none", "--gpu-minutes", "90").out
        assert "lab is active; limits: 90 GPU minutes a month, 5.0 MB stored." in changed
        assert "It uses 0 jobs at once, 0 GPU minutes of this month, 0 B." in changed
        row = next(row for row in run("projects", "list", "--json").json() if row["id"] == "lab")
        assert (row["max_jobs"], row["max_gpu_minutes"]) == (None, 90)
        assert "lab is archived" in run("projects", "archive", "lab").out
        assert "lab is active" in run("projects", "restore", "lab").out
        assert run("projects", "show", "lab", "--json").json()["usage"]["jobs"] == 0

    def test_says_what_is_wrong(self, run: Run) -> None:
        assert "is no number of jobs at once" in run("projects", "quota", "lab", "--jobs", "many").err
        assert run("projects", "show", "nowhere").status == 4
        assert run("projects", "create", "No Name").status == 2
