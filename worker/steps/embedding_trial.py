"""Which embeds faster here: the embedding server, or this process. Measured once in a while, and kept."""

import json
import math
import os
import tempfile
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from serving.embeddings import EmbeddingModel, EmbeddingServer, Vectors
from serving.llama_cpp import cpu_key, find_tools
from worker.step import StepInput
from worker.steps.local_embedder import LocalEmbedder

MIN_COSINE = 0.999
# What the process costs besides, its memory and its start, a small gain does not repay.
MIN_SPEEDUP = 1.2
KEPT_DAYS = 30
# Where others want the cores, the two do not get them alike: 1.15 was measured at a load of 17, for 2.
BUSY_LOAD_A_CORE = 2.0


@dataclass(frozen=True)
class Trial:
    """How the two did, in chunks a second, and the smallest cosine between their vectors of one text."""

    server_rate: float
    local_rate: float
    cosine: float
    measured_on: str

    @property
    def agrees(self) -> bool:
        return self.cosine >= MIN_COSINE

    @property
    def prefers_local(self) -> bool:
        return self.agrees and self.local_rate >= MIN_SPEEDUP * self.server_rate

    def __str__(self) -> str:
        rates = f"{self.server_rate:.1f} chunks a second by the server, {self.local_rate:.1f} in this process"
        return f"{rates} (measured {self.measured_on}, cosine {self.cosine:.5f})"


def run_trial(
    server: EmbeddingServer, local: LocalEmbedder, texts: Sequence[str], tokens: Sequence[int], *, turn: int
) -> tuple[Vectors, Trial]:
    """Embed texts by both, `turn` at a time in turns, so that what else the machine does falls on both.

    Returns:
        the server's vectors, and how the two did.
    """
    local.embed(texts[:2], tokens[:2])  # the first time takes longer than any other
    vectors: Vectors = []
    server_seconds = local_seconds = 0.0
    cosine = 1.0
    for start in range(0, len(texts), turn):
        part = texts[start : start + turn], tokens[start : start + turn]
        began = time.perf_counter()
        theirs = server.embed(*part)
        between = time.perf_counter()
        ours = local.embed(*part)
        server_seconds += between - began
        local_seconds += time.perf_counter() - between
        vectors += theirs
        cosine = min(cosine, smallest_cosine(theirs, ours))
    rates = len(texts) / max(server_seconds, 1e-9), len(texts) / max(local_seconds, 1e-9)
    return vectors, Trial(*rates, cosine, _today().isoformat())


def machine_is_busy() -> bool:
    """Whether a trial just now would say less of the two than of what else runs here."""
    return os.getloadavg()[0] > BUSY_LOAD_A_CORE * len(os.sched_getaffinity(0))


def _today() -> date:
    return datetime.now(UTC).date()


def smallest_cosine(one: Vectors, other: Vectors) -> float:
    """Of two embedders' vectors of the same texts."""
    return min(map(_cosine, one, other))


def _cosine(one: bytes, other: bytes) -> float:
    a, b = array("f", one), array("f", other)
    if len(a) != len(b):
        return 0.0
    product = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / product if product else 0.0


class TrialFile:
    """Where a trial is kept: in the cache folder, by all that it depends on.

    The server is our own, so that its program and its model say enough of it.
    """

    def __init__(self, step_input: StepInput, model: EmbeddingModel) -> None:
        tools = find_tools(step_input.settings)
        self._of = {
            "model": asdict(model),
            "llama.cpp": tools.version if tools is not None else None,
            "torch": version("torch"),
            "cpu": cpu_key(),
            "threads": step_input.settings.threads,
            "gpu": step_input.device,
        }
        digest = sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()[:12]
        self.path = step_input.settings.cache_dir / "embeddings" / f"trial-{digest}.json"

    def read(self) -> Trial | None:
        """The trial that was kept; None where there is none, none that can be read, or an old one."""
        try:
            trial = Trial(**json.loads(self.path.read_text(encoding="utf-8"))["trial"])
            age = _today() - date.fromisoformat(trial.measured_on)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return trial if age.days < KEPT_DAYS else None

    def write(self, trial: Trial) -> None:
        """Keep a trial, beside first, for who reads meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".trial-", delete=False) as beside:
            json.dump({"trial": asdict(trial), "of": self._of}, beside, indent=1)
        Path(beside.name).replace(self.path)
