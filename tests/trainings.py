"""A fine-tune that has come as far as its training, by rows and files as its steps leave them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from db.ids import new_id
from db.models import Checkpoint, Step
from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.storage import attempt_folder


def listed(folder: Path, manifest: str) -> None:
    files = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / manifest).write_text(json.dumps({"files": files}))


@dataclass
class Training:
    """A fine-tune that has come as far as its training, with files as its steps leave them."""

    job_id: str
    root: Path
    sessions: SessionFactory

    def folder(self, step: str) -> Path:
        return attempt_folder(self.root, self.job_id, step, 1)

    def succeed(self, *steps: str) -> None:
        with transaction(self.sessions) as session:
            session.query(Step).filter(Step.job_id == self.job_id, Step.name.in_(steps)).update(
                {"succeeded_attempt": 1, "attempt": 1}
            )

    def write(self, step: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder(step) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def checkpoint(
        self,
        number: int,
        weights_name: str = "adapter_model.safetensors",
        config_name: str = "adapter_config.json",
        config: str = "{}",
    ) -> str:
        name = f"checkpoints/checkpoint-{number}"
        weights = {
            weights_name: f"weights of step {number}",
            config_name: config,
            "optimizer.pt": "not needed",
        }
        self.write("train", {f"{name}/{file}": content for file, content in weights.items()})
        listed(self.folder("train") / name, "checkpoint.json")
        with transaction(self.sessions) as session:
            row = Checkpoint(
                id=new_id("checkpoint"),
                job_id=self.job_id,
                attempt=1,
                step_number=number,
                path=f"jobs/{self.job_id}/train/1/{name}",
                metrics={"epoch": 1.0, "loss": 2.5},
                bytes=1234,
            )
            session.add(row)
            return row.id

    def checkpoint_folder(self, number: int) -> Path:
        return self.folder("train") / "checkpoints" / f"checkpoint-{number}"


def in_training(job_id: str, root: Path, sessions: SessionFactory, project_id: str = "default") -> Training:
    """Bring a fine-tune that was just submitted so far."""
    made = Training(job_id, root, sessions)
    rows = {f"{split}.jsonl": f"rows of {split}" for split in ("train", "validation", "test")}
    made.write("prepare", rows | {"tokenizer/tokenizer.json": "{}", "tokenizer/chat_template.jinja": "x"})
    listed(made.folder("prepare"), "manifest.json")
    made.succeed("prepare")
    with transaction(sessions) as session:
        get_job(session, job_id, project_id=project_id).base = {
            "name": "org/base", "source": "hub", "location": "org/base", "revision": None,
        }  # fmt: skip
    return made
