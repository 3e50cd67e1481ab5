"""What embeds the documents of an ingest: the embedding server, or this process where that is faster.

The server embeds the queries, so it says which model it is, and this process embeds nothing before its
vectors of the same texts agree with the server's. Which of the two is faster is measured on the first texts
of an ingest, and remembered. A small one is done before torch is loaded, unless that was done already.
"""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from typing import Literal

from db.errors import Unavailable
from serving.embeddings import EmbeddingModel, EmbeddingServer, Vectors
from worker.step import Step
from worker.steps.embedding_trial import (
    MIN_COSINE,
    Trial,
    TrialFile,
    machine_is_busy,
    run_trial,
    smallest_cosine,
)
from worker.steps.local_embedder import LocalEmbedder

# Loading torch and the model takes the time of half as many.
LOCAL_FROM_CHUNKS = 150
# Where that was done before: fewer take the server as long as the questions of which model it has.
PRELOADED_FROM_CHUNKS = 4
# Measured by so many texts at most, each embedder's in two turns; and at least, which decides of a small one.
MEASURED_CHUNKS = 64
PRELOADED_MEASURED_CHUNKS = 16
# Another model has other vectors of any text, be it short.
CHECKED_CHUNKS = 2
CHECKED_CHARACTERS = 80


class _NotHere(Exception):
    """This process cannot embed."""


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
        least = PRELOADED_FROM_CHUNKS if self._is_preloaded else LOCAL_FROM_CHUNKS
        self._undecided = wanted == "local" or (wanted == "auto" and chunks >= least)
        self._local: LocalEmbedder | None = None
        self._told: EmbeddingModel | None = None  # by the server, when it was last asked
        self._trusted_for: EmbeddingModel | None = None  # the server's model, with which `_local` agrees
        self._lock = threading.Lock()  # windows are embedded by several threads; the first one decides

    def model(self) -> EmbeddingModel:
        """The server's model, whoever embeds.

        Raises:
            Unavailable: the server does not answer.
        """
        model = self._server.model()
        with self._lock:
            self._told = model
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
        if at:
            progress(at)
        return first + goes_on.embed(texts[at:], tokens[at:], lambda done: progress(at + done))

    def _decide(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Choose, and give the server's vectors of the texts that this took."""
        model = self._told or self._server.model()
        try:
            kept = TrialFile(self._step.input, model)
            known = kept.read() if self._compares else None
            if known is not None and not known.prefers_local:
                self._stay(f"The embedding server embeds: {known}.", known)
                return []
            if not self._compares or known is not None:
                self._check(model, known, [text[:CHECKED_CHARACTERS] for text in texts[:CHECKED_CHUNKS]])
                return []
            least = PRELOADED_MEASURED_CHUNKS if self._is_preloaded else MEASURED_CHUNKS
            if len(texts) < least:
                return []  # too few to measure by; the next may do
            return self._measure(model, kept, texts[:MEASURED_CHUNKS], tokens[:MEASURED_CHUNKS])
        except (_NotHere, PackageNotFoundError) as error:
            self._stay(f"This process cannot embed: {error}. The embedding server does.", level="warn")
            return []

    def _measure(
        self, model: EmbeddingModel, kept: TrialFile, texts: Sequence[str], tokens: Sequence[int]
    ) -> Vectors:
        turn = math.ceil(len(texts) / 2)
        vectors, ran = run_trial(self._server, self._loaded(), texts, tokens, turn=turn)
        if machine_is_busy():
            self._step.event("Who embeds faster is measured again by the next ingest: this machine is busy.")
        else:
            kept.write(ran)
        self._settle(model, ran, ran.cosine)
        return vectors

    def _check(self, model: EmbeddingModel, known: Trial | None, texts: Sequence[str]) -> None:
        """See whether the vectors of some short texts agree.

        Args:
            known: which is faster; None: this process embeds even if it is slower.
        """
        lengths = [len(text) for text in texts]  # in characters: nothing but the order of work hangs on it
        with ThreadPoolExecutor(1) as asking:
            theirs = asking.submit(self._server.embed, texts, lengths)
            ours = self._loaded().embed(texts, lengths)
            self._settle(model, known, smallest_cosine(theirs.result(), ours))

    @property
    def _is_preloaded(self) -> bool:
        return LocalEmbedder.preloaded is not None and self._step.input.device is None

    def _loaded(self) -> LocalEmbedder:
        if self._local is None:
            device, threads = self._step.input.device, self._step.input.settings.threads
            try:
                self._local = LocalEmbedder(device, threads=threads, server=self._server)
            except Unavailable as error:
                raise _NotHere(error.message) from error
        return self._local

    def _settle(self, model: EmbeddingModel, trial: Trial | None, cosine: float) -> None:
        """Say who goes on, and why.

        Args:
            trial: tells which is faster; None: this process embeds even if it is slower.
            cosine: of the vectors of this job.
        """
        figures = asdict(trial) if trial is not None else {}
        if cosine < MIN_COSINE:
            message = (
                f"The embedding server embeds: its vectors are not those of this process (cosine "
                f"{cosine:.4f}, at least {MIN_COSINE} is needed), so that it has another model."
            )
            self._stay(message, trial, level="warn")
        elif trial is not None and not trial.prefers_local:
            self._stay(f"The embedding server embeds: {trial}.", trial)
        else:
            self._trusted_for, self._undecided = model, False
            why = f": {trial}" if trial is not None else f", as LATHE_EMBEDDER says (cosine {cosine:.5f})"
            place = self._loaded().place
            self._step.event(f"This process embeds, by {place}{why}.", **(figures | {"cosine": cosine}))

    def _stay(
        self, message: str, trial: Trial | None = None, *, level: Literal["info", "warn"] = "info"
    ) -> None:
        """Let the server embed all that is left."""
        self._undecided, self._local = False, None
        self._step.event(message, level=level, **(asdict(trial) if trial is not None else {}))
