"""Documents for tests, written by libraries that people write theirs with."""

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import docx
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fpdf import FPDF
from fpdf.enums import AccessPermission, EncryptionMethod


def pdf_of(
    pages: list[str],
    *,
    outline: dict[str, int] | None = None,
    title: str = "",
    password: str | None = None,
    owner_password: str | None = None,
    font: bytes | None = None,
) -> bytes:
    """A PDF with a text a page.

    Args:
        outline: title -> number of its page from 1.
        font: a TrueType font, for texts beyond Latin.
    """
    pdf = FPDF()
    pdf.set_title(title)
    if password is not None or owner_password is not None:
        pdf.set_encryption(
            owner_password=owner_password or "owner",
            user_password=password,
            encryption_method=EncryptionMethod.AES_256,
            permissions=AccessPermission.all(),
        )
    if font is not None:
        with tempfile.NamedTemporaryFile(suffix=".ttf") as file:
            file.write(font)
            file.flush()
            pdf.add_font("own", fname=file.name)
    by_page = {number: name for name, number in (outline or {}).items()}
    for number, text in enumerate(pages, 1):
        pdf.add_page()
        pdf.set_font("own" if font is not None else "helvetica", size=12)
        if number in by_page:
            pdf.start_section(by_page[number])
        pdf.multi_cell(0, 6, text)
    return bytes(pdf.output())


def scanned_pdf(pages: int = 1) -> bytes:
    """Pages that are pictures."""
    from PIL import Image

    pdf = FPDF()
    picture = Image.new("L", (200, 100), 128)
    for _ in range(pages):
        pdf.add_page()
        pdf.image(picture, w=100)
    return bytes(pdf.output())


class RawPdf:
    """A PDF written by hand, to say what no library would write: one page that reads `Hello lathe`.

    Args:
        objects: take the place of these, by number, or come beside them. 1: catalog, 2: page tree, 3: page,
            4: its content, 5: its font.
        trailer: further entries of it.
    """

    OBJECTS: ClassVar[dict[int, bytes]] = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 199 199] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> /XObject << /X 6 0 R >> >> >>",
        4: b"<< /Length 40 >>\nstream\nBT /F1 12 Tf 10 10 Td (Hello lathe) Tj ET\nendstream",
        5: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }

    def __init__(self, objects: dict[int, bytes] | None = None, *, trailer: bytes = b"") -> None:
        self._objects = dict(sorted((self.OBJECTS | (objects or {})).items()))
        self._trailer = trailer

    def to_bytes(self) -> bytes:
        parts, places, length = [b"%PDF-1.7\n"], {}, 9
        for number, body in self._objects.items():
            places[number] = length
            parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
            length += len(parts[-1])
        size = max(places) + 1
        rows = [
            b"%010d 00000 %c \n" % (places.get(n, 0), b"n" if n in places else b"f") for n in range(1, size)
        ]
        parts += [b"xref\n0 %d\n0000000000 65535 f \n" % size, *rows]
        parts.append(b"trailer << /Size %d /Root 1 0 R %s >>\n" % (size, self._trailer))
        parts.append(b"startxref\n%d\n%%%%EOF" % length)
        return b"".join(parts)


def pdf_stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(content), content)


def docx_with(changes: dict[str, Callable[[bytes], bytes]]) -> bytes:
    """A DOCX that reads `Hello docx`, its parts changed, or made, by these functions."""
    whole, out = zipfile.ZipFile(io.BytesIO(docx_of([("Normal", "Hello docx")]))), io.BytesIO()
    parts = {name: whole.read(name) for name in whole.namelist()}
    parts |= {name: change(parts.get(name, b"")) for name, change in changes.items()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def docx_of(paragraphs: list[tuple[str, str]], *, table: list[list[str]] | None = None) -> bytes:
    """A DOCX of (style, text)."""
    document = docx.Document()
    document.core_properties.title = "A report"
    for style, text in paragraphs:
        document.add_paragraph(text, style=style)
    if table:
        rows = document.add_table(rows=0, cols=len(table[0]))
        for row in table:
            for cell, text in zip(rows.add_row().cells, row, strict=True):
                cell.text = text
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def font_of(characters: str) -> bytes:
    """A TrueType font with a box for each of these characters."""
    names = {ord(character): f"u{ord(character):04X}" for character in set(characters) | {" "}}
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, 700), (450, 700), (450, 0)):
        pen.lineTo(point)
    pen.closePath()
    box = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    order = [".notdef", *names.values()]
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(order, box))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (500, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    out = io.BytesIO()
    builder.save(out)
    return out.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path
