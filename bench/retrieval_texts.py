"""The real, long texts that the quality of the search is measured on: what Python 3.11 ships, and Debian 12.

A text's name says where it is: `python/topics/…` (the help topics of `pydoc`), `python/doc/…` (a module's
docstring), `python/lib/…` (a file beside the standard library), `debian/…` (an installed file, unpacked).
Where another version of it is installed, its sha256 differs, and a label counts if its quote is still there.
"""

import gzip
import hashlib
import importlib
import json
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

LIST = Path(__file__).parent / "data" / "retrieval_texts.json"
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class SourceText:
    """A text as it is on this machine. `filename` is what it is ingested as."""

    name: str
    data: bytes
    sha256: str
    is_the_labelled_one: bool

    @property
    def filename(self) -> str:
        suffix = ".html" if self.name.endswith(".html") else ".txt"
        title = (
            self.name.partition("/")[2].removeprefix("usr/share/").removesuffix(".gz").removesuffix(".html")
        )
        return title.replace("/", "-") + suffix


def find_texts() -> tuple[list[SourceText], list[str]]:
    """Returns:
    the texts that are here, and the names of those that are not.
    """
    expected: dict[str, str] = json.loads(LIST.read_text(encoding="utf-8"))
    found, missing = [], []
    for name, sha256 in expected.items():
        data = _read(name)
        if data is None:
            missing.append(name)
        else:
            came = hashlib.sha256(data).hexdigest()
            found.append(SourceText(name, data, came, came == sha256))
    return found, missing


def write_list(names: Iterable[str]) -> None:
    """Note which texts of this machine the labels are written for."""
    here = {name: data for name in sorted(names) if (data := _read(name)) is not None}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in here.items()}
    LIST.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def _read(name: str) -> bytes | None:
    origin, _, rest = name.partition("/")
    if origin == "debian":
        return _file(Path("/", rest))
    part, _, rest = rest.partition("/")
    if part == "topics":
        return topics[rest].encode() if rest in topics else None
    if part == "doc":
        return (importlib.import_module(rest).__doc__ or "").encode()
    return _file(STANDARD_LIBRARY / rest)


def _file(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return gzip.decompress(data) if path.suffix == ".gz" else data
