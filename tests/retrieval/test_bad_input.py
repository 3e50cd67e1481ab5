"""What people and attackers upload: each is read rightly or refused in words, and the next is read."""

import io
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pypdf
import pytest

import retrieval.reading
from retrieval.content import Content
from retrieval.readers import Readers, Unreadable
from retrieval.reading import DocumentFile, read_document
from tests.documents import RawPdf, docx_with, pdf_of, pdf_stream, scanned_pdf, write
from tests.retrieval.conftest import Read

MEMORY_BYTES = 512 * 1024**2
DOCUMENT = "word/document.xml"


def refusal(read: Read, content: bytes, name: str = "a.pdf", password: str | None = None) -> tuple[str, str]:
    with pytest.raises(Unreadable) as caught:
        read(content, name, password)
    return caught.value.code, caught.value.message


class TestEncrypted:
    @pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256-R5", "AES-256"])
    def test_opens_by_either_password_and_by_no_other(self, read: Read, algorithm: str) -> None:
        writer, out = pypdf.PdfWriter(), io.BytesIO()
        writer.append(io.BytesIO(pdf_of(["A secret"])))
        writer.encrypt("pässword", "owner", algorithm=algorithm)
        writer.write(out)
        for password in ("pässword", "owner"):
            assert read(out.getvalue(), password=password).text == "A secret"
        assert refusal(read, out.getvalue()) == ("encrypted", "The PDF is encrypted: give its password.")
        code, message = refusal(read, out.getvalue(), password="wrong")
        assert code == "encrypted"
        assert "not its own" in message
        assert "wrong" not in message


class TestStructure:
    @pytest.mark.parametrize(
        "pdf",
        [
            RawPdf({2: b"<< /Type /Pages /Kids [3 0 R] /Count 1000000000 >>"}),
            RawPdf({2: b"<< /Type /Pages /Kids [3 0 R] /Count 100000 >>"}),
            RawPdf({2: b"<< /Type /Pages /Kids [3 0 R] /Count -1 >>"}),
            RawPdf(trailer=b"/Prev 9"),
            RawPdf({1: b"<< /Type /Catalog /Pages 2 0 R /X " + b"[" * 50_000 + b"]" * 50_000 + b" >>"}),
            RawPdf({3: RawPdf.OBJECTS[3].replace(b"4 0 R", b"[" + b"4 0 R " * 10_000 + b"]")}),
            RawPdf(
                {
                    1: b"<< /Type /Catalog /Pages 2 0 R /Outlines 6 0 R >>",
                    6: b"<< /First 7 0 R /Last 7 0 R /Count 1 >>",
                    7: b"<< /Title (x) /Parent 6 0 R /Next 7 0 R /First 7 0 R /Dest [3 0 R /Fit] >>",
                }
            ),
        ],
        ids=["billion-pages", "100k-pages", "negative", "xref-loop", "deep", "wide", "outline-loop"],
    )
    def test_what_it_claims_does_not_count(self, read: Read, pdf: RawPdf) -> None:
        content = read(pdf.to_bytes())
        assert set(content.text.split()) == {"Hello", "lathe"}
        assert len(content.page_starts) == 1

    @pytest.mark.parametrize(
        "pdf",
        [
            RawPdf({2: b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"}),
            RawPdf(
                {
                    2: b"<< /Type /Pages /Kids [6 0 R] /Count 1 >>",
                    6: b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R] /Count 1 >>",
                }
            ),
        ],
        ids=["itself", "its-parent"],
    )
    def test_a_tree_without_a_page_is_damaged(self, read: Read, pdf: RawPdf) -> None:
        code, message = refusal(read, pdf.to_bytes())
        assert (code, "damaged" in message) == ("invalid_file", True)

    def test_of_a_loop_the_pages_are_kept(self, read: Read) -> None:
        content = read(RawPdf({2: b"<< /Type /Pages /Kids [3 0 R 2 0 R] /Count 2 >>"}).to_bytes())
        assert content.text.strip() == "Hello lathe"
        assert content.warnings == ["Page 2 is damaged and could not be read."]

    def test_attachments_and_scripts_are_left_alone_and_said(self, read: Read) -> None:
        catalog = (
            b"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /JavaScript /JS (app.alert(1)) >> "
            b"/Names << /EmbeddedFiles << /Names [(a.txt) 6 0 R] >> >> >>"
        )
        attached = {6: b"<< /Type /Filespec /F (a.txt) /EF << /F 7 0 R >> >>", 7: pdf_stream(b"ATTACHED")}
        content = read(RawPdf({1: catalog, **attached}).to_bytes())
        assert content.text == "Hello lathe"
        assert content.warnings == [
            "It has 1 attached file, of which nothing is read.",
            "It holds JavaScript, which is not run.",
        ]


def nested(times: int, content: bytes) -> bytes:
    for _ in range(times):
        content = zlib.compress(content, 9)
    return pdf_stream(content, b"/Filter [" + b"/FlateDecode " * times + b"]")


SPACES = b" " * (1 << 28)
FORM = b"/Type /XObject /Subtype /Form /BBox [0 0 99 99] /Resources << /XObject << /X 6 0 R >> >>"


class TestBombs:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: RawPdf({4: nested(5, SPACES)}),
            lambda: RawPdf(
                {
                    4: pdf_stream(
                        zlib.compress(b"\x81 " * (1 << 27)), b"/Filter [/FlateDecode /RunLengthDecode]"
                    )
                }
            ),
            lambda: RawPdf({4: pdf_stream(b"/X Do"), 6: pdf_stream(b"/X Do /X Do", FORM)}),
        ],
        ids=["nested-filters", "run-length", "form-in-itself"],
    )
    def test_takes_its_page_and_no_more_than_its_memory(self, read: Read, make: Callable[[], RawPdf]) -> None:
        content = make().to_bytes()
        assert len(content) < 3_000_000
        code, _ = refusal(read, content)
        assert code in ("invalid_file", "out_of_memory", "empty_file")
        for process in psutil.Process().children(recursive=True):
            assert process.memory_info().rss < MEMORY_BYTES
        assert read(RawPdf().to_bytes()).text == "Hello lathe"

    def test_takes_only_its_own_page(self, read: Read) -> None:
        pages = {
            2: b"<< /Type /Pages /Kids [3 0 R 8 0 R] /Count 2 >>",
            8: RawPdf.OBJECTS[3].replace(b"4 0 R", b"9 0 R"),
            9: nested(5, SPACES),
        }
        content = read(RawPdf(pages).to_bytes())
        assert content.text.strip() == "Hello lathe"
        assert content.warnings == ["Page 2 is damaged and could not be read."]


