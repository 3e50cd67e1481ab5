"""Reading documents: what is right, and what hostile files cannot do."""

import io
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import docx
import psutil
import pypdf
import pytest
from docx.document import Document as DocxDocument

from retrieval.readers import Clock, Reader, Readers, TooSlow, Unreadable
from retrieval.reading import SECONDS
from tests.documents import docx_of, docx_with, font_of, pdf_of, scanned_pdf
from tests.retrieval.conftest import Read

TEXT = "Lathes turn metal. " * 20


class TestPdf:
    def test_pages_sections_and_details(self, read: Read) -> None:
        pages = [f"Chapter {number}\nPage {number} speaks of subject{number}." for number in range(1, 6)]
        content = read(pdf_of(pages, outline={"Chapter 2": 2, "Chapter 4": 4}, title="A title"))
        assert content.details["title"] == "A title"
        assert len(content.page_starts) == 5
        for number in range(1, 6):
            assert content.page_at(content.text.index(f"subject{number}")) == number
        assert content.section_at(content.text.index("subject1")) is None
        assert content.section_at(content.text.index("subject3")) == "Chapter 2"
        assert content.section_at(content.text.index("subject5")) == "Chapter 4"

    def test_many_pages_keep_their_order(self, read: Read) -> None:
        content = read(pdf_of([f"number{n}." for n in range(150)]))
        found = [content.page_at(content.text.index(f"number{n}.")) for n in range(150)]
        assert found == list(range(1, 151))

    def test_other_writings(self, read: Read) -> None:
        words = ["日本語の文章", "中文文本", "한국어", "ελληνικά", "русский"]
        text = "\n".join(words)
        content = read(pdf_of([text], font=font_of(text)))
        for word in words:
            assert word in content.text

    def test_right_to_left_comes_in_the_order_of_speech(self, read: Read) -> None:
        text = "שלום עולם טוב"
        # On the page its letters stand from right to left.
        assert read(pdf_of([text[::-1]], font=font_of(text))).text == text

    def test_words_broken_at_line_ends(self, read: Read) -> None:
        content = read(pdf_of(["It speaks of inter-\nnational trade."]))
        assert "international trade" in content.text

    def test_passwords(self, read: Read) -> None:
        locked = pdf_of(["A secret"], password="right")
        with pytest.raises(Unreadable, match="give its password") as caught:
            read(locked)
        assert caught.value.code == "encrypted"
        with pytest.raises(Unreadable, match="not its own"):
            read(locked, password="wrong")
        assert "A secret" in read(locked, password="right").text

    def test_one_that_only_its_owner_may_change_needs_none(self, read: Read) -> None:
        assert "Open" in read(pdf_of(["Open to all"], owner_password="x")).text

    def test_scanned_pages_are_said(self, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")  # where no tesseract is
        with pytest.raises(Unreadable, match="scanned images") as caught:
            read(scanned_pdf())
        assert caught.value.code == "scanned"

    def test_pages_beyond_the_text_are_warned_of(self, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        writer = pypdf.PdfWriter()
        for part in (pdf_of(["Words"]), scanned_pdf(2)):
            writer.append(io.BytesIO(part))
        out = io.BytesIO()
        writer.write(out)
        content = read(out.getvalue())
        assert content.warnings == [
            "Pages 2, 3 are scanned images without text, and tesseract is not installed here to read them."
        ]


class TestOthers:
    def test_html(self, read: Read) -> None:
        page = (
            "<html><head><title>The title</title><style>b{}</style></head><body><nav>Menu</nav>"
            "<h1>First <i>part</i></h1><p>One<br>two &amp; three.</p><script>evil()</script>"
            "<h2>Second</h2><pre>a\n  b</pre>tail</body>"
        )
        content = read(page.encode(), "a.html")
        assert content.details == {"title": "The title"}
        assert "evil" not in content.text
        assert "b{}" not in content.text
        assert "a\n  b" in content.text
        assert content.section_at(content.text.index("three")) == "First part"
        assert content.section_at(content.text.index("tail")) == "Second"

    def test_a_row_of_an_html_table_stays_together(self, read: Read) -> None:
        page = (
            "<table><tr><th>City<th>Rent</tr><tr><td>Bern<td><b>900</b> CHF</tr><tr><td><td></tr></table>"
            "<table><tr><td><p>A layout</p><td><ul><li>of<li>blocks</ul></tr></table><p>End"
        )
        content = read(page.encode(), "a.html")
        assert content.text == "City | Rent\n\nBern | 900 CHF\n\nA layout\n\nof\n\nblocks\n\nEnd"

    def test_markdown(self, read: Read) -> None:
        text = "# One\n\nText.\n\n```\n# no heading\n```\n\nTwo\n===\n\nMore."
        content = read(text.encode(), "a.md")
        assert [section.title for section in content.sections] == ["One", "Two"]
        assert content.section_at(content.text.index("More")) == "Two"

    def test_front_matter_is_no_heading(self, read: Read) -> None:
        text = "---\ntitle: A note\ntags: [a]\n---\n# The *fir*st `part`\n\nText.\n\n---\n\nMore."
        content = read(text.encode(), "a.md")
        assert content.text == text
        assert [(row.title, row.start) for row in content.sections] == [("The first part", text.index("#"))]

    def test_docx(self, read: Read) -> None:
        content = read(
            docx_of([("Title", "Report"), ("Heading 1", "Costs"), ("Normal", "Dear.")], table=[["a", "b"]]),
            "a.docx",
        )
        assert content.details["title"] == "A report"
        assert content.section_at(content.text.index("Dear")) == "Costs"
        assert "a | b" in content.text

    def test_docx_with_tables_within_tables(self, read: Read) -> None:
        document = docx.Document()
        outer = document.add_table(rows=2, cols=2)
        outer.cell(0, 0).text = "left"
        outer.cell(1, 0).merge(outer.cell(1, 1)).text = "wide"
        inner = outer.cell(0, 1).add_table(rows=1, cols=2)
        inner.cell(0, 0).text, inner.cell(0, 1).text = "inner one", "inner two"
        content = read(saved(document), "a.docx")
        assert content.text == "left | inner one | inner two\nwide"
        assert content.warnings == []

    def test_what_word_puts_something_around_is_part_of_a_docx(self, read: Read) -> None:
        run = '<w:r><w:t xml:space="preserve">{}</w:t></w:r>'.format
        choice, fallback = (f"<w:txbxContent><w:p>{run('Boxed.')}</w:p></w:txbxContent>" for _ in range(2))
        office = "http://schemas.openxmlformats.org"
        wrapped = (
            f"<w:p>{run('We pay ')}<w:ins w:id='1' w:author='A'>{run('forty ')}</w:ins>"
            f"<w:del w:id='2' w:author='A'><w:r><w:delText>thirty </w:delText></w:r></w:del>"
            f"<w:moveFrom w:id='3' w:author='A'>{run('moved ')}</w:moveFrom>"
            f"<w:fldSimple w:instr='DATE'>{run('today')}</w:fldSimple></w:p>"
            f"<w:sdt><w:sdtPr/><w:sdtContent><w:p>{run('Dear ')}<w:sdt><w:sdtContent>{run('Ann')}"
            "</w:sdtContent></w:sdt></w:p><w:tbl><w:tblPr/><w:tblGrid><w:gridCol/></w:tblGrid>"
            "<w:sdt><w:sdtContent>"
            f"<w:tr><w:tc><w:p>{run('a row')}</w:p></w:tc></w:tr></w:sdtContent></w:sdt></w:tbl>"
            "</w:sdtContent></w:sdt>"
            f'<w:p><w:r><mc:AlternateContent xmlns:mc="{office}/markup-compatibility/2006">'
            f"<mc:Choice>{choice}</mc:Choice><mc:Fallback>{fallback}</mc:Fallback>"
            "</mc:AlternateContent></w:r></w:p>"
            f'<w:p><m:oMath xmlns:m="{office}/officeDocument/2006/math"/></w:p>'
        )
        changed = docx_with(
            {"word/document.xml": lambda x: x.replace(b"<w:sectPr", wrapped.encode() + b"<w:sectPr")}
        )
        content = read(changed, "a.docx")
        assert content.text == "Hello docx\n\nWe pay forty today\n\nDear Ann\n\na row\n\nBoxed."
        assert content.warnings == ["Its formulas are not read."]

    def test_what_a_docx_holds_besides_its_body_is_said(self, read: Read) -> None:
        document = docx.Document()
        document.add_paragraph("Body.")
        document.sections[0].header.paragraphs[0].text = "Confidential"
        document.sections[0].footer.is_linked_to_previous = False  # and has no text
        content = read(saved(document), "a.docx")
        assert (content.text, content.warnings) == ("Body.", ["Its headers are not read."])

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    def test_text_in_any_encoding(self, read: Read, encoding: str) -> None:
        text = "Größe und Maße: fünf Äpfel, süße Öle, schöne Häuser über dem Fluß. " * 3
        content = read(text.encode(encoding), "a.txt")
        assert content.text == text.strip()
        assert bool(content.warnings) == (encoding == "cp1252")

    @pytest.mark.parametrize(
        ("name", "text"),
        [("a.txt", "PKI means trust."), ("a.md", "A file begins with `%PDF-1.7`."), ("a", "PK zone")],
    )
    def test_text_that_begins_as_another_kind_does(self, read: Read, name: str, text: str) -> None:
        assert read(text.encode(), name).text == text

    def test_japanese_that_passes_for_ascii(self, read: Read) -> None:
        content = read("契約の内容".encode("iso2022_jp"), "a.txt")
        assert content.text == "契約の内容"
        assert "iso2022_jp" in content.warnings[0]

    def test_nuls_are_dropped_and_said(self, read: Read) -> None:
        for name in ("a.txt", "a.md"):
            content = read(b"a\0b", name)
            assert (content.text, content.warnings) == ("ab", ["1 NUL character was dropped."])


def saved(document: DocxDocument) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def bomb() -> bytes:
    """A page whose few kilobytes inflate to 2 GB, twice over."""
    packed = zlib.compress(zlib.compress(b" " * (1 << 30), 9) * 2, 9)
    return raw_pdf(b"/Filter [/FlateDecode /FlateDecode]", packed)


def raw_pdf(stream_options: bytes, stream: bytes, *, kids: bytes = b"[3 0 R]", count: int = 1) -> bytes:
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids %s /Count %d >>" % (kids, count),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R >>",
        b"<< %s /Length %d >>\nstream\n%s\nendstream" % (stream_options, len(stream), stream),
    ]
    out = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % start


WHOLE = {
    "a.pdf": pdf_of([TEXT] * 3, outline={"One": 1}, title="T"),
    "a.docx": docx_of([("Heading 1", "One"), ("Normal", TEXT)], table=[["a", "b"]]),
    "a.html": f"<html><head><title>T</title></head><h1>One</h1><table><tr><td>{TEXT}</table>".encode(),
}


class TestHostile:
    @pytest.mark.parametrize(
        ("content", "name", "code"),
        [
            (b"\x89PNG\r\n\x1a\n" + bytes(100), "a.pdf", "unsupported_file"),
            (b"hello", "a.pdf", "invalid_file"),
            (b"%PDF-1.7\n", "a.pdf", "invalid_file"),
            (b"PK\x03\x04broken", "a.docx", "invalid_file"),
            (b"", "a.txt", "empty_file"),
            (b" \n\t\n", "a.txt", "empty_file"),
            (b"<html><body></body></html>", "a.html", "empty_file"),
            (raw_pdf(b"", b"", kids=b"[]", count=0), "a.pdf", "invalid_file"),
            (raw_pdf(b"", b""), "a.pdf", "empty_file"),
        ],
    )
    def test_what_is_no_document_is_refused(self, read: Read, content: bytes, name: str, code: str) -> None:
        with pytest.raises(Unreadable) as caught:
            read(content, name)
        assert caught.value.code == code

    def test_a_bomb_ends_at_most_its_reader(self, read: Read) -> None:
        started = time.monotonic()
        with pytest.raises(Unreadable):
            read(bomb())
        assert time.monotonic() - started < 60
        assert "metal" in read(pdf_of([TEXT])).text

    def test_damaged_files(self, read: Read) -> None:
        """Cut off, and with bits turned over: read or refused, and the next file is read."""
        self.damage(read, dict.fromkeys(WHOLE, 8))

    @pytest.mark.slow
    def test_three_thousand_damaged_files(self, read: Read) -> None:
        self.damage(read, {"a.pdf": 2000, "a.docx": 500, "a.html": 500})

    def damage(self, read: Read, numbers: dict[str, int]) -> None:
        chance = random.Random(7)  # noqa: S311 - the same damage at every run
        for name, number in numbers.items():
            whole = WHOLE[name]
            for turn in range(number):
                broken = bytearray(whole if turn % 4 else whole[: chance.randrange(len(whole))])
                for _ in range(chance.randrange(1, 30) if turn % 4 else 0):
                    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
                started = time.monotonic()
                with suppress(Unreadable):
                    read(bytes(broken), name)
                assert time.monotonic() - started < SECONDS + 15
                for reader in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        assert reader.memory_info().rss < 512 * 1024**2
            assert "metal" in read(whole, name).text


class TestReader:
    def test_its_memory_is_limited(self, readers: Readers, tmp_path: Path) -> None:
        big = tmp_path / "big.html"
        big.write_bytes(b"<p>" * 10_000_000)
        with pytest.raises(Unreadable):
            readers.do(
                {"task": "open", "path": str(big), "filename": "big.html", "password": None}, clock=Clock(60)
            )
        for process in psutil.Process().children(recursive=True):
            if "retrieval.reader" in process.cmdline():
                assert process.memory_info().rss < 512 * 1024**2

    def test_time_runs_only_while_a_reader_is_at_it(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("words")
        task = {"task": "open", "path": str(path), "filename": "a.txt", "password": None}
        clock = Clock(60)
        with Readers(1) as readers, ThreadPoolExecutor(1) as executor:
            with readers.one():
                waiting = executor.submit(readers.do, task, clock=clock)
                with pytest.raises(TimeoutError):
                    waiting.result(0.2)
                assert clock.left() == 60
            assert waiting.result()["content"]["text"] == "words"
        assert clock.left() < 60
        assert clock.left() == clock.left()

    def test_is_ended_when_time_is_up_and_started_again(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("words")
        task = {"task": "open", "path": str(path), "filename": "a.txt", "password": None}
        reader = Reader()
        try:
            with pytest.raises(TooSlow):
                reader.do(dict(task), seconds=0.001)
            assert reader.do(dict(task), seconds=30)["content"]["text"] == "words"
        finally:
            reader.end()
