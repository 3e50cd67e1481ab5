import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import Hand, Run

ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
OLD_NAME = "ft:gpt-4o-mini-2024-07-18:acme:Support-FAQ:9x8y7z"
# As OpenAI's client writes a job that it has retrieved.
JOB: dict[str, Any] = {
    "id": "ftjob-abc123DEF456",
    "created_at": 1721764800,
    "error": None,
    "fine_tuned_model": OLD_NAME,
    "finished_at": 1721767800,
    "hyperparameters": {"batch_size": 2, "learning_rate_multiplier": 1.8, "n_epochs": 3},
    "model": "gpt-4o-mini-2024-07-18",
    "object": "fine_tuning.job",
    "organization_id": "org-123",
    "result_files": ["file-xyz"],
    "seed": 683058546,
    "status": "succeeded",
    "trained_tokens": 5849,
    "training_file": "file-old",
    "validation_file": None,
    "estimated_finish": 0,
    "integrations": [],
    "metadata": {"team": "support"},
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"batch_size": 2, "learning_rate_multiplier": 1.8, "n_epochs": 3}},
    },
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    return path


@pytest.fixture
def import_job(run: Run, rows: Path, tmp_path: Path) -> Any:
    def run_with(*arguments: str, **changes: Any) -> Any:
        path = tmp_path / "job.json"
        path.write_text(json.dumps(JOB | changes))
        return run("import-openai", str(path), str(rows), *arguments)

    return run_with


@pytest.mark.usefixtures("api_url")
class TestImport:
    def test_takes_over_hyperparameters_and_the_name(self, import_job: Any, hand: Hand) -> None:
        ran = import_job("--json")
        assert ran.status == 0, ran.err
        job = ran.json()
        expected = {
            "base_model": "tiny", "name": "support-faq", "alias": OLD_NAME, "epochs": 3,
            "effective_batch_size": 2, "learning_rate_multiplier": 1.8, "seed": 683058546,
        }  # fmt: skip
        assert job["params"].items() >= expected.items()
        assert job["metadata"] == {
            "team": "support", "openai_job": JOB["id"], "openai_model": JOB["model"],
        }  # fmt: skip
        assert hand.upload_of(job["params"]["training_file"]) == ROWS
        assert "gpt-4o-mini-2024-07-18 → tiny; n_epochs 3, batch_size 2" in ran.err
        assert f"{OLD_NAME} answers chat here" in ran.err

    def test_a_job_of_before_there_were_methods(self, import_job: Any) -> None:
        ran = import_job("--json", "--name", "mine", method=None, metadata=None, seed=None)
        params = ran.json()["params"]
        assert (params["name"], params["epochs"], params["effective_batch_size"]) == ("mine", 3, 2)

    def test_one_that_has_made_no_model(self, import_job: Any) -> None:
        ran = import_job("--json", fine_tuned_model=None, status="failed")
        params = ran.json()["params"]
        assert (params["name"], params["alias"]) == ("imported-23def456", None)
        assert "no old name to keep" in ran.err

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"object": "list"}, "no fine-tuning job of OpenAI's"),
            ({"method": {"type": "reinforcement", "reinforcement": {}}}, "trained by 'reinforcement'"),
        ],
    )
    def test_refuses_before_anything_is_uploaded(
        self, import_job: Any, hand: Hand, changes: dict[str, Any], words: str
    ) -> None:
        ran = import_job(**changes)
        assert ran.status == 2
        assert words in " ".join(ran.err.split())
        assert hand.jobs() == []

    def test_what_the_server_refuses_leaves_no_upload(
        self, import_job: Any, hand: Hand, api_url: str
    ) -> None:
        ran = import_job("--base", "nothing")
        assert ran.status == 2
        assert "There is no base model 'nothing'" in " ".join(ran.err.split())
        assert hand.jobs() == []
        assert httpx.get(f"{api_url}/v1/files").json()["data"] == []
