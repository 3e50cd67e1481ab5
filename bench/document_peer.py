"""The process of LangChain and Chroma, in an environment of its own that is made when it is missing."""

import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Self

import psutil

from db.settings import child_environment, load_settings

SCRIPT = Path(__file__).parent / "peer_langchain_chroma.py"
# pypdf, torch and the tokenizers are ours, so that the same ones are compared.
PACKAGES = (
    "chromadb==1.5.9", "langchain-chroma==1.1.0", "langchain-community==0.4.2", "langchain-core==1.7.2",
    "langchain-text-splitters==1.1.3", "numpy==2.4.6", "pypdf==7.1.0", "cryptography==50.0.2",
    "tokenizers==0.23.3", "langchain-huggingface==1.2.3", "sentence-transformers==6.2.0", "torch==2.13.0",
    "transformers==5.23.0",
)  # fmt: skip
INSTALL_SECONDS = 1200
ALONE = {"PYTHONPATH": "", "ANONYMIZED_TELEMETRY": "False"}


class PeerFailed(Exception):
    """The peer could not do what it was asked for."""


def environment_folder() -> Path:
    """Where the environment of these packages and this Python is."""
    named = "\n".join([sys.version, *PACKAGES])
    return load_settings().cache_dir / "bench" / f"peer-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def ensure_environment() -> Path:
    """Return the environment's Python; install it first where it is missing (minutes)."""
    folder = environment_folder()
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing LangChain and Chroma into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        argv = [str(python), "-m", "pip", "install", *PACKAGES]
        log = folder / "pip.log"
        with log.open("w") as out:
            alone = child_environment(ALONE)
            installed = subprocess.run(
                argv, check=False, timeout=INSTALL_SECONDS, stdout=out, stderr=out, env=alone
            )
        if installed.returncode:
            raise PeerFailed(f"pip cannot install it: {log.read_text()[-2000:]}")
        done.touch()
    return python


class DocumentPeer:
    """One process of the peer, with its data in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [ensure_environment(), str(SCRIPT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=child_environment(ALONE),
        )
        self.folder = folder

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Let the peer do something.

        Raises:
            PeerFailed: with what it said.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise PeerFailed(f"It ended: {self._errors.read()[-2000:].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(f"{do}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
