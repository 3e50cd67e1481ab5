"""A process that reads documents: `python -m retrieval.reader PIPE`, or a copy of the one that needs it.

Whatever a file does to it, it is only this process that dies: it has limits on its memory, and whoever
started it ends it when time is up. It takes JSON lines on stdin and gives one line on the pipe for each.
"""

import contextlib
import gc
import importlib
import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from db.errors import InvalidInput
from retrieval import docx_format, pdf, plain_formats, tesseract
from retrieval.cutting import cut_content
from retrieval.kinds import Kind, kind_of

STANDARD = (0, 1, 2)
MEMORY_BYTES = 512 * 1024**2
# What a new one has of that before its first file. A copy shares as much with the process it came from.
NEW_READER_BYTES = 128 * 1024**2
# A text that did not fit in here would not fit in memory a few times over, either.
TEXT_MOST_CHARACTERS = 48 * 1024**2
PLAIN = {
    Kind.TEXT: plain_formats.read_text,
    Kind.MARKDOWN: plain_formats.read_markdown,
    Kind.HTML: plain_formats.read_html,
    Kind.DOCX: docx_format.read_docx,
}
# What tasks import when they need it, since each new reader would have to wait for all of it.
IMPORTED_LATE = (
    "docx", "langchain_text_splitters", "lxml.html", "markdown_it", "pypdf", "pypdfium2", "pypdfium2.raw",
    "tokenizers", "tokenizers.normalizers", "tokenizers.pre_tokenizers",
)  # fmt: skip


def main() -> None:
    _limit_memory(MEMORY_BYTES)
    _serve(sys.stdin, int(sys.argv[1]))


def preload() -> None:
    """Import all that any task needs: whoever is copied afterwards has it."""
    for module in IMPORTED_LATE:
        importlib.import_module(module)


def read_in_copy(tasks: int, answers: int) -> NoReturn:
    """Be a reader from now on, in a process that is a copy; it never goes on with what it was copied from.

    Its memory is limited as a new one's is: to so much more than it began with.
    """
    code = 1
    try:
        gc.freeze()  # nothing is finalised that the other process still uses
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _leave_files(tasks, answers)
        _limit_memory(_address_space() + MEMORY_BYTES - NEW_READER_BYTES)
        with os.fdopen(tasks, encoding="utf-8") as lines:
            _serve(lines, answers)
        code = 0
    finally:
        os._exit(code)


def _leave_files(*kept: int) -> None:
    """Close what the other process has open: the pipes among it would never end otherwise."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in STANDARD:
        os.dup2(null, standard)
    for opened in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if opened not in (*STANDARD, *kept):
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(opened)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit_memory(address_space: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def _serve(tasks: Iterable[str], answers: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # There are as many readers as cores already: tesseract gets one thread.
    os.environ["OMP_THREAD_LIMIT"] = "1"
    # pypdf warns of each oddity of a file, a million times if need be.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with os.fdopen(answers, "w", encoding="utf-8", errors="replace") as out:
        for line in tasks:
            out.write(json.dumps(_answer(json.loads(line))) + "\n")
            out.flush()


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    try:
        return TASKS[task.pop("task")](**task)
    except InvalidInput as error:
        return {"error": {"code": error.code, "message": error.message}}
    except FileNotFoundError:
        return {"error": {"code": "file_missing", "message": FILE_MISSING}}
    except MemoryError:
        return {"error": {"code": "out_of_memory", "message": OUT_OF_MEMORY}}
    except Exception as error:  # noqa: BLE001 - the edge of the process: a file can raise anything
        return {
            "error": {
                "code": "invalid_file",
                "message": f"It is damaged: {type(error).__name__}: {error}"[:500],
            }
        }


FILE_MISSING = "Its upload is no longer on the server's disk: upload it again."
OUT_OF_MEMORY = f"Reading it takes more than {MEMORY_BYTES // 1024**2} MiB of memory."


def _open(path: str, filename: str, password: str | None) -> dict[str, Any]:
    """A PDF's number of pages; of other kinds everything."""
    kind = kind_of(Path(path), filename)
    if kind == Kind.PDF:
        return {"kind": kind, "pages": pdf.count_pages(Path(path), password)}
    content = PLAIN[kind](Path(path))
    if len(content.text) > TEXT_MOST_CHARACTERS:
        raise InvalidInput("It unpacks to too much text: cut it into several files.", code="file_too_large")
    return {"kind": kind, "content": content.to_json()}


def _pages(path: str, password: str | None, first: int, last: int) -> dict[str, Any]:
    pages = pdf.read_pages(Path(path), password, first, last)
    if sum(len(page.text) for page in pages) > TEXT_MOST_CHARACTERS:
        raise InvalidInput("It unpacks to too much text: cut it into several files.", code="file_too_large")
    return {"pages": [asdict(page) for page in pages]}


def _recognise(path: str, password: str | None, number: int, data: str | None) -> dict[str, Any]:
    return asdict(pdf.recognise(Path(path), password, number, data))


def _tesseract_data() -> dict[str, Any]:
    return {"installed": tesseract.installed()}


def _describe(path: str, password: str | None) -> dict[str, Any]:
    return asdict(pdf.describe(Path(path), password))


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "open": _open,
    "pages": _pages,
    "recognise": _recognise,
    "tesseract_data": _tesseract_data,
    "describe": _describe,
    "cut": cut_content,
}

if __name__ == "__main__":
    main()