def entities(content: bytes, dtd: bytes, text: bytes) -> bytes:
    return content.replace(b"<w:document", dtd + b"<w:document", 1).replace(b"Hello docx", text)


LAUGHS = b"".join(b'<!ENTITY e%d "%s">' % (n + 1, b"&e%d;" % n * 10) for n in range(9))


class TestDocx:
    @pytest.mark.parametrize(
        ("part", "change", "code"),
        [
            (DOCUMENT, lambda x: x.replace(b"Hello", b"A" * (1 << 26)), "file_too_large"),
            ("word/styles.xml", lambda x: x.replace(b"</w:styles>", b" " * (1 << 26)), "file_too_large"),
            (
                DOCUMENT,
                lambda x: entities(
                    x, b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', b"Hello &e; docx"
                ),
                "invalid_file",
            ),
            (
                DOCUMENT,
                lambda x: entities(x, b'<!DOCTYPE x [<!ENTITY e0 "lol">' + LAUGHS + b"]>", b"&e9;"),
                "invalid_file",
            ),
            (DOCUMENT, lambda x: x.replace(b"<w:sectPr", b"<w:p>" * 100_000 + b"<w:sectPr"), "invalid_file"),
            (DOCUMENT, lambda x: x[: len(x) // 2], "invalid_file"),
            (
                "word/_rels/document.xml.rels",
                lambda x: x.replace(b'"styles.xml"', b'"../../../../etc/passwd"'),
                "invalid_file",
            ),
        ],
        ids=["bomb", "styles-bomb", "outer-entity", "billion-laughs", "deep", "cut-off", "outside"],
    )
    def test_hostile_ones_are_refused_in_words(
        self, read: Read, part: str, change: Callable[[bytes], bytes], code: str
    ) -> None:
        found, message = refusal(read, docx_with({part: change}), "a.docx")
        assert found == code
        assert "root:" not in message
        assert read(docx_with({}), "a.docx").text == "Hello docx"

    def test_what_is_not_text_may_be_large(self, read: Read) -> None:
        content = docx_with({"word/media/film.bin": lambda _: bytes(1 << 26)})
        assert read(content, "a.docx").text == "Hello docx"


class TestHtml:
    def test_nothing_of_scripts_or_markup_is_left(self, read: Read) -> None:
        page = (
            b"<p>kept</p><script>evil()</script><style>evil{}</style><!-- evil --><template>evil</template>"
            b"<img src=x onerror=evil()><iframe src='javascript:evil()'></iframe><svg><text>evil</text></svg>"
        )
        assert read(page, "a.html").text == "kept"

    def test_what_is_nested_too_deep_is_said_to_be_missing(self, read: Read) -> None:
        content = read(b"<p>before</p>" + b"<div>" * 100_000 + b"inside", "a.html")
        assert content.text == "before"
        assert content.warnings == [
            "Its elements are nested too deep: what comes after the first such is missing."
        ]
        assert read(b"<div>" * 1000 + b"inside", "a.html").text == "inside"

    @pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "shift_jis"])
    def test_in_any_encoding(self, read: Read, encoding: str) -> None:
        text = (
            "日本語のテキストは空白なしで続きます"
            if encoding == "shift_jis"
            else "Größe und Maße: fünf Äpfel"
        )
        page = f"<html><meta charset={encoding}><p>{text}</p></html>"
        assert read(page.encode(encoding), "a.html").text == text


