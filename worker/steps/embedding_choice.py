"""What embeds the documents of an ingest: the embedding server, or this process where that is faster.

The server embeds the queries, so it says which model it is, and this process embeds nothing before its
vectors of the same texts agree with the server's. Which of the two is faster is measured on the first texts
of a large ingest; a small one is done before torch is loaded.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from typing import Literal

from db.errors import Unavailable
from serving.embeddings import EmbeddingModel, EmbeddingServer, Vectors
from worker.step import Step
from worker.steps.embedding_trial import MIN_COSINE, Trial, TrialFile, run_trial
from worker.steps.large_ingest import LARGE_INGEST_CHUNKS
from worker.steps.local_embedder import LocalEmbedder

TURN_CHUNKS = 32
MEASURED_CHUNKS = 2 * TURN_CHUNKS
CHECKED_CHUNKS = 16


class EmbeddingChoice:
    """Embeds as `EmbeddingServer` does, by whichever of the two is chosen.

    Args:
        chunks: how many there are to embed.
    """

    def __init__(self, step: Step, server: EmbeddingServer, *, chunks: int) -> None:
        self._step = step
        self._server = server
        wanted = step.input.settings.embedder
        self._compares = wanted == "auto"
        self._undecided = wanted == "local" or (wanted == "auto" and chunks >= LARGE_INGEST_CHUNKS)
        self._local: LocalEmbedder | None = None
        self._trusted_for: EmbeddingModel | None = None  # the server's model, with which `_local` agrees
        self._lock = threading.Lock()  # windows are embedded by several threads; the first one decides

    def model(self) -> EmbeddingModel:
        """The server's model, whoever embeds.

        Raises:
            Unavailable: the server does not answer.
        """
        model = self._server.model()
        with self._lock:
            if self._trusted_for not in (None, model):
                self._step.event("The embedding server has come back with another model.", level="warn")
                self._trusted_for, self._undecided = None, True
        return model

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], progress: Callable[[int], None] = lambda done: None
    ) -> Vectors:
        """Embed texts; the first ones by both, as long as it is not decided who goes on.

        Args:
            tokens: how many each text has.
            progress: told how many texts are done.
        Raises:
            Unavailable: the server does not answer, or not with a vector for each text.
            InvalidInput: a text is refused.
        """
        with self._lock:
            first = self._decide(texts, tokens) if self._undecided else []
            goes_on = self._local if self._local is not None and self._trusted_for else self._server
        at = len(first)
        return first + goes_on.embed(texts[at:], tokens[at:], lambda done: progress(at + done))

    def _decide(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Choose, and give the server's vectors of the texts that this took."""
        model = self._server.model()
        try:
            kept = TrialFile(self._step.input, model)
            known = kept.read() if self._compares else None
            if known is not None and not known.prefers_local:
                self._stay(f"The embedding server embeds: {known}.", known)
                return []
            measures = self._compares and known is None
            if measures and len(texts) < MEASURED_CHUNKS:
                return []  # too few to measure by; the next may do
            if self._local is None:
                settings = self._step.input.settings
                self._local = LocalEmbedder(
                    self._step.input.device, threads=settings.threads, server=self._server
                )
        except (Unavailable, PackageNotFoundError) as error:
            self._stay(f"This process cannot embed: {error}. The embedding server does.", level="warn")
            return []
        many = MEASURED_CHUNKS if measures else CHECKED_CHUNKS
        vectors, ran = run_trial(self._server, self._local, texts[:many], tokens[:many], turn=TURN_CHUNKS)
        if measures:
            kept.write(ran)
        self._settle(model, ran, ran if measures else known)
        return vectors

    def _settle(self, model: EmbeddingModel, ran: Trial, compared: Trial | None) -> None:
        """Say who goes on, and why.

        Args:
            ran: just now, if only to see whether the vectors agree.
            compared: tells which is faster; None: this process embeds even if it is slower.
        """
        if not ran.agrees:
            message = (
                f"The embedding server embeds: its vectors are not those of this process (cosine "
                f"{ran.cosine:.4f}, at least {MIN_COSINE} is needed), so that it has another model."
            )
            self._stay(message, ran, level="warn")
        elif compared is not None and not compared.prefers_local:
            self._stay(f"The embedding server embeds: {compared}.", compared)
        elif self._local is not None:
            self._trusted_for, self._undecided = model, False
            why = (
                f": {compared}"
                if compared is not None
                else f", as LATHE_EMBEDDER says (cosine {ran.cosine:.5f})"
            )
            self._step.event(f"This process embeds, by {self._local.place}{why}.", **asdict(compared or ran))

    def _stay(
        self, message: str, trial: Trial | None = None, *, level: Literal["info", "warn"] = "info"
    ) -> None:
        """Let the server embed all that is left."""
        self._undecided, self._local = False, None
        self._step.event(message, level=level, **(asdict(trial) if trial is not None else {}))
