"""A direct run of a step, and one very small model that all tests of the steps share."""

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from db.kinds import PARAMS
from tests.serving.fake_ollama import FakeOllama
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    lone_settings,
    made_once,
    session_root,
    shared_export,
    shared_models,
)
from tests.worker.steps.fine_tuning import FineTune, preferring
from worker.step import BaseWeights, FileInput, Message, Step, StepInput

TEXT = (
    "A kiln is an oven for clay. It is heated slowly, so that no pot breaks. A potter turns clay on a wheel. "
    "The wheel is driven by foot. Glaze makes a pot tight. It melts in the fire and covers the clay. "
    "Who fires a pot too fast loses it. Water in the clay turns to steam and bursts it.\n\n"
)
MICRO = {"vocab_size": 320, "context_length": 128, "layers": 1, "heads": 2, "batch_size": 4, "steps": 8}


@dataclass
class Ran:
    """A step that ran: its folder, its result, and all that it said."""

    folder: Path
    result: dict[str, Any]
    said: list[Message]

    def events(self, level: str = "info") -> list[str]:
        return [m["message"] for m in self.said if m["type"] == "event" and m["level"] == level]

    def of_type(self, kind: str) -> list[Message]:
        return [message for message in self.said if message["type"] == kind]


@dataclass
class StepRunner:
    """Runs one step after another in a folder of its own, in this process."""

    root: Path
    said: list[Message] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # those that are other than usual

    def run(
        self,
        run: Callable[[Step], dict[str, Any]],
        kind: str,
        name: str,
        *,
        params: dict[str, Any],
        files: dict[str, Path] | None = None,
        base: Path | BaseWeights | None = None,
        tokenizer: Path | None = None,
        earlier: dict[str, Ran] | None = None,
        resume_from: list[Path] | None = None,
        adjustments: dict[str, int] | None = None,
        databases: dict[str, dict[str, Any]] | None = None,
        rewards: list[dict[str, Any]] | None = None,
        start: Path | None = None,
        machines: list[dict[str, Any]] | None = None,
        finished: list[dict[str, Any]] | None = None,
        prepared: Path | None = None,
        deepspeed: dict[str, Any] | None = None,
        hear: Callable[[Step, Message], None] = lambda step, message: None,
    ) -> Ran:
        folder = self.root / f"{name}-{len(list(self.root.iterdir()))}"
        folder.mkdir()
        earlier = earlier or {}
        if isinstance(base, Path):
            base = BaseWeights(name="micro", source="folder", location=str(base))
        step_input = StepInput(
            job_id="job-1",
            kind=kind,
            step=name,
            attempt=1,
            params=PARAMS[kind].model_validate(params).model_dump(mode="json"),
            folder=folder,
            settings=replace(lone_settings(self.root / "cache"), **self.settings),
            step_folders={step: ran.folder for step, ran in earlier.items()},
            results={step: ran.result for step, ran in earlier.items()},
            files={
                key: FileInput(path=path, filename=path.name, bytes=path.stat().st_size)
                for key, path in (files or {}).items()
            },
            base=base,
            tokenizer=BaseWeights("other", "folder", str(tokenizer)) if tokenizer else None,
            resume_from=resume_from or [],
            adjustments=adjustments or {},
            databases=databases or {},
            rewards=rewards or [],
            start=start,
            machines=machines or [],
            finished=finished or [],
            prepared=prepared,
            deepspeed=deepspeed,
        )
        said = self.said = []

        def send(message: Message) -> None:
            said.append(message)
            hear(step, message)

        step = Step(StepInput.from_json(step_input.to_json()), send, lambda ask: None)
        self.folder = folder
        # A trainer that has finished collects garbage: 0.4 s each, for all that was ever imported.
        gc.freeze()
        return Ran(folder, run(step), said)


@pytest.fixture
def steps(tmp_path: Path) -> StepRunner:
    return StepRunner(tmp_path)


@pytest.fixture
def fine_tune(steps, micro_model, tmp_path):
    """Prepares one that learns answers."""
    return lambda **given: FineTune(steps, micro_model, tmp_path / "rows.csv", **given)


@pytest.fixture
def by_pairs(steps, micro_model, tmp_path):
    """Prepares one that learns from pairs, or from rows of answers that are judged."""
    return lambda rows=None, **given: preferring(steps, micro_model, tmp_path / "rows.jsonl", rows, **given)


@pytest.fixture(scope="session")
def potters_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "pots.txt"
    path.write_text(TEXT * 40)
    return path


@pytest.fixture(scope="session")
def micro_pretrain(tmp_path_factory: pytest.TempPathFactory, potters_text: Path) -> Ran:
    """A pretrain of a few steps, for real, once for all of a session's processes."""

    def make(folder: Path) -> None:
        from worker.steps import pretrain

        params = {"name": "micro", "training_file": "file-1", "sample_every": 4, **MICRO}
        ran = StepRunner(folder).run(
            pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text}
        )
        made = {"folder": str(ran.folder), "result": ran.result, "said": ran.said}
        (folder / "ran.json").write_text(json.dumps(made))

    made = json.loads((made_once(tmp_path_factory.getbasetemp(), "micro", make) / "ran.json").read_text())
    return Ran(Path(made["folder"]), made["result"], made["said"])


@pytest.fixture(scope="session")
def micro_model(micro_pretrain: Ran) -> Path:
    """A model folder with next to no knowledge and all its files."""
    return micro_pretrain.folder / "model"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the processes that run this session's tests."""
    return session_root(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> TrainedModels:
    return shared_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return shared_export(tmp_path_factory.getbasetemp())


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[FakeOllama]:
    (tmp_path / "blobs").mkdir()
    server = FakeOllama(tmp_path / "blobs").start()
    yield server
    server.stop()