@pytest.fixture
def tesseract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Callable[[], Content]]]:
    """Put a program on the path that stands in for tesseract, and read three scanned pages by it."""
    pool, open_readers = ThreadPoolExecutor(2), []

    def install(script: str, language: str | None = None) -> Callable[[], Content]:
        programs = tmp_path / "programs"
        programs.mkdir()
        program = write(programs, "tesseract", f"#!/bin/sh\n{script}\n".encode())
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.defpath}")
        readers = Readers(2)
        open_readers.append(readers)
        scan = DocumentFile(write(tmp_path, "scan", scanned_pdf(3)), "scan.pdf", language=language)
        return lambda: read_document(scan, readers, pool)

    with pool:
        yield install
        for readers in open_readers:
            readers.__exit__(None, None, None)


class TestScanned:
    def test_each_page_gets_what_tesseract_reads_on_it(
        self, tesseract: Callable[..., Callable[[], Content]]
    ) -> None:
        content = tesseract(
            '[ "$1" = --version ] && echo tesseract 5.3.0 || echo "inter-\nnational" > "$2.txt"'
        )()
        assert content.text == "\n\n".join(["international"] * 3)
        assert content.warnings == ["Pages 1, 2, 3 are scanned images, read by tesseract: expect mistakes."]

    @pytest.mark.parametrize(
        ("language", "given", "warnings"), [("german", True, 1), ("french", False, 2), (None, False, 1)]
    )
    def test_reads_the_language_that_was_given(
        self,
        tesseract: Callable[..., Callable[[], Content]],
        language: str | None,
        given: bool,
        warnings: int,
    ) -> None:
        script = (
            'case "$1" in --version) echo tesseract 5.3.0;; '
            "--list-langs) printf 'List of available languages (2):\ndeu\neng\n';; "
            '*) echo "$@" > "$2.txt";; esac'
        )
        content = tesseract(script, language)()
        assert ("-l deu" in content.text) == given
        assert content.text.count(" -l ") == (3 if given else 0)
        assert len(content.warnings) == warnings
        assert ("no data here for french" in content.warnings[-1]) == (language == "french")

    def test_one_that_fails_is_not_said_to_be_missing(
        self, tesseract: Callable[..., Callable[[], Content]]
    ) -> None:
        with pytest.raises(Unreadable, match="tesseract could not read them") as caught:
            tesseract("exit 1")()
        assert caught.value.code == "scanned"

    def test_one_that_hangs_takes_its_time_and_no_more(
        self, tesseract: Callable[..., Callable[[], Content]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retrieval.reading, "OCR_MOST_SECONDS", 0.5)
        with pytest.raises(Unreadable, match="tesseract could not read them"):
            tesseract("exec sleep 5")()


@pytest.mark.slow
def test_ten_thousand_pages(read: Read) -> None:
    """Each page is where it belongs, and no process needs more memory for there being many."""
    pages: dict[int, bytes] = {}
    for number in range(1, 10_001):
        lines = b"".join(b"(Page %d line %d speaks of subject%d) ' " % (number, n, number) for n in range(20))
        pages[2 * number + 4] = RawPdf.OBJECTS[3].replace(b"4 0 R", b"%d 0 R" % (2 * number + 5))
        pages[2 * number + 5] = pdf_stream(b"BT /F1 9 Tf 9 TL 9 190 Td " + lines + b"ET")
    kids = b" ".join(b"%d 0 R" % number for number in range(6, 20_006, 2))
    pages[2] = b"<< /Type /Pages /Kids [%s] /Count 10000 >>" % kids
    content = read(RawPdf(pages).to_bytes())
    assert len(content.page_starts) == 10_000
    for number in (1, 33, 5_000, 10_000):
        assert content.page_at(content.text.index(f"line 0 speaks of subject{number}\n")) == number
    for process in psutil.Process().children(recursive=True):
        assert process.memory_info().rss < MEMORY_BYTES / 2
