"""Documents without pages: plain text, Markdown, HTML. Each function gives blocks of text in order."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from charset_normalizer import from_bytes

from db.errors import InvalidInput
from retrieval.clean_text import clean
from retrieval.content import Content, Section

# A text larger than that is a table or a log, which deserves a file a part.
MAX_BYTES = 32 * 1024**2
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# ISO 2022 switches between its alphabets by these; else it is ASCII, and would pass for that.
JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@")
# What tools put before a Markdown text: its last line would be read as underlining a heading.
FRONT_MATTER = re.compile(r"""\A---[ \t]*\n(?=[\w"'-]+[ \t]*:)(?:.*\n)*?---[ \t]*(?:\n|\Z)""")
BLOCK_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Block:
    """A paragraph, a heading, a table: what stands between empty lines."""

    text: str
    is_heading: bool = False


def read_text(path: Path) -> Content:
    text, warnings = _decoded(path)
    return content_of([Block(text)], warnings)


def read_markdown(path: Path) -> Content:
    """Markdown as it is written; its headings are the sections."""
    from markdown_it import MarkdownIt

    text, warnings = _decoded(path)
    text, nuls = clean(text)
    if nuls:
        warnings = [*warnings, nul_warning(nuls)]
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    sections = []
    tokens = MarkdownIt().parse(FRONT_MATTER.sub(lambda matter: "\n" * matter[0].count("\n"), text))
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.map is not None and inline.content:
            title = "".join(
                " " if child.type.endswith("break") else child.content for child in inline.children or []
            )
            sections.append(Section(starts[opening.map[0]], " ".join(title.split())))
    return Content(text, sections=sections, warnings=warnings)


def read_html(path: Path) -> Content:
    """What a reader of the page would see: no scripts, no styles, no markup."""
    from lxml import html

    text, warnings = _decoded(path)
    if not text.strip():
        return content_of([], warnings)
    # A declared encoding is refused in text that is decoded already.
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    root = html.document_fromstring(text.encode("utf-8", "replace"), parser=parser)
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        warnings = [
            *warnings,
            "Its elements are nested too deep: what comes after the first such is missing.",
        ]
    title = " ".join((root.findtext(".//title") or "").split())
    return content_of(_html_blocks(root), warnings, {"title": title} if title else {})


SKIPPED = frozenset({"script", "style", "template", "noscript", "head", "svg", "math"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
     "font", "i", "img", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strike",
     "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
)  # fmt: skip
CELLS = frozenset({"td", "th"})
BETWEEN_CELLS = " | "


def _html_blocks(root: object) -> Iterator[Block]:
    """Walk the tree; what is not inline begins and ends a block. A row of a table whose cells hold no blocks
    of their own is one: of a value that stands alone nobody knows whose it is."""
    from lxml import etree

    parts: list[str] = []
    skipping = verbatim = 0
    inline = INLINE

    def block(*, is_heading: bool = False) -> Iterator[Block]:
        text = "".join(parts)
        parts.clear()
        if text.replace(BETWEEN_CELLS.strip(), "").strip():
            yield Block(text.strip("\n") if verbatim else " ".join(text.split()), is_heading)

    for event, element in etree.iterwalk(root, events=("start", "end")):
        name = element.tag if isinstance(element.tag, str) else "script"
        if event == "start":
            skipping += name in SKIPPED
            if name not in inline:
                yield from block()
            elif name in CELLS and element.getprevious() is not None:
                parts.append(BETWEEN_CELLS)
            if name == "tr" and all(inner.tag in INLINE | CELLS for inner in element.iterdescendants()):
                inline = INLINE | CELLS
            verbatim += name == "pre"
            parts.append("" if skipping else element.text or "")
            continue
        if name not in inline:
            yield from block(is_heading=name in HEADINGS)
            inline = INLINE
        verbatim -= name == "pre"
        skipping -= name in SKIPPED
        parts.append("" if skipping else element.tail or "")


def content_of(
    blocks: Iterable[Block], warnings: list[str], details: dict[str, str] | None = None
) -> Content:
    """Join blocks to one text, cleaned first, so that the sections' places are those of the text."""
    parts, sections, length, nuls = [], [], 0, 0
    for block in blocks:
        text, dropped = clean(block.text)
        nuls += dropped
        if not text:
            continue
        if block.is_heading:
            sections.append(Section(length, " ".join(text.split())))
        parts.append(text)
        length += len(text) + len(BLOCK_SEPARATOR)
    if nuls:
        warnings = [*warnings, nul_warning(nuls)]
    return Content(BLOCK_SEPARATOR.join(parts), sections=sections, warnings=warnings, details=details or {})


def nul_warning(nuls: int) -> str:
    return f"{nuls} NUL character{'s were' if nuls > 1 else ' was'} dropped."


NOT_UTF_8 = "It is not UTF-8 and was read as {}: save it as UTF-8 if letters look wrong."


def _decoded(path: Path) -> tuple[str, list[str]]:
    data = bytes_of(path)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace"), []
    if any(escape in data for escape in JAPANESE_ESCAPES):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("iso2022_jp"), [NOT_UTF_8.format("iso2022_jp")]
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        best = from_bytes(data[: 256 * 1024]).best()
    if best is None:
        raise InvalidInput(
            "It is no text in an encoding that is known: save it as UTF-8.", code="unsupported_file"
        )
    return data.decode(best.encoding, "replace"), [NOT_UTF_8.format(best.encoding)]


def bytes_of(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInput(
            f"It has more than {MAX_BYTES // 1024**2} MiB: cut it into several files.", code="file_too_large"
        )
    return path.read_bytes()
