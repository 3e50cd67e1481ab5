"""See that a model that was pulled loads and answers, before the server that all share gets it.

It was not trained here: there are no weights to hold it against, and that is said.
"""

from typing import Any

from db.errors import InvalidInput, LatheError, StepFailed
from serving.llama_cpp import require_tools
from worker.step import Step
from worker.steps.programs import ServedFile, model_server
from worker.steps.runtime import prepare_runtime

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
ANSWER_TOKENS = 8
CONTEXT = 512


def run(step: Step) -> dict[str, Any]:
    """Load each file by a llama-server of the step's own, and ask it something.

    Raises:
        InvalidInput: llama.cpp cannot load it, or gives no answer: another try would end alike.
    """
    prepare_runtime(step.input.settings.threads)
    pulled, folder = step.input.results["pull"], step.input.step_folders["pull"]
    if not pulled["files"]:
        step.event(
            "Its weights are stored quantised: it is a base for adapters, and no file of it is served."
        )
        return {"files": []}
    step.event("There are no trained weights to hold this model against: it is seen to load and answer.")
    files = [row for row in pulled["files"] if row["path"] is not None]
    if not files:
        step.event("Ollama loads it itself: it is asked when it is published.")
        return {"files": []}
    tools = require_tools(step.input.settings)
    context = min(CONTEXT, int(pulled["context_length"]))
    figures = []
    for done, row in enumerate(files):
        step.progress(done, len(files), unit="files")
        log = step.input.folder / f"{row['quantization']}.log"
        try:
            file = ServedFile(folder / row["path"])
            with model_server(step, tools, file, context=context, slots=1, log=log) as server:
                answer = server.chat(QUESTION, max_tokens=ANSWER_TOKENS)
        except StepFailed as error:
            raise _refused(row, error) from error
        except LatheError as error:
            # Alone on the loopback with this one model, so it is the model's doing.
            raise _refused(row, error) from error
        step.event(f"{row['quantization']} loads and answers.", quantization=row["quantization"])
        tokens = (answer.get("usage") or {}).get("completion_tokens")
        figures.append({"quantization": row["quantization"], "answers": 1, "answer_tokens": tokens})
    return {"files": figures}


def _refused(row: dict[str, Any], error: LatheError) -> InvalidInput:
    last = next((line for line in reversed(getattr(error, "stderr", "").splitlines()) if line.strip()), "")
    said = f"{error.message} {last}".strip()
    return InvalidInput(
        f"llama.cpp cannot answer with the {row['quantization']} file: {said}",
        param="source",
        code="model_does_not_load",
    )
