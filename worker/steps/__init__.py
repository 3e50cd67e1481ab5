"""What each step does, a file a step. Only the child process imports these: they may load torch."""

# A kind's step -> the module whose `run(step)` does it.
STEP_MODULES: dict[tuple[str, str], str] = {
    ("fine_tune", "prepare"): "worker.steps.prepare",
    ("fine_tune", "train"): "worker.steps.train",
    ("fine_tune", "export"): "worker.steps.export",
    ("fine_tune", "verify"): "worker.steps.verify",
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
    ("export", "export"): "worker.steps.export",
    ("export", "verify"): "worker.steps.verify",
    ("export", "publish"): "worker.steps.publish",
}
