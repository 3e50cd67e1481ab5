"""From what a job's steps returned to a model's version."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Event, ModelVersion
from db.queries.models import resolve
from db.states import JobKind
from tests.rows import add_job
from worker.publishing import publish_version


def published(session: Session, folder: str | None) -> ModelVersion:
    """The version that a pull comes to."""
    params = {"source": {"file": None, "hub": "org/name", "ollama": None}, "name": "pulled"}
    job = add_job(session, kind=JobKind.PULL, params=params)
    session.flush()
    row: dict[str, Any] = {"quantization": "Q8_0", "path": "pulled-Q8_0.gguf", "bytes": 4, "sha256": "0" * 64}
    results = {
        "pull": {"files": [row], "folder": folder, "architecture": "llama", "source": {"revision": "abc"}},
        "verify": {"files": [{"quantization": "Q8_0", "answers": 1}]},
        "publish": {
            "model": "pulled",
            "files": [{**row, "backend": "llama_server", "backend_name": "pulled-v-000000000000"}],
            "context_length": 256,
        },
    }
    for step in job.steps:
        step.result, step.succeeded_attempt = results[step.name], 1
    session.flush()
    result = publish_version(session, job, job.steps)
    assert (result["model"], result["version"]) == ("pulled", 1)
    return resolve(session, "default", "pulled").version


class TestPull:
    @pytest.mark.parametrize("folder", [None, "model"])
    def test_says_where_it_came_from_and_is_a_base_if_it_has_weights(
        self, session: Session, folder: str | None
    ) -> None:
        version = published(session, folder)
        assert version.details["source"] == {"revision": "abc"}
        assert version.weights == (f"jobs/{version.job_id}/pull/1/model" if folder else None)
        assert version.files[0].verification == {"quantization": "Q8_0", "answers": 1}


class TestQuantize:
    def test_tells_what_it_was_estimated_to_take_beside_what_it_took(self, session: Session) -> None:
        params = {"base_model": "tiny", "name": "smaller"}
        job = add_job(session, kind=JobKind.QUANTIZE, params=params)
        session.flush()
        foretold = {"seconds": 10.0, "peak_bytes": 100}
        results: dict[str, Any] = {
            "quantize": {"folder": "model", "estimate": {"foretold": foretold}, "peak_memory_bytes": 150},
            "verify": {"files": [], "measured": {"kl": 0.01}},
            "publish": {"model": "smaller", "files": [], "context_length": 256},
        }
        for step in job.steps:
            step.result, step.succeeded_attempt = results[step.name], 1
        session.flush()
        told = publish_version(session, job, job.steps)["estimate"]
        assert (told["peak_memory_bytes"], told["took_peak_memory_bytes"]) == (100, 150)
        assert (told["seconds"], told["took_seconds"]) == (10.0, 0.0)
        said = session.scalars(select(Event.message).where(Event.job_id == job.id))
        assert any("1.50 times" in message for message in said)
