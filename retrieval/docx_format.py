"""DOCX: what a reader of its body sees, in order.

python-docx passes over what Word puts something else around: content controls, insertions that are not
accepted yet, fields, text boxes. So those wrappings are taken off first.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from db.errors import InvalidInput
from retrieval.content import Content
from retrieval.plain_formats import MAX_BYTES, Block, bytes_of, content_of

if TYPE_CHECKING:
    from docx.document import Document
    from docx.table import Table, _Cell
    from docx.text.paragraph import Paragraph

# A hostile file nests tables by the thousand.
TABLES_DEEPEST = 8
WORD_PART = "application/vnd.openxmlformats-officedocument.wordprocessingml."
BESIDES_BODY = {
    "header": "headers",
    "footer": "footers",
    "footnotes": "footnotes",
    "endnotes": "endnotes",
    "comments": "comments",
}
WORD_TEXT = re.compile(rb"<w:t[ >][^<]*[^<\s]")
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
FORMULA = "{http://schemas.openxmlformats.org/officeDocument/2006/math}oMath"
# The same once more, for programs that do not know the newer form beside it.
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
CONTROL, CONTROL_CONTENT = f"{WORD}sdt", f"{WORD}sdtContent"
WRAPPINGS = [CONTROL, *(f"{WORD}{name}" for name in ("ins", "moveTo", "customXml", "smartTag", "fldSimple"))]
TEXT_BOX, PARAGRAPH = f"{WORD}txbxContent", f"{WORD}p"


def read_docx(path: Path) -> Content:
    import docx

    try:
        document = docx.Document(io.BytesIO(_checked(path)))
    except (KeyError, ValueError, zipfile.BadZipFile, SyntaxError) as error:
        raise InvalidInput(f"It is no readable DOCX file: {error}.", code="invalid_file") from error
    if document.element.getroottree().docinfo.doctype:
        raise InvalidInput("It declares a document type, which no DOCX file may.", code="invalid_file")
    _unwrap(document)
    core = document.core_properties
    details = {name: value for name, value in (("title", core.title), ("author", core.author)) if value}
    return content_of(_blocks(document), _not_read(document), details)


def _checked(path: Path) -> bytes:
    data = bytes_of(path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(part.file_size for part in archive.infolist() if part.filename.endswith(".xml"))
    if unpacked > MAX_BYTES:
        raise InvalidInput(
            f"It unpacks to more than {MAX_BYTES // 1024**2} MiB of text: cut it into several files.",
            code="file_too_large",
        )
    return data


def _unwrap(document: "Document") -> None:
    """Put what wrappings hold in their place."""
    for wrapping in list(document.element.body.iter(*WRAPPINGS)):
        held = wrapping.find(CONTROL_CONTENT) if wrapping.tag == CONTROL else wrapping
        for child in list(held) if held is not None else []:
            wrapping.addprevious(child)
        wrapping.getparent().remove(wrapping)


def _blocks(document: "Document") -> Iterator[Block]:
    from docx.table import Table

    for item in document.iter_inner_content():
        if isinstance(item, Table):
            yield Block(_table_text(item))
            continue
        style = item.style.name if item.style is not None else None
        yield Block(item.text, (style or "").startswith(("Heading", "Title")))
        yield from map(Block, _boxes(item))


def _boxes(paragraph: "Paragraph") -> Iterator[str]:
    """The texts of the boxes that are anchored in a paragraph."""
    for box in paragraph._p.iter(TEXT_BOX):
        if next(box.iterancestors(FALLBACK), None) is None:
            yield "\n".join(inner.text for inner in box.iter(PARAGRAPH))


def _table_text(table: "Table", depth: int = 0) -> str:
    """A line a row. What stands in a table within a cell is part of the cell."""
    # One that spans several columns is given for each.
    rows = (dict.fromkeys(row.cells) for row in table.rows)
    return "\n".join(" | ".join(_cell_text(cell, depth) for cell in row) for row in rows)


def _cell_text(cell: "_Cell", depth: int) -> str:
    from docx.table import Table

    parts = []
    for item in cell.iter_inner_content():
        if not isinstance(item, Table):
            parts += [item.text, *_boxes(item)]
        elif depth < TABLES_DEEPEST:
            parts.append(_table_text(item, depth + 1))
    return "\n".join(parts).strip()


def _not_read(document: "Document") -> list[str]:
    """What a DOCX holds besides what is read; a part that has no text is not told of."""
    found = set()
    for part in document.part.package.iter_parts():
        kind = part.content_type.removeprefix(WORD_PART).removesuffix("+xml")
        if kind in BESIDES_BODY and WORD_TEXT.search(part.blob):
            found.add(kind)
    told = [f"Its {name} are not read." for kind, name in BESIDES_BODY.items() if kind in found]
    if next(document.element.body.iter(FORMULA), None) is not None:
        told.append("Its formulas are not read.")
    return told
