"""Read one document, with the limits that a hostile file needs and an honest one does not feel.

The pages of a PDF are read in ranges, over all readers at once. A range that ends its reader is halved until
the page is found that does it, and only that page is missing.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from db.languages import SIMPLE
from retrieval.content import Content, Section, join_pages
from retrieval.pdf import Source
from retrieval.plain_formats import nul_warning
from retrieval.readers import Clock, ReaderDied, Readers, TooSlow, Unreadable
from retrieval.tesseract import DATA

# What any file gets; each page beyond the first 500 of a long one adds to it.
SECONDS = 30.0
SECONDS_A_PAGE = 0.05
PAGES_WITHIN_SECONDS = 500
DESCRIBE_SECONDS = 10.0
# What tesseract gets on the average, and for one page at most.
OCR_SECONDS_A_PAGE = 20.0
OCR_MOST_SECONDS = 60.0
RANGE_PAGES = 32
PAGES_NAMED = 10

Result = TypeVar("Result")
Progress = Callable[[int, int], None]  # pages read, pages


@dataclass(frozen=True)
class DocumentFile:
    path: Path
    filename: str
    password: str | None = None
    language: str | None = None  # its name, where it was given


def read_document(
    file: DocumentFile, readers: Readers, executor: Executor, progress: Progress = lambda done, total: None
) -> Content:
    """Read a document's text.

    Args:
        executor: runs page ranges at once; it has at least as many threads as there are readers.
    Raises:
        Unreadable: with the reason, for the user.
    """
    clock = Clock(SECONDS)
    where = {"path": str(file.path), "password": file.password}
    opened = readers.do({"task": "open", **where, "filename": file.filename}, clock=clock)
    if "content" in opened:
        content = Content.from_json(opened["content"])
        if not content.text:
            raise Unreadable(" ".join(["It has no text.", *content.warnings]), code="empty_file")
        return content
    pages = opened["pages"]
    if pages > PAGES_WITHIN_SECONDS:
        clock.add((pages - PAGES_WITHIN_SECONDS) * SECONDS_A_PAGE)
    describing = executor.submit(_describe, where, clock, readers)
    ranges = [(first, min(first + RANGE_PAGES, pages)) for first in range(0, pages, RANGE_PAGES)]
    reading = [executor.submit(_read_range, where, first, last, clock, readers) for first, last in ranges]
    texts: list[dict[str, Any]] = []
    for part in _in_order(reading):
        texts += part
        progress(len(texts) - len(_scanned(texts)), pages)
    untold: list[str] = []
    if _scanned(texts) and shutil.which("tesseract") is not None:
        data, untold = _tesseract_data(file.language, readers)
        _recognise_scanned({**where, "data": data}, texts, readers, executor, progress)
    description, warnings = describing.result()
    text, starts = join_pages(page["text"] for page in texts)
    warnings += [*_page_warnings(texts), *untold]
    if not text.strip():
        raise _without_text(texts)
    return Content(
        text,
        page_starts=starts,
        page_labels=description["labels"] if len(description["labels"]) == pages else [],
        sections=_sections(description["outline"], text, starts),
        warnings=warnings,
        details=description["details"],
    )


def _in_order(futures: list[Future[Result]]) -> Iterator[Result]:
    """The results one by one; if one fails, those that have not begun never do."""
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _scanned(pages: list[dict[str, Any]]) -> list[int]:
    return [number for number, page in enumerate(pages) if page["source"] == Source.SCANNED]


def _recognise_scanned(
    where: dict[str, Any],
    pages: list[dict[str, Any]],
    readers: Readers,
    executor: Executor,
    progress: Progress,
) -> None:
    """Put what tesseract reads in the place of the scanned pages. It takes seconds a page, and has a time of
    its own; a page that it cannot read, or not in time, stays without text."""
    numbers = _scanned(pages)
    clock = Clock(len(numbers) * OCR_SECONDS_A_PAGE)
    reading = [executor.submit(_recognise, where, number, clock, readers) for number in numbers]
    for left, (number, page) in enumerate(zip(numbers, _in_order(reading), strict=True), 1 - len(numbers)):
        pages[number] = page
        progress(len(pages) + left, len(pages))


def _tesseract_data(language: str | None, readers: Readers) -> tuple[str | None, list[str]]:
    """What tesseract is to read a language with, None for its default; and what to warn of."""
    if language in (None, SIMPLE):
        return None, []
    data = DATA.get(language)
    with contextlib.suppress(Unreadable):
        installed = readers.do({"task": "tesseract_data"}, clock=Clock(DESCRIBE_SECONDS))["installed"]
        if data in installed:
            return data, []
    return None, [
        f"tesseract has no data here for {language}, and reads it in its default language: install that data "
        "on the worker's machine before such files are ingested."
    ]


def _recognise(where: dict[str, Any], number: int, clock: Clock, readers: Readers) -> dict[str, Any]:
    try:
        task = {"task": "recognise", **where, "number": number}
        return readers.do(task, clock=clock, most_seconds=OCR_MOST_SECONDS)
    except Unreadable:
        return {"text": "", "source": Source.ILLEGIBLE, "nuls": 0}


def _describe(where: dict[str, Any], clock: Clock, readers: Readers) -> tuple[dict[str, Any], list[str]]:
    """What the PDF says of itself; a document is not refused for what is odd about that."""
    try:
        task = {"task": "describe", **where}
        description = readers.do(task, clock=clock, most_seconds=DESCRIBE_SECONDS)
        return description, description["warnings"]
    except Unreadable as error:
        warning = f"Its title, outline and page labels could not be read: {error.message}"
        return {"details": {}, "labels": [], "outline": []}, [warning]


def _read_range(
    where: dict[str, Any], first: int, last: int, clock: Clock, readers: Readers
) -> list[dict[str, Any]]:
    if clock.left() <= 0:
        raise TooSlow(f"Reading it takes too long: it was given up at page {first + 1}.")
    task = {"task": "pages", **where, "first": first, "last": last}
    try:
        pages: list[dict[str, Any]] = readers.do(task, clock=clock)["pages"]
        return pages
    except TooSlow:
        raise
    except Unreadable as error:
        if not isinstance(error, ReaderDied) and error.code != "out_of_memory":
            raise
        if last - first == 1:
            return [{"text": "", "source": Source.UNREADABLE, "nuls": 0}]
    middle = (first + last) // 2
    return _read_range(where, first, middle, clock, readers) + _read_range(
        where, middle, last, clock, readers
    )


def _page_warnings(pages: list[dict[str, Any]]) -> list[str]:
    by_source = Counter(page["source"] for page in pages)
    told = {
        Source.SCANNED: "scanned images without text, and tesseract is not installed here to read them",
        Source.ILLEGIBLE: "scanned images that tesseract could not read",
        Source.UNREADABLE: "damaged and could not be read",
        Source.OCR: "scanned images, read by tesseract: expect mistakes",
    }
    warnings = []
    for source, what in told.items():
        if not by_source[source]:
            continue
        numbers = [number for number, page in enumerate(pages, 1) if page["source"] == source]
        warnings.append(f"{_named(numbers)} {'is' if len(numbers) == 1 else 'are'} {what}.")
    nuls = sum(page["nuls"] for page in pages)
    return [*warnings, nul_warning(nuls)] if nuls else warnings


def _named(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers[:PAGES_NAMED]))
    more = f" and {len(numbers) - PAGES_NAMED} more" if len(numbers) > PAGES_NAMED else ""
    return f"Page{'s' if len(numbers) > 1 else ''} {listed}{more}"


def _without_text(pages: list[dict[str, Any]]) -> Unreadable:
    sources = {page["source"] for page in pages}
    if Source.SCANNED in sources:
        return Unreadable(
            "Its pages are scanned images without text: install tesseract on the worker's machine to have "
            "them read.",
            code="scanned",
        )
    if Source.ILLEGIBLE in sources:
        return Unreadable("Its pages are scanned images, and tesseract could not read them.", code="scanned")
    if Source.UNREADABLE in sources:
        return Unreadable("It is damaged: none of its pages could be read.", code="invalid_file")
    return Unreadable("It has no text.", code="empty_file")


def _sections(outline: list[tuple[str, int]], text: str, starts: list[int]) -> list[Section]:
    """Each heading of the outline where it stands on its page, or else at the page's beginning."""
    sections = []
    for title, number in outline:
        if not 1 <= number <= len(starts):
            continue
        start = starts[number - 1]
        end = starts[number] if number < len(starts) else len(text)
        found = text.find(title, start, end)
        sections.append(Section(found if found >= 0 else start, title))
    return sorted(sections, key=lambda section: section.start)
