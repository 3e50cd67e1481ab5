"""Files over HTTP: streamed to disk, listed, fetched, deleted, and refused early when too large."""

import hashlib
import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from api.files.multipart import Bytes, FormReader
from api.files.upload import Target, clean_filename
from db.errors import Exhausted, InvalidInput
from db.settings import Settings
from tests.api.conftest import FAQ, error_of, upload
from tests.waiting import wait_until

BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    tail = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{tail}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def leftovers(settings: Settings) -> list[Path]:
    return list((settings.storage_root / "files").glob(".*"))


class TestUpload:
    def test_lies_on_disk_with_its_size_and_hash(self, api: httpx.Client, settings: Settings) -> None:
        content = bytes(range(256)) * 9000  # more than one write
        row = api.post(
            "/v1/files", files={"file": ("a b.csv", content)}, data={"purpose": "user_data"}
        ).json()
        assert row["object"] == "file"
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert (row["filename"], row["purpose"], row["status"]) == ("a b.csv", "user_data", "processed")
        assert (settings.storage_root / "files" / row["id"]).read_bytes() == content
        assert leftovers(settings) == []

    def test_purpose_may_come_after_the_file_or_not_at_all(self, api: httpx.Client) -> None:
        body = part("file", FAQ, "x.csv") + part("purpose", b"evals") + f"--{BOUNDARY}--\r\n".encode()
        answer = api.post("/v1/files", content=body, headers={"content-type": MULTIPART})
        assert answer.json()["purpose"] == "evals"
        assert api.post("/v1/files", files={"file": ("x.csv", FAQ)}).json()["purpose"] == "fine-tune"

    def test_the_name_is_only_a_name(self, api: httpx.Client, settings: Settings) -> None:
        file_id = upload(api, name="../../etc/pass\u202ewd")
        assert api.get(f"/v1/files/{file_id}").json()["filename"] == "passwd"
        assert (settings.storage_root / "files" / file_id).is_file()

    @pytest.mark.parametrize(
        ("body", "param", "message"),
        [
            (part("file", b"", "x.csv") + b"--frontier--\r\n", "file", "The file is empty"),
            (part("purpose", b"fine-tune") + b"--frontier--\r\n", "file", "has no file"),
            (part("file", b"x", "x") * 2 + b"--frontier--\r\n", "file", "two files"),
            (
                part("file", b"x", "x") + part("purpose", b"p") + b"--frontier--\r\n",
                "purpose",
                "must be one of",
            ),
            (part("fiel", b"x") + part("file", b"x", "x") + b"--frontier--\r\n", "fiel", "no field fiel"),
            (
                part("file", b"x", "x") + part("expires_after[anchor]", b"created_at") + b"--frontier--\r\n",
                "expires_after[seconds]",
                "from 3600 to 2592000",
            ),
            (part("upload", b"x", "x.csv") + b"--frontier--\r\n", "file", "as the part named `file`"),
            (part("purpose", b"p" * 2000) + b"--frontier--\r\n", "purpose", "longer than"),
            (part("file", b"cut short", "x.csv"), "file", "before its last boundary"),
            (b"no multipart at all", "file", "broken"),
        ],
    )
    def test_what_is_wrong_is_named_and_leaves_nothing(
        self, api: httpx.Client, settings: Settings, body: bytes, param: str, message: str
    ) -> None:
        before = sorted((settings.storage_root / "files").glob("*"))
        answer = api.post("/v1/files", content=body, headers={"content-type": MULTIPART})
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["param"] == param
        assert message in error_of(answer)["message"]
        assert sorted((settings.storage_root / "files").glob("*")) == before

    def test_no_boundary(self, api: httpx.Client) -> None:
        answer = api.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "content-type"

    def test_json_is_refused(self, api: httpx.Client) -> None:
        assert api.post("/v1/files", json={"file": "x"}).status_code == 415

    def test_a_file_over_the_limit_leaves_nothing(self, api: httpx.Client, settings: Settings) -> None:
        content = b"x" * (settings.max_file_bytes + 1)
        answer = api.post("/v1/files", files={"file": ("big.csv", content)})
        assert answer.status_code == 413
        assert error_of(answer)["param"] == "file"
        assert leftovers(settings) == []

    def test_a_caller_that_hangs_up_leaves_nothing(self, api_url: str, settings: Settings) -> None:
        address = urlsplit(api_url)
        before = sorted((settings.storage_root / "files").glob("*"))
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MULTIPART}\r\n"
            connection.sendall(
                head.encode() + b"Content-Length: 3000000\r\n\r\n" + part("file", b"x" * 2_000_000, "x")
            )
        wait_until(lambda: sorted((settings.storage_root / "files").glob("*")) == before)


