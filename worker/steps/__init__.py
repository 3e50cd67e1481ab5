"""What each step does, a file a step. Only the child process imports these: they may load torch."""

from dataclasses import dataclass

# A kind's step -> the module whose `run(step)` does it.
STEP_MODULES: dict[tuple[str, str], str] = {
    ("fine_tune", "prepare"): "worker.steps.prepare",
    ("fine_tune", "train"): "worker.steps.train",
    ("fine_tune", "export"): "worker.steps.export",
    ("fine_tune", "verify"): "worker.steps.verify",
    ("estimate", "estimate"): "worker.steps.estimate",
    ("estimate_quantize", "estimate"): "worker.steps.estimate_quantize",
    ("quantize", "quantize"): "worker.steps.quantize",
    ("quantize", "verify"): "worker.steps.verify_quantized",
    ("quantize", "publish"): "worker.steps.publish",
    ("fine_tune", "publish"): "worker.steps.publish",
    ("ingest", "extract"): "worker.steps.extract",
    ("ingest", "embed"): "worker.steps.embed",
    ("pretrain", "train"): "worker.steps.pretrain",
    ("pretrain", "export"): "worker.steps.export",
    ("pretrain", "verify"): "worker.steps.verify",
    ("pretrain", "publish"): "worker.steps.publish",
    ("pull", "pull"): "worker.steps.pull",
    ("pull", "verify"): "worker.steps.verify_pulled",
    ("pull", "publish"): "worker.steps.publish",
    ("push", "push"): "worker.steps.push",
    ("batch", "read"): "worker.steps.read_requests",
    ("batch", "ask"): "worker.steps.ask",
    ("batch", "write"): "worker.steps.write_answers",
    ("predict", "read"): "worker.steps.read_rows",
    ("predict", "ask"): "worker.steps.ask",
    ("predict", "write"): "worker.steps.write_answers",
    ("evaluate", "evaluate"): "worker.steps.evaluate",
    ("inspect", "inspect"): "worker.steps.inspect_data",
    ("export", "export"): "worker.steps.export",
    ("export", "verify"): "worker.steps.verify",
    ("export", "publish"): "worker.steps.publish",
}


@dataclass(frozen=True)
class Warm:
    """Steps whose processes are forked from one that holds what they need.

    Args:
        steps: their modules. One that has a function `warm_up` has that called there, once.
        libraries: what these import only as they run, which a fork would else do again. They may have such a
            function, too.
        to_embed: those of them that nothing uses where LATHE_EMBEDDER leaves all to the embedding server.
    """

    steps: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    to_embed: tuple[str, ...] = ()

    def modules(self, *, embedded_by_server: bool) -> tuple[str, ...]:
        """All that such a process imports, in this order."""
        return (*self.libraries, *(() if embedded_by_server else self.to_embed), *self.steps)


# Without torch: a reader's address space is limited, and it is forked from the step that reads.
READING = Warm(steps=("worker.steps.extract",), libraries=("retrieval.reader",))
EMBEDDING = Warm(steps=("worker.steps.embed",), to_embed=("worker.steps.bert", "worker.steps.local_embedder"))
ASKING = Warm(
    steps=(
        "worker.steps.read_requests",
        "worker.steps.read_rows",
        "worker.steps.ask",
        "worker.steps.write_answers",
    )
)
TRAINING = Warm(
    steps=(
        "worker.steps.prepare",
        "worker.steps.train",
        "worker.steps.pretrain",
        "worker.steps.export",
        "worker.steps.verify",
        "worker.steps.evaluate",
        "worker.steps.inspect_data",
        "worker.steps.estimate",
    ),
    libraries=(
        "torch",
        "transformers.trainer",
        "transformers.models.llama.modeling_llama",
        "peft",
        "trl.trainer.sft_trainer",
    ),
)
WARM = (READING, EMBEDDING, ASKING, TRAINING)
