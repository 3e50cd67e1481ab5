"""Which kind of document a file is: by its first bytes where those tell, else by its name."""

import zipfile
from enum import StrEnum
from pathlib import Path

from db.errors import InvalidInput

PDF_MARK, ZIP_MARKS = b"%PDF-", (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
PDF_WITHIN = 1024  # some generators put a line before the header; Acrobat looks as far
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown"})
HEAD_BYTES = 4096
TEXT_SUFFIXES = frozenset(
    {"", ".txt", ".text", ".log", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".xml", ".tex",
     ".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".go", ".rs", ".rb", ".sh", ".css", ".sql", ".toml",
     ".ini", ".cfg", ".conf"}
)  # fmt: skip
OTHERS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "an old Office file, or one with a password",
    b"{\\rtf": "a Rich Text file",
}


class Kind(StrEnum):
    PDF = "pdf"
    DOCX = "docx"
    HTML = "html"
    MARKDOWN = "markdown"
    TEXT = "text"


def kind_of(path: Path, filename: str) -> Kind:
    """Tell a file's kind.

    Raises:
        InvalidInput: it is none that can be read; the message says what it is instead.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    suffix = Path(filename).suffix.lower()
    # A text about PDF may hold its mark, too.
    if head.startswith(PDF_MARK) or (PDF_MARK in head[:PDF_WITHIN] and not _is_named_text(suffix)):
        return Kind.PDF
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise _unsupported(f"It is {name}{f', although named {suffix}' if suffix else ''}.")
    if head.startswith(ZIP_MARKS):
        return _kind_of_zip(path)
    if suffix == ".pdf":
        raise InvalidInput("It is named .pdf, but does not begin as a PDF does.", code="invalid_file")
    if suffix in HTML_SUFFIXES or head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return Kind.HTML
    if suffix in MARKDOWN_SUFFIXES:
        return Kind.MARKDOWN
    if suffix in TEXT_SUFFIXES or _looks_like_text(head):
        return Kind.TEXT
    raise _unsupported(f"{suffix or 'This kind of file'} cannot be read.")


def _is_named_text(suffix: str) -> bool:
    return bool(suffix) and suffix in TEXT_SUFFIXES | HTML_SUFFIXES | MARKDOWN_SUFFIXES


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            if "word/document.xml" in archive.namelist():
                return Kind.DOCX
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InvalidInput(f"It is a damaged DOCX or ZIP file: {error}.", code="invalid_file") from error
    raise _unsupported("It is a ZIP archive, or an Office file other than DOCX.")


def _looks_like_text(head: bytes) -> bool:
    return b"\0" not in head or head.startswith((b"\xff\xfe", b"\xfe\xff"))


def _unsupported(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} Documents are PDF, DOCX, HTML, Markdown and plain text.", code="unsupported_file"
    )
