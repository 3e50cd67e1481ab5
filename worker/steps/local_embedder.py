"""The embedding model `default` in the step's own process: as sentence-transformers runs it, by transformers.

On a GPU in float16, on a CPU in bfloat16 where it has instructions for that, else in float32. Texts of about
one length are embedded together, so that next to nothing is padding.
"""

from collections.abc import Callable, Sequence

from db.errors import InvalidInput, Unavailable
from serving.embedding_weights import weights_folder
from serving.embeddings import Vectors, batches
from worker.steps.runtime import cpu_computes_in_bfloat16, memory_errors_explained, prepare_runtime

# Enough to fill a GPU; a CPU is no faster with more than this.
BATCH_TOKENS = {"cpu": 3500, "cuda": 65_536}
MEMORY_ADVICE = "LATHE_EMBEDDER=server lets the embedding server do it, which has its own."


class LocalEmbedder:
    """Loads the model when it is made, which takes seconds.

    Args:
        gpu: the name of the one that this step holds; None: on the CPU, whatever CUDA shows.
        threads: for the CPU.
    Raises:
        Unavailable: the model or torch is not installed, cannot be loaded, or has no CUDA for the GPU.
    """

    def __init__(self, gpu: str | None, *, threads: int) -> None:
        prepare_runtime(threads)
        try:
            import torch
            from tokenizers import Tokenizer
            from transformers import BertModel

            torch.set_num_threads(threads)
            self._device, self._dtype = "cuda", torch.float16
            if gpu is None:
                self._device = "cpu"
                self._dtype = torch.bfloat16 if cpu_computes_in_bfloat16() else torch.float32
            folder = weights_folder()
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._tokenizer.no_truncation()
            self._tokenizer.enable_padding()
            model = BertModel.from_pretrained(
                folder,
                dtype=self._dtype,
                add_pooling_layer=False,
                use_safetensors=True,
                local_files_only=True,
            )
            self._model = model.to(self._device).eval()
        # AssertionError: of a torch that was built without CUDA
        except (ImportError, OSError, RuntimeError, AssertionError) as error:
            raise Unavailable(f"The embedding model cannot be loaded: {error}") from error
        self._longest: int = model.config.max_position_embeddings
        self.place = f"{gpu or 'the CPU'} in {str(self._dtype).removeprefix('torch.')}"

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], progress: Callable[[int], None] = lambda done: None
    ) -> Vectors:
        """Embed texts, as `EmbeddingServer.embed` does.

        Raises:
            InvalidInput: a text is longer than the model can read.
        """
        order = sorted(range(len(texts)), key=tokens.__getitem__)
        vectors: Vectors = [b""] * len(texts)
        done = 0
        with memory_errors_explained(MEMORY_ADVICE):
            for batch in batches(order, [tokens[at] for at in order], most=BATCH_TOKENS[self._device]):
                for at, vector in zip(batch, self._embed([texts[at] for at in batch]), strict=True):
                    vectors[at] = vector
                done += len(batch)
                progress(done)
        return vectors

    def _embed(self, texts: Sequence[str]) -> Vectors:
        """The mean of the last layer over a text's tokens, at length 1: the model's own pooling."""
        import torch

        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([each.ids for each in encoded], device=self._device)
        if ids.shape[1] > self._longest:
            raise InvalidInput(
                f"A text has {ids.shape[1]} tokens; the embedding model reads {self._longest}."
            )
        mask = torch.tensor([each.attention_mask for each in encoded], device=self._device)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask.unsqueeze(-1).float()
            means = (states * weights).sum(1) / weights.sum(1)
            rows = torch.nn.functional.normalize(means, dim=1).cpu().numpy().astype("<f4")
        return [row.tobytes() for row in rows]
