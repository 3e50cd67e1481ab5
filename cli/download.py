"""`lathe download`: a job's artifacts, resumed where they broke off, and named once they are checked."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cli.client import Client, connect
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.text import size
from cli.watching import JobId
from db.disk import file_sha256
from db.errors import InvalidInput, LatheError, NotFound

JSON = dict[str, Any]
CHUNK_BYTES = 1 << 20
TRIES = 3


def download(
    job_id: JobId,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Which artifacts; all without a name.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", "-d", help="Where to put them.")] = Path(),
    json: JsonFlag = False,
) -> None:
    """Download what a job made. A broken download goes on where it stopped."""
    with connect() as client:
        wanted = _choose(list(client.job_rows(job_id, "artifacts")), names or [], job_id)
        folder.mkdir(parents=True, exist_ok=True)
        fetched = _fetch_all(client, job_id, wanted, folder, stderr())
    if json:
        print_json(fetched)
        return
    for row in fetched:
        note = "" if row["downloaded"] else "  [dim]was here already[/]"
        stdout().print(f"[green]✔[/] {row['path']}  {size(row['bytes'])}{note}", soft_wrap=True)


def _choose(artifacts: list[JSON], names: list[str], job_id: str) -> list[JSON]:
    there = {row["name"]: row for row in artifacts}
    if not there:
        raise NotFound(f"{job_id} has made nothing that can be downloaded yet.")
    for name in names:
        if name not in there:
            raise NotFound(f"{job_id} has no artifact {name!r}. It has: {', '.join(there)}.")
    chosen = [there[name] for name in dict.fromkeys(names)] or artifacts
    for row in chosen:
        # The server's word is not taken for where on this machine something is written.
        if row["name"] in ("", ".", "..") or Path(row["name"]).name != row["name"]:
            raise InvalidInput(f"The artifact's name {row['name']!r} is not a file's name.")
    return chosen


def _fetch_all(client: Client, job_id: str, wanted: list[JSON], folder: Path, console: Console) -> list[JSON]:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )
    with progress:
        return [
            {
                "name": row["name"],
                "path": str(folder / row["name"]),
                "bytes": row["bytes"],
                "sha256": row["sha256"],
                "downloaded": Download(client, job_id, row, progress).to(folder / row["name"]),
            }
            for row in wanted
        ]


class Download:
    """One artifact on its way."""

    def __init__(self, client: Client, job_id: str, artifact: JSON, progress: Progress) -> None:
        self._client = client
        self._path = client.artifact_path(job_id, artifact["name"])
        self._name: str = artifact["name"]
        self._bytes: int = artifact["bytes"]
        self._sha256: str = artifact["sha256"]
        self._progress = progress
        self._task = progress.add_task(self._name, total=self._bytes)

    def to(self, target: Path) -> bool:
        """Bring it to `target`; False if it was there already.

        Raises:
            LatheError: what came does not have the sha256 that the server told.
        """
        try:
            if target.is_file() and self._is_complete(target):
                return False
            part = target.with_name(target.name + ".part")
            for _ in range(TRIES):
                self._receive(part)
                if part.stat().st_size >= self._bytes:
                    break
            if not self._is_complete(part):
                part.unlink()
                raise LatheError(f"{self._name} arrived damaged and was removed: download it again.")
            part.replace(target)
            return True
        finally:
            self._progress.remove_task(self._task)

    def _is_complete(self, path: Path) -> bool:
        if path.stat().st_size != self._bytes:
            return False
        return file_sha256(path) == self._sha256

    def _receive(self, part: Path) -> None:
        """Append to `part` what it lacks; begin anew if it is too long or the server sends the whole."""
        have = part.stat().st_size if part.exists() else 0
        if have == self._bytes and part.exists():
            return
        if have > self._bytes:
            have = 0
        headers = {"range": f"bytes={have}-"} if have else {}
        with self._client.stream("GET", self._path, headers=headers) as response:
            appending = response.status_code == 206
            self._progress.update(self._task, completed=have if appending else 0)
            with part.open("ab" if appending else "wb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    self._progress.advance(self._task, len(chunk))
