"""A stack of a test's own, as `lathe up` starts it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine, text

from deploy.local import postgres
from deploy.local.passwords import password
from serving.local_port import free_port

JSON = dict[str, Any]
LATHE = str(Path(sys.executable).parent / "lathe")
JOB_SECONDS = 300  # on cores that others keep busy


class Stack:
    """A running `lathe up` and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.ports = {
            name: free_port() for name in ("api", "flower", "postgres", "valkey", "chat", "embedding")
        }
        self.environment = os.environ | {
            "LATHE_DATA_DIR": str(self.data_dir),
            **{f"LATHE_{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
            "LATHE_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",  # where a test's receiver is
        }
        self.url = f"http://127.0.0.1:{self.ports['api']}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def lathe(self, *arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LATHE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def upload(self, name: str, content: bytes) -> str:
        answer = self.client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
        answer.raise_for_status()
        return str(answer.json()["id"])

    def submit(self, kind: str, params: JSON, **fields: Any) -> JSON:
        answer = self.client.post("/v1/jobs", json={"kind": kind, "params": params, **fields})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def wait(self, job_id: str, *, until: frozenset[str], seconds: float = JOB_SECONDS) -> JSON:
        deadline = time.monotonic() + seconds
        while True:
            job: JSON = self.client.get(f"/v1/jobs/{job_id}").json()
            if job["status"] in until:
                return job
            assert time.monotonic() < deadline, f"still {job['status']}: {json.dumps(job)[-3000:]}"
            time.sleep(0.2)

    def finish(self, job_id: str, *, seconds: float = JOB_SECONDS) -> JSON:
        return self.wait(job_id, until=frozenset({"succeeded", "failed", "cancelled"}), seconds=seconds)

    def ask(self, model: str, question: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 40,
        }
        answer = self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def sql(self, query: str, **values: Any) -> list[Any]:
        secret = password(self.data_dir / "secrets", "postgres")
        engine = create_engine(postgres.database_url(self.ports["postgres"], secret))
        with engine.connect() as connection:
            rows = list(connection.execute(text(query), values))
        engine.dispose()
        return rows
