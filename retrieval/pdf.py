"""PDF: pdfium for text, pypdf for what the file says of itself and as second opinion, tesseract for scans.

Runs in a reader's process (`retrieval.reader`): either library may meet a file that it cannot stand.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput
from retrieval.clean_text import clean, join_broken_words

if TYPE_CHECKING:
    from pypdf import PdfReader
    from pypdfium2 import PdfDocument, PdfPage

OCR_DOTS_PER_INCH = 300
OCR_MOST_PIXELS = 36_000_000  # twice an A3 page
TESSERACT_SECONDS = 45
TITLE_MOST_CHARACTERS = 500
OUTLINE_MOST = 20_000
ATTACHED_MOST = 1000


class Source(StrEnum):
    """Where a page's text comes from, or why there is none."""

    PDFIUM = "pdfium"
    PYPDF = "pypdf"
    OCR = "ocr"
    SCANNED = "scanned"  # an image, and nobody has read it
    ILLEGIBLE = "illegible"  # nor could tesseract
    EMPTY = "empty"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class PageText:
    text: str
    source: Source
    nuls: int = 0


@dataclass(frozen=True)
class Description:
    """What a PDF says of itself.

    Args:
        labels: what is printed on the pages, where that is not 1, 2, 3 …; else empty.
        outline: (title, number of the page from 1).
        warnings: what it holds besides pages, none of which is read or run.
    """

    details: dict[str, str]
    labels: list[str]
    outline: list[tuple[str, int]]
    warnings: list[str]


def count_pages(path: Path, password: str | None) -> int:
    """Open a PDF and count its pages.

    Raises:
        InvalidInput: neither library can open it, or it needs a password.
    """
    claimed = 0
    with contextlib.suppress(_NotByPdfium), _pdfium(path, password) as document:
        claimed = len(document)
        if claimed and _is_there(document, claimed - 1):
            return claimed
    # pdfium believes what the file says of itself, and a few bytes may claim a million pages.
    try:
        with _pypdf(path, password) as reader:
            pages = len(reader.pages)
    except InvalidInput:
        if not claimed:
            raise
        pages = claimed
    if not pages:
        raise InvalidInput("The PDF has no pages.", code="invalid_file")
    return pages


def read_pages(path: Path, password: str | None, first: int, last: int) -> list[PageText]:
    """The text of the pages from `first` to before `last`, counted from 0."""
    pages = dict.fromkeys(range(first, last), PageText("", Source.UNREADABLE))
    with contextlib.suppress(_NotByPdfium), _pdfium(path, password) as document:
        pages = {number: _read_page(document, number) for number in pages}
    without = [number for number, page in pages.items() if not page.text]
    pages |= _second_opinion(path, password, {number: pages[number] for number in without})
    return list(pages.values())


def recognise(path: Path, password: str | None, number: int, data: str | None = None) -> PageText:
    """Read a scanned page by tesseract, with the data of a language or else its default; takes seconds."""
    import pytesseract

    try:
        with _pdfium(path, password) as document, contextlib.closing(document[number]) as page:
            width, height = page.get_size()
            # A page of a few bytes may say that it is as large as a house.
            scale = min(OCR_DOTS_PER_INCH / 72, (OCR_MOST_PIXELS / max(1.0, width * height)) ** 0.5)
            image = page.render(scale=scale, grayscale=True).to_pil()
        read = pytesseract.image_to_string(image, lang=data, timeout=TESSERACT_SECONDS)
    except (_NotByPdfium, pytesseract.TesseractError, RuntimeError, OSError):
        return PageText("", Source.ILLEGIBLE)
    text, nuls = clean(join_broken_words(read))
    return PageText(text, Source.OCR if text else Source.EMPTY, nuls)


def describe(path: Path, password: str | None) -> Description:
    with _pypdf(path, password) as reader:
        details = {}
        for name, value in (reader.metadata or {}).items():
            key = str(name).lstrip("/").lower()
            if key in ("title", "author", "subject", "keywords"):
                text, _ = clean(str(value))
                if text:
                    details[key] = text[:TITLE_MOST_CHARACTERS]
        labels = _labels(reader)
        return Description(details, labels, list(_outline(reader)), list(_besides_pages(reader)))


class _NotByPdfium(Exception):
    """pdfium cannot open the file."""


