"""From how many chunks on an ingest is large, and what follows. Apart: extract needs no more of embedding."""

from db.states import Queue
from worker.step import StepSettings

# Fewer are embedded on the CPU before a GPU is free.
LARGE_INGEST_CHUNKS = 500


def queue_of_embed(settings: StepSettings, *, chunks: int) -> Queue:
    """Where documents are best embedded. Only for many a GPU is worth the wait for whoever trains on it."""
    on_gpu = settings.embed_on_gpu and settings.embedder != "server" and chunks >= LARGE_INGEST_CHUNKS
    return Queue.GPU if on_gpu else Queue.BULK
