"""What a step is given, and how it speaks.

A step runs in a child process (`python -m worker.run_step`). It never touches the database: what it
reads is in its `StepInput`, what it says goes through `Step` to the worker that started it, and the
worker writes that to SQL as long as the attempt is current. So a step can be run, and tested, alone.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from db.errors import InvalidInput, StepFailed

ARTIFACT_NAME = re.compile(r"[A-Za-z0-9._-]+")

Message = dict[str, Any]


@dataclass(frozen=True)
class FileInput:
    """An uploaded file, as a step reads it."""

    path: Path
    filename: str
    bytes: int


@dataclass(frozen=True)
class DocumentInput:
    """A document to be brought into a collection.

    `password` opens an encrypted file; `language` is what the text is in, where that was given.
    """

    id: str
    project_id: str
    collection_id: str
    path: Path
    filename: str
    chunk_tokens: int
    chunk_overlap_tokens: int
    password: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class BaseWeights:
    """The model a fine-tune starts from.

    `location` is an absolute folder in Hugging Face's layout, or a hub id when `source` is "hub".
    `merge_base` is of weights that are stored quantised: the 16-bit model that they were made from.
    """

    name: str
    source: Literal["folder", "hub"]
    location: str
    revision: str | None = None
    merge_base: "BaseWeights | None" = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "BaseWeights":
        merge_base = data.get("merge_base")
        return cls(**{**data, "merge_base": cls.from_dict(merge_base) if merge_base is not None else None})


@dataclass(frozen=True)
class Asked:
    """Whom a step asks for the rows of its job.

    Args:
        places: backends, each with the model's name there; the next one while one does not answer.
        backends: the settings of each, by name, as `BackendConfig` reads them.
        prompting: what each request is given besides.
        ends_at: when the job's time is over, in Unix seconds.
    """

    places: list[tuple[str, str]]
    backends: dict[str, dict[str, Any]]
    prompting: dict[str, Any] | None
    ends_at: float | None


@dataclass(frozen=True)
class StepSettings:
    """The settings that steps need, fixed when the attempt starts."""

    cache_dir: Path
    served_models_dir: Path
    chat_backend: Literal["llama_server", "ollama"]
    chat_server_url: str
    chat_server_key: str
    ollama_url: str
    llama_cpp_dir: Path | None
    llama_backend: str
    n_gpu_layers: int
    context_size: int  # tokens that served models hold at most; 0: what each was trained for
    threads: int
    train_processes: int  # that train together where there is no GPU
    embedding_server_url: str
    embedding_server_key: str
    embedder: Literal["auto", "server", "local"]  # what embeds documents
    embed_on_gpu: bool  # large ingests wait for a GPU to hold
    embedding_tokenizer: Path | None  # None: that of the embedding model `default`
    embedding_max_tokens: int
    hub_url: str
    hub_token: str
    hub_cache: str | None  # the folder for what is fetched; None: the client's own
    hub_offline: bool  # only what was fetched before is taken
    min_top1_agreement: float
    max_kl_ratio: float
    auto_max_kl: float
    trackers: list[str]
    tracker_project: str
    tracking_dir: Path
    eval_tasks_dir: Path | None  # tasks of lm-eval that evaluations may name


@dataclass(frozen=True)
class StepInput:
    """Everything an attempt may read.

    Args:
        params: the job's params, validated and with defaults filled in.
        folder: this attempt's own folder; a step writes nowhere else.
        step_folders: the folder of the successful attempt of each earlier step of this job.
        results: what each earlier step of this job returned.
        files: the uploaded files that the params name, by id.
        base: the base model's weights, for kinds that have one.
        tokenizer: the model whose tokenizer a pretrain takes, when it names one.
        resume_from: the checkpoints that earlier attempts of this step left, newest first, unchecked.
        adjustments: what to do otherwise than the params say, since an attempt ran out of memory.
        documents: what an ingest has still to bring in.
        device: the names of the GPUs that the attempt holds; None: it holds none.
        configurations: the names of Postgres's text search configurations, for an ingest.
        source: for an export, a push or an evaluation, the folder that holds what it is made from (see
            `db/source_files.py`).
        start: for a fine-tune that goes on from an earlier one, the folder that holds what that has trained.
        databases: for the steps that read or write rows: the operator's SQL source or target that a param
            names, by that param, as `training_data.sql_settings` reads it.
        deepspeed: for a fine-tune that names one, the operator's configuration of DeepSpeed.
        asked: for a step that asks a model for each row: whom.
        rewards: of a training by GRPO, for the steps that need them: by what its answers are judged, as
            `training_data.reward_settings` reads it.
        machines: for the steps that estimate a training: where the live workers that train are, as
            `training_data.machines` reads them.
        finished: for those too, what the latest fine-tunes took (see `db/queries/finished.py`).
        cluster: for the training of a fine-tune that names one: the Ray cluster, as
            `training_data.ray_clusters` reads it.
        prepared: for the steps that read training data, where that of the project is kept; None: nowhere.
        chat_unloaded: the chat server's models have made room for another step; none may be loaded now.
    """

    job_id: str
    kind: str
    step: str
    attempt: int
    params: dict[str, Any]
    folder: Path
    settings: StepSettings
    step_folders: dict[str, Path] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, FileInput] = field(default_factory=dict)
    base: BaseWeights | None = None
    tokenizer: BaseWeights | None = None
    resume_from: list[Path] = field(default_factory=list)
    adjustments: dict[str, int] = field(default_factory=dict)
    documents: list[DocumentInput] = field(default_factory=list)
    configurations: list[str] = field(default_factory=list)
    device: str | None = None
    source: Path | None = None
    start: Path | None = None
    chat_unloaded: bool = False
    asked: Asked | None = None
    databases: dict[str, dict[str, Any]] = field(default_factory=dict)
    rewards: list[dict[str, Any]] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    cluster: dict[str, Any] | None = None
    deepspeed: dict[str, Any] | None = None
    prepared: Path | None = None

    def require_base(self) -> BaseWeights:
        """Raises:
        InvalidInput: the job names no base, without which its kind can do nothing.
        """
        if self.base is None:
            raise InvalidInput("base_model is missing: name the model to start from.", param="base_model")
        return self.base

    def require_source(self) -> Path:
        """Raises:
        StepFailed: nothing is held for the job, though its kind is made from that.
        """
        if self.source is None:
            raise StepFailed(f"Step {self.step} was given nothing to work on.")
        return self.source

    @property
    def sixteen_bit_base(self) -> BaseWeights | None:
        """What files are made from, with the adapter: the base, or what a quantised one was made from."""
        return self.base if self.base is None or self.base.merge_base is None else self.base.merge_base

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "StepInput":
        data = json.loads(text)
        settings = data["settings"]
        for name in ("cache_dir", "served_models_dir", "tracking_dir"):
            settings[name] = Path(settings[name])
        for name in ("llama_cpp_dir", "embedding_tokenizer", "eval_tasks_dir"):
            settings[name] = Path(settings[name]) if settings[name] is not None else None
        data["settings"] = StepSettings(**settings)
        data["folder"] = Path(data["folder"])
        for name in ("source", "start", "prepared"):
            data[name] = Path(data[name]) if data[name] is not None else None
        data["step_folders"] = {name: Path(path) for name, path in data["step_folders"].items()}
        data["files"] = {
            file_id: FileInput(path=Path(row["path"]), filename=row["filename"], bytes=row["bytes"])
            for file_id, row in data["files"].items()
        }
        data["documents"] = [DocumentInput(**{**row, "path": Path(row["path"])}) for row in data["documents"]]
        data["resume_from"] = [Path(path) for path in data["resume_from"]]
        for name in ("base", "tokenizer"):
            if data[name] is not None:
                data[name] = BaseWeights.from_dict(data[name])
        if data["asked"] is not None:
            data["asked"] = Asked(**data["asked"])
        return cls(**data)


class Stopped(Exception):
    """A step was asked to stop, and has saved what it had."""


class RankFailed(StepFailed):
    """One of the processes that do a step together fell; the message names it and its last lines."""


class Step:
    """A step's one line to the outside. Everything it says is sent at once.

    Args:
        heed: is given what to do when the step is asked to stop, in place of ending the process.
        track: is given what is measured, too.
    """

    def __init__(
        self,
        step_input: StepInput,
        send: Callable[[Message], None],
        heed: Callable[[Callable[[], None]], None] = lambda ask: None,
        track: Callable[[dict[str, float]], None] = lambda values: None,
    ) -> None:
        self.input = step_input
        self._send = send
        self._heed = heed
        self._track = track
        self.stop_asked = False

    def relay(self, message: Message) -> None:
        """Say what the first of several processes says, as if it were this one's own word."""
        self._send(message)
        if message["type"] == "metrics":
            self._track(message["values"])

    def save_when_stopped(self) -> None:
        """From now on the request to stop sets `stop_asked`; the step then saves, and raises `Stopped`."""
        self._heed(self._ask)

    def _ask(self) -> None:
        self.stop_asked = True

    def if_memory_runs_out(self, adjustments: dict[str, int] | None, advice: str) -> None:
        """Say beforehand how to try again with less memory; the system may end a process without a word.

        Args:
            adjustments: for the next attempt's input; None: there is nothing left to lower.
            advice: what the user can do then.
        """
        self._send({"type": "fallback", "adjustments": adjustments, "advice": advice})

    def event(self, message: str, *, level: Literal["info", "warn", "error"] = "info", **data: Any) -> None:
        """Tell the user something: a sentence, with figures in `data`."""
        self._send({"type": "event", "level": level, "message": message, "data": data})

    def metrics(self, **values: float) -> None:
        """Record measured values, such as step, loss, learning_rate, tokens_per_second."""
        self._send({"type": "metrics", "values": values})
        self._track(values)

    def progress(
        self,
        done: int,
        total: int,
        *,
        eta_seconds: float | None = None,
        unit: str = "steps",
        failed: int | None = None,
    ) -> None:
        """Say how far it is; this is also the sign of life that the stall limit watches for.

        Args:
            failed: how many of those that are done came to nothing, where that is counted.
        """
        counted = {} if failed is None else {"failed": failed}
        told = {"done": done, "total": total, "eta_seconds": eta_seconds, "unit": unit}
        self._send({"type": "progress", **told, **counted})

    def document_failed(self, document_id: str, code: str, message: str) -> None:
        """Say that a document cannot be brought in; the others go on."""
        error = {"code": code, "message": message, "param": None}
        self._send({"type": "document", "document_id": document_id, "error": error})

    def document_ready(
        self,
        document_id: str,
        *,
        rows: Path,
        content: Path,
        chunks: int,
        language: str,
        configuration: str,
        embedded: dict[str, Any],
    ) -> None:
        """Hand a document over to be loaded.

        Args:
            rows: its chunks, in COPY's binary format, inside the attempt's folder.
            content: what was read of it, as JSON, there too.
            language: what its text is in; `configuration`: that of Postgres which its words are in.
            embedded: the `model`, its `revision` and the `dimensions` of the vectors.
        """
        message = {"type": "document", "document_id": document_id, "chunks": chunks, **embedded}
        message |= {"language": language, "configuration": configuration}
        self._send({**message, "rows": self._relative(rows), "content": self._relative(content)})

    def checkpoint(self, step_number: int, path: Path | str, metrics: dict[str, float]) -> None:
        """Register a finished checkpoint folder, `path` being inside the attempt's folder."""
        folder = self.input.folder / path
        self._send(
            {
                "type": "checkpoint",
                "step_number": step_number,
                "path": self._relative(path),
                "metrics": metrics,
                "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
            }
        )

    def resumed(self, step_number: int) -> None:
        """Say that this attempt goes on from the checkpoint of that step."""
        self._send({"type": "resumed", "step_number": step_number})

    def checkpoint_removed(self, path: Path | str) -> None:
        """Take back a checkpoint that has made room for a newer one."""
        self._send({"type": "checkpoint_removed", "path": self._relative(path)})

    def artifact(self, path: Path | str, *, name: str | None = None, purpose: str | None = None) -> None:
        """Offer a file of the attempt's folder to the user under `name`.

        Args:
            purpose: makes it one of the project's files as well, as if it had been uploaded for that.
        """
        relative = self._relative(path)
        name = name or Path(relative).name
        if not ARTIFACT_NAME.fullmatch(name):
            raise ValueError(f"an artifact's name is letters, digits, '.', '_' and '-': not {name!r}")
        self._send({"type": "artifact", "name": name, "path": relative, "purpose": purpose})

    def _relative(self, path: Path | str) -> str:
        absolute = (self.input.folder / path).resolve()
        return str(absolute.relative_to(self.input.folder.resolve()))
