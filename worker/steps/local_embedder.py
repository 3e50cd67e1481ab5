"""The embedding model `default` in the step's own process: as sentence-transformers runs it.

On a GPU in float16, on a CPU in bfloat16 where it has instructions for that, else in float32. Texts of about
one length are embedded together, so that next to nothing is padding.

The server that embeds the queries tells the tokens: llama.cpp reads Korean, vowel signs of Indian scripts and
words of over 100 letters otherwise than Hugging Face's tokenizers, down to a cosine of 0.2.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from db.errors import InvalidInput, Unavailable
from serving.embedding_weights import weights_folder
from serving.embeddings import EmbeddingServer, Vectors, batches
from worker.steps.runtime import cpu_computes_in_bfloat16, memory_errors_explained, prepare_runtime

if TYPE_CHECKING:
    from worker.steps.bert import Bert

# Enough to fill a GPU; a CPU is no faster with more than this.
BATCH_TOKENS = {"cpu": 3500, "cuda": 65_536}
START, END, PADDING = 101, 102, 0  # [CLS], [SEP] and [PAD] of its vocabulary
MEMORY_ADVICE = "LATHE_EMBEDDER=server lets the embedding server do it, which has its own."


class LocalEmbedder:
    """Loads the model when it is made, which takes seconds, unless that was done for the CPU before.

    Args:
        gpu: the name of the one that this step holds; None: on the CPU, whatever CUDA shows.
        threads: for the CPU.
        server: has the same model, and tells the tokens.
    Raises:
        Unavailable: the server tells no tokens; or the model or torch is not installed, cannot be loaded, or
            has no CUDA for the GPU.
    """

    preloaded: ClassVar["Bert | None"] = None  # on the CPU

    def __init__(self, gpu: str | None, *, threads: int, server: EmbeddingServer) -> None:
        self._server = server
        server.tokenize([""])  # if it cannot, that is to be known before torch is loaded
        self._lock = threading.Lock()
        prepare_runtime(threads)
        with _loading(threads):
            ready = self.preloaded if gpu is None else None
            self._model = ready or _model("cpu" if gpu is None else "cuda")
        self.place = f"{gpu or 'the CPU'} in {str(self._model.dtype).removeprefix('torch.')}"

    @classmethod
    def preload(cls) -> None:
        """Load the model into a process that will be copied, by one thread: a copy has no others.

        Raises:
            Unavailable: it cannot be loaded.
        """
        with _loading(1):
            cls.preloaded = _model("cpu")

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], progress: Callable[[int], None] = lambda done: None
    ) -> Vectors:
        """Embed texts, as `EmbeddingServer.embed` does.

        Raises:
            Unavailable: the server does not tell the tokens.
            InvalidInput: a text is longer than the model can read.
        """
        order = sorted(range(len(texts)), key=tokens.__getitem__)
        vectors: Vectors = [b""] * len(texts)
        done = 0
        with memory_errors_explained(MEMORY_ADVICE):
            for batch in batches(order, [tokens[at] for at in order], most=BATCH_TOKENS[self._model.device]):
                for at, vector in zip(batch, self._embed([texts[at] for at in batch]), strict=True):
                    vectors[at] = vector
                done += len(batch)
                progress(done)
        return vectors

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """The mean of the last layer over a text's tokens, at length 1: the model's own pooling."""
        import torch

        rows = [[START, *tokens, END] for tokens in self._server.tokenize(texts)]
        longest = max(map(len, rows))
        most = self._model.longest
        if longest > most:
            raise InvalidInput(f"A text has {longest} tokens; the embedding model reads {most}.")
        padded = [row + [PADDING] * (longest - len(row)) for row in rows]
        # Two at a time would only take each other's cores.
        with self._lock, torch.inference_mode():
            ids = torch.tensor(padded, device=self._model.device)
            lengths = torch.tensor([len(row) for row in rows], device=self._model.device)
            mask = torch.arange(longest, device=self._model.device) < lengths.unsqueeze(1)
            states = self._model.encode(ids, mask).float()
            weights = mask.unsqueeze(-1).float()
            means = (states * weights).sum(1) / weights.sum(1)
            vectors = torch.nn.functional.normalize(means, dim=1).cpu().numpy().astype("<f4")
        return [vector.tobytes() for vector in vectors]


def warm_up() -> None:
    """Load the model; what is in the way of that, the step will tell."""
    with contextlib.suppress(Unavailable):
        LocalEmbedder.preload()


@contextlib.contextmanager
def _loading(threads: int) -> Iterator[None]:
    """Torch with so many threads from now on, and what can be wrong with it or the model said in words."""
    try:
        import torch

        torch.set_num_threads(threads)
        yield
    # AssertionError: of a torch that was built without CUDA
    except (ImportError, OSError, RuntimeError, AssertionError, ValueError, LookupError) as error:
        raise Unavailable(f"The embedding model cannot be loaded: {error!r}") from error


def _model(device: str) -> "Bert":
    import torch

    from worker.steps.bert import Bert

    dtype = torch.float16
    if device == "cpu":
        dtype = torch.bfloat16 if cpu_computes_in_bfloat16() else torch.float32
    return Bert(weights_folder(), device=device, dtype=dtype)