@contextlib.contextmanager
def _pdfium(path: Path, password: str | None) -> Iterator["PdfDocument"]:
    import pypdfium2
    from pypdfium2.raw import FPDF_ERR_PASSWORD

    try:
        document = pypdfium2.PdfDocument(path, password=password)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == FPDF_ERR_PASSWORD:
            raise _locked(password) from error
        raise _NotByPdfium from error
    try:
        yield document
    finally:
        document.close()


@contextlib.contextmanager
def _pypdf(path: Path, password: str | None) -> Iterator["PdfReader"]:
    """pypdf raises every kind of error on bad input: whatever it is, the file cannot be read by it."""
    from pypdf import PdfReader

    with path.open("rb") as file:
        try:
            reader = PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(password or ""):
                raise _locked(password)
            yield reader
        except (InvalidInput, MemoryError):
            raise
        except Exception as error:
            raise InvalidInput(
                f"The PDF is damaged: {error or type(error).__name__}.", code="invalid_file"
            ) from error


def _locked(password: str | None) -> InvalidInput:
    why = "the password given is not its own" if password else "give its password"
    return InvalidInput(f"The PDF is encrypted: {why}.", param="password", code="encrypted")


def _is_there(document: "PdfDocument", number: int) -> bool:
    import pypdfium2

    try:
        document.get_page_size(number)  # without reading what is on it
    except pypdfium2.PdfiumError:
        return False
    return True


def _read_page(document: "PdfDocument", number: int) -> PageText:
    import pypdfium2

    try:
        page = document[number]
        try:
            textpage = page.get_textpage()
            text, nuls = clean(join_broken_words(textpage.get_text_range()))
            textpage.close()
            if text:
                return PageText(text, Source.PDFIUM, nuls)
            return PageText("", Source.SCANNED if _has_image(page) else Source.EMPTY, nuls)
        finally:
            page.close()
    except pypdfium2.PdfiumError:
        return PageText("", Source.UNREADABLE)


def _second_opinion(path: Path, password: str | None, pages: dict[int, PageText]) -> dict[int, PageText]:
    """What pypdf finds on pages on which pdfium found nothing."""
    found: dict[int, PageText] = {}
    if not pages:
        return found
    with contextlib.suppress(InvalidInput), _pypdf(path, password) as reader:
        for number, page in pages.items():
            try:
                text, nuls = clean(join_broken_words(reader.pages[number].extract_text()))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001, S112 - of one page; the next may be sound
                continue
            if text:
                found[number] = PageText(text, Source.PYPDF, nuls)
            elif page.source == Source.UNREADABLE:
                found[number] = PageText("", Source.EMPTY)
    return found


def _has_image(page: "PdfPage") -> bool:
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    return next(page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE]), None) is not None


def _labels(reader: "PdfReader") -> list[str]:
    if "/PageLabels" not in reader.root_object:
        return []
    labels = [str(label) for label in reader.page_labels]
    return [] if labels == [str(number) for number in range(1, len(labels) + 1)] else labels


def _besides_pages(reader: "PdfReader") -> Iterator[str]:
    """Read in the root alone: a script of one of its pages goes unsaid, and unrun all the same."""
    root: Any = reader.root_object
    names = root["/Names"] if "/Names" in root else ()  # noqa: SIM401 - pypdf's get follows no reference
    if "/EmbeddedFiles" in names:
        attached = sum(1 for _ in itertools.islice(reader.attachment_list, ATTACHED_MOST))
        yield f"It has {attached} attached file{'s' if attached > 1 else ''}, of which nothing is read."
    if "/JavaScript" in names or ("/OpenAction" in root and "/JS" in root["/OpenAction"]):
        yield "It holds JavaScript, which is not run."


def _outline(reader: "PdfReader") -> Iterator[tuple[str, int]]:
    """The outline from top to bottom, without recursion: a hostile one is a thousand levels deep."""
    waiting: list[Any] = [iter(reader.outline)]
    given = 0
    while waiting and given < OUTLINE_MOST:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif isinstance(entry, list):
            waiting.append(iter(entry))
        else:
            page = reader.get_destination_page_number(entry)
            title, _ = clean(str(entry.title or ""))
            if page is not None and page >= 0 and title:
                given += 1
                yield " ".join(title.split())[:TITLE_MOST_CHARACTERS], page + 1
