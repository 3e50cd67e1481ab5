"""What is pushed to a Hugging Face hub, or one that speaks as it does, by its own client.

Files go over the LFS protocol, which every hub understands; xet, which the client prefers, is for
huggingface.co alone. What the hub's store has already is not sent again, and nothing shows in the repository
before all files are there, in one commit. So what was broken off can be done again at any point.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from db.errors import InvalidInput, Unavailable
from worker.step import Step
from worker.steps.hub import Hub

MAIN = "main"


@dataclass(frozen=True)
class Pushed:
    """The commit that holds the files; `sent` counts the bytes that went over the wire to get there."""

    commit: str
    url: str
    private: bool
    sent: int


class Target(Hub):
    """A branch of a repository that takes files."""

    cannot = "cannot be pushed to"
    offline = (
        "LATHE_HUB_OFFLINE is set. Fetch the files by GET /v1/jobs/{id}/artifacts, and upload them from "
        "where there is a network"
    )
    meanwhile = "and it is tried again. Check the network, and LATHE_HUB_URL."
    forbidden = "LATHE_HUB_TOKEN has to be the token of an account that may write there"

    def __init__(self, step: Step) -> None:
        super().__init__(step.input.settings, param="repository", step=step)
        params = step.input.params
        self._told = step
        self._name, self._branch, self._private = params["repository"], params["branch"], params["private"]

    def open(self) -> bool:
        """See that repository and branch are there, and make them where they are not.

        Returns:
            whether the repository is private.
        Raises:
            InvalidInput: it may not be written to, or is public and should not be.
            Unavailable: the hub does not answer.
        """
        if self._settings.hub_offline:
            raise self._refused(self._name, self.offline)
        if not self._settings.hub_token:
            raise self._refused(self._name, "LATHE_HUB_TOKEN, the token of an account that may, is not set")
        with self._upload_errors_named():
            is_private = self._existing_or_new()
            self._see_branch()
        return is_private

    def read(self, name: str) -> str | None:
        """A text of the branch as it is; None where there is none."""
        found = self.look_up(self._name, self._branch)
        if name not in found.files:
            return None
        return (self.folder(self._name, found.revision, [name]) / name).read_text(encoding="utf-8")

    def upload(self, folder: Path, message: str, *, private: bool) -> Pushed:
        """Send what lies in `folder`, in one commit, and see that the hub has it all.

        Raises:
            InvalidInput: the hub takes it not.
            Unavailable: the hub does not answer.
        """
        constants.HF_HUB_DISABLE_XET = True
        watched = _Progress(self._told, sum(path.stat().st_size for path in _files(folder)))
        additions = [_Addition(path.relative_to(folder).as_posix(), path) for path in _files(folder)]
        with self._upload_errors_named():
            for addition in additions:
                addition.watch = watched.read
                self._api.preupload_lfs_files(
                    self._name, [addition], revision=self._branch, free_memory=False
                )
                watched.done(addition.upload_info.size)
            commit = self._api.create_commit(
                self._name, additions, commit_message=message, revision=self._branch
            )
            there = self._api.get_paths_info(
                self._name, [each.path_in_repo for each in additions], revision=commit.oid
            )
        self._see_all(additions, [row for row in there if isinstance(row, RepoFile)])
        url = f"{self._settings.hub_url}/{self._name}/tree/{commit.oid}"
        return Pushed(commit.oid, url, private, watched.sent)

    def _existing_or_new(self) -> bool:
        try:
            is_private = bool(self._api.model_info(self._name, timeout=30).private)
        except RepositoryNotFoundError:
            self._api.create_repo(self._name, private=self._private, exist_ok=True)
            self._told.event(f"Made {self._name}, {'private' if self._private else 'public'}.")
            return bool(self._api.model_info(self._name, timeout=30).private)
        if self._private and not is_private:
            raise InvalidInput(
                f"{self._name} is public already, and what is pushed would be: say so by private false, or "
                "name another repository.",
                param="private",
            )
        if is_private and not self._private:
            self._told.event(f"{self._name} is private already, and stays so.", level="warn")
        return is_private

    def _see_branch(self) -> None:
        branches = [ref.name for ref in self._api.list_repo_refs(self._name).branches]
        if self._branch in branches:
            return
        if self._branch == MAIN:
            raise self._refused(
                self._name, f"it has no branch {MAIN}. It has: {', '.join(branches) or 'none'}"
            )
        self._api.create_branch(self._name, branch=self._branch, exist_ok=True)
        self._told.event(f"Made the branch {self._branch} of {self._name}.")

    def _see_all(self, additions: list["_Addition"], there: list[RepoFile]) -> None:
        """See that the commit holds every file as it is here: its .gitignore can leave some out."""
        found = {row.path: row for row in there}
        missing = [each.path_in_repo for each in additions if each.path_in_repo not in found]
        if missing:
            raise self._refused(self._name, f"its .gitignore leaves out {', '.join(missing)}")
        for each in additions:
            row = found[each.path_in_repo]
            ours = each.upload_info.sha256.hex() if row.lfs is not None else each.blob_id
            if (row.lfs.sha256 if row.lfs is not None else row.blob_id) != ours:
                raise Unavailable(
                    f"{self._name} has another {each.path_in_repo} than was sent.", code="hub_unavailable"
                )

    @contextmanager
    def _upload_errors_named(self) -> Iterator[None]:
        """The errors that only uploads have, besides those that all requests have."""
        with self._errors_named(self._name, self._branch):
            try:
                yield
            except RuntimeError as error:
                # So the client wraps whatever befell one file.
                if error.__cause__ is None:
                    raise
                raise error.__cause__ from None
            except json.JSONDecodeError:
                raise  # it is a ValueError, and no fault of the files
            except ValueError as error:
                raise self._refused(self._name, str(error)) from None


@dataclass
class _Addition(CommitOperationAdd):
    """A file on its way, that tells how much of it is read to be sent."""

    watch: Callable[[int], None] = field(default=lambda count: None, repr=False)

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        with super().as_file() as file:
            if with_tqdm:  # the one case in which it is sent
                read = file.read

                def counted(size: int = -1) -> bytes:
                    content = read(size)
                    self.watch(len(content))
                    return content

                file.read = counted  # type: ignore[method-assign]
            yield file

    @property
    def blob_id(self) -> str:
        """As git counts it."""
        content = Path(str(self.path_or_fileobj)).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own


class _Progress:
    def __init__(self, step: Step, total: int) -> None:
        self._step, self._total, self._before, self._within, self.sent = step, total, 0, 0, 0

    def read(self, count: int) -> None:
        self.sent += count
        self._within += count
        self._tell(self._before + self._within)

    def done(self, size: int) -> None:
        self._before, self._within = self._before + size, 0
        self._tell(self._before)

    def _tell(self, done: int) -> None:
        # A part that is sent again counts once.
        self._step.progress(min(done, self._total), self._total, unit="B")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