class TestThreeGigabytes:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/v1/files", MULTIPART),
            ("/v1/jobs", "application/json"),
            ("/v1/chat/completions", "application/json"),
            ("/v1/embeddings", "application/json"),
            ("/generate", "application/json"),
            ("/v1/jobs/job-1/cancel", "application/json"),
        ],
    )
    def test_are_refused_before_they_come(self, api_url: str, path: str, kind: str) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        connection = http.client.HTTPConnection(urlsplit(api_url).netloc, timeout=20)
        connection.putrequest("POST", path)
        connection.putheader("content-type", kind)
        connection.putheader("content-length", str(3 * 1024**3))
        connection.endheaders()
        connection.send(b"x" * 65536)
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"LATHE_MAX_" in answer.read()
        connection.close()
        assert process.memory_info().rss - before < 20_000_000

    def test_chunked_and_unannounced_they_end_at_the_limit(
        self, api: httpx.Client, settings: Settings
    ) -> None:
        """The stock way of sending more than was agreed: without a length, as fast as it goes."""
        process = psutil.Process()
        before, sent = process.memory_info().rss, 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            yield part("file", b"", "big.csv")[:-2]
            block = b"x" * 1_000_000
            for _ in range(3000):
                sent += len(block)
                yield block

        try:
            answer = api.post("/v1/files", content=body(), headers={"content-type": MULTIPART})
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the server closed the connection on a caller that would not stop
        assert process.memory_info().rss - before < 50_000_000
        assert leftovers(settings) == []


class TestFiles:
    def test_get_content_list_delete(self, api: httpx.Client, settings: Settings) -> None:
        first, second = upload(api, b"one", "1.txt"), upload(api, b"two", "2.txt")
        content = api.get(f"/v1/files/{first}/content")
        assert content.content == b"one"
        assert content.headers["x-content-type-options"] == "nosniff"
        assert content.headers["content-disposition"] == 'attachment; filename="1.txt"'
        rows = api.get("/v1/files", params={"limit": 2}).json()
        assert [row["id"] for row in rows["data"]] == [second, first]
        later = api.get("/v1/files", params={"after": first, "order": "asc"}).json()
        assert [row["id"] for row in later["data"]] == [second]
        assert api.delete(f"/v1/files/{first}").json() == {"id": first, "object": "file", "deleted": True}
        assert not (settings.storage_root / "files" / first).exists()
        assert api.get(f"/v1/files/{first}").status_code == 404
        assert api.delete(f"/v1/files/{first}").status_code == 404

    def test_a_file_that_a_job_needs_stays(self, api: httpx.Client) -> None:
        file_id = upload(api)
        params = {"base_model": "org/base", "training_file": file_id, "name": "faq"}
        job_id = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params}).json()["id"]
        answer = api.delete(f"/v1/files/{file_id}")
        assert answer.status_code == 409
        assert answer.headers["x-should-retry"] == "false"
        assert job_id in error_of(answer)["message"]
        api.post(f"/v1/jobs/{job_id}/cancel")
        assert api.delete(f"/v1/files/{file_id}").status_code == 200


class TestFormReader:
    def test_reads_the_same_in_pieces_of_any_size(self) -> None:
        content = b"\r\n--fronti\r\n--frontie" * 20
        body = part("purpose", b"evals") + part("file", content, "x") + f"--{BOUNDARY}--\r\n".encode()
        for size in (1, 2, 3, 7, 64, len(body)):
            form, found = FormReader(MULTIPART), b""
            for start in range(0, len(body), size):
                for item in form.feed(body[start : start + size]):
                    found += item.data if isinstance(item, Bytes) else b""
            form.finish()
            assert found == content
            assert form.fields == {"purpose": "evals"}

    def test_too_many_parts(self) -> None:
        with pytest.raises(InvalidInput, match="more than 20 parts"):
            FormReader(MULTIPART).feed(part("x", b"") * 30)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("faq.csv", "faq.csv"),
        ("C:\\Users\\me\\faq.csv", "faq.csv"),
        ("/etc/passwd", "passwd"),
        ("..", "file"),
        ("", "file"),
        ("a\r\nX-Header: 1.csv", "aX-Header: 1.csv"),
        ("é" * 300 + ".csv", "é" * 98 + ".csv"),
        ("a" * 5000 + ".pdf", "a" * 196 + ".pdf"),
        ("../../x.pdf\0.txt", "x.pdf.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("\x1b[31mred.txt", "[31mred.txt"),
    ],
)
def test_clean_filename(given: str, kept: str) -> None:
    assert clean_filename(given) == kept
    assert not re.search(r"[/\\]", kept)


class TestDisk:
    def test_a_full_one_is_said_and_leaves_nothing(self, tmp_path: Path) -> None:
        """A limit on the size of files is as hard as a full disk, and needs no disk of one's own."""
        code = f"""
import resource, pathlib
from api.files.upload import Target
from db.errors import Exhausted
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    with Target(pathlib.Path({str(tmp_path)!r}), "file-1", 10**9) as target:
        target.open(0)
        target.write(b"x" * 3_000_000)
        target.keep()
except Exhausted as error:
    print(error.code)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "disk_full\n", done.stderr
        assert list((tmp_path / "files").iterdir()) == []

    def test_what_cannot_fit_is_refused_before_it_comes(self, tmp_path: Path) -> None:
        with Target(tmp_path, "file-1", 2**62) as target, pytest.raises(Exhausted, match="no room"):
            target.open(2**61)
