"""What is fetched from a Hugging Face hub, or a mirror of one, by its own client.

Code and pickles in a repository are neither fetched nor run. What passes (an outage, a connection that
breaks) is `Unavailable` and tried again: the client goes on with a file where it broke off. What does not
pass is refused.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.disk import DISK_FULL
from db.errors import InvalidInput, LatheError, Unavailable
from worker.step import Step, StepSettings

if TYPE_CHECKING:
    from huggingface_hub import HfApi


OFFLINE = "hub_offline"
LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Repository:
    """A repository as it was looked up: at the commit `revision`, with the names of its files."""

    name: str
    revision: str
    files: list[str]


class Hub:
    """Args:
    step: is told of progress, where there is one.
    param: the field of the request that names the repository.
    """

    cannot = "cannot be had"
    offline = "LATHE_HUB_OFFLINE is set: only uploads are taken now"
    not_fetched = (
        "LATHE_HUB_OFFLINE is set, and the local cache has not all of it: fetch it while online, or put its "
        "folder into LATHE_BASE_MODELS_DIR, and give the folder's name"
    )
    meanwhile = (
        "and the local cache has not all of it. Check the worker's network and LATHE_HUB_URL; without a "
        "network, put the model's folder into LATHE_BASE_MODELS_DIR, and give the folder's name."
    )
    forbidden = "does LATHE_HUB_TOKEN hold the token of an account that may read it?"

    def __init__(self, settings: StepSettings, *, param: str, step: Step | None = None) -> None:
        self._settings, self._param, self._step = settings, param, step

    def look_up(self, repository: str, revision: str | None) -> Repository:
        """Ask which commit a revision is now, and what it holds.

        Raises:
            InvalidInput: there is none, or it may not be read; or the hub is not to be asked.
            Unavailable: the hub does not answer.
        """
        if self._settings.hub_offline:
            raise self._refused(repository, self.offline, code=OFFLINE)
        with self._errors_named(repository, revision):
            info = self._api.model_info(repository, revision=revision, timeout=30)
        names = [file.rfilename for file in info.siblings or []]
        return Repository(repository, str(info.sha), names)

    def folder(
        self, repository: str, revision: str | None, patterns: list[str], *, ignored: list[str] | None = None
    ) -> Path:
        """Fetch the files that the patterns name; a folder of the client's cache, named by its commit.

        Raises:
            InvalidInput, Unavailable: as `look_up`.
        """
        from huggingface_hub import snapshot_download

        if self._step is not None:
            message = f"Fetching {repository} from {self._settings.hub_url}, unless it is here already."
            self._step.event(message, repository=repository)
        with self._errors_named(repository, revision):
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=ignored,
                    endpoint=self._settings.hub_url,
                    token=self._token,
                    cache_dir=self._settings.hub_cache,
                    local_files_only=self._settings.hub_offline,
                    tqdm_class=progress_bar(self._step.progress) if self._step is not None else None,
                )
            )

    def tensors(self, repository: str, revision: str | None) -> dict[str, list[int]]:
        """The shape of each tensor of a model, by name, from the first kilobytes of its files.

        Raises:
            InvalidInput, Unavailable: as `look_up`; also InvalidInput: it has no safetensors.
        """
        from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

        if self._settings.hub_offline:
            raise self._refused(repository, self.not_fetched, code=OFFLINE)
        with self._errors_named(repository, revision):
            try:
                found = self._api.get_safetensors_metadata(repository, revision=revision, timeout=30)
            except NotASafetensorsRepoError:
                raise self._refused(repository, "it has no safetensors, and nothing else is loaded") from None
            except SafetensorsParsingError:
                raise self._refused(repository, "the headers of its safetensors cannot be read") from None
        return {
            name: list(tensor.shape)
            for file in found.files_metadata.values()
            for name, tensor in file.tensors.items()
        }

    def license(self, repository: str, revision: str | None) -> dict[str, str]:
        """What a model's own card says of its license: `license`, and of one of its own, name and link.

        Raises:
            InvalidInput, Unavailable: as `look_up`.
        """
        if self._settings.hub_offline:
            raise self._refused(repository, self.offline, code=OFFLINE)
        with self._errors_named(repository, revision):
            card = self._api.model_info(repository, revision=revision, timeout=30).card_data
        told = card.to_dict() if card is not None else {}
        return {name: str(told[name]) for name in LICENSE_FIELDS if told.get(name)}

    @property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._settings.hub_url, token=self._token)

    @property
    def _token(self) -> str | bool:
        """The operator's; without one nobody's, for the client would look for one in its own files."""
        return self._settings.hub_token or False

    @contextmanager
    def _errors_named(self, repository: str, revision: str | None) -> Iterator[None]:
        import httpx2
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
        )

        try:
            yield
        except (
            OSError,
            EntryNotFoundError,
            HFValidationError,
            json.JSONDecodeError,
            httpx2.HTTPError,
        ) as wrong:
            error: Exception = wrong
            if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
                error = error.__cause__  # why the hub had to be done without
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            # Not from it: the addresses in its text may bear signatures that let others read or write.
            raise self._named(error, repository, revision) from None

    def _named(self, error: Exception, repository: str, revision: str | None) -> LatheError:
        """The client's error by what can be done about it."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, GatedRepoError):
            return self._refused(
                repository,
                "the hub lets only accepted accounts read it: accept its terms there, and set "
                "LATHE_HUB_TOKEN (or HF_TOKEN) for the worker",
                code="model_gated",
            )
        if isinstance(error, RevisionNotFoundError):
            return self._refused(repository, f"it has no revision {revision!r}")
        if isinstance(error, RepositoryNotFoundError | HFValidationError):
            return self._refused(
                repository,
                "the hub knows no such model, or shows it to accepted accounts only: check the spelling, "
                "'organisation/name', and LATHE_HUB_TOKEN",
                code="model_not_found",
            )
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response else None
        if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
            advice = f": {self.forbidden}" if status in (401, 403) else ""
            return self._refused(repository, f"the hub answers {status}{_said(error)}{advice}")
        if self._settings.hub_offline:
            return self._refused(repository, self.not_fetched, code=OFFLINE)
        return Unavailable(
            f"{repository} {self.cannot} now: the hub at {self._settings.hub_url} "
            f"{_what_befell(error, status)}, {self.meanwhile}",
            param=self._param,
            code="hub_unavailable",
        )

    def _refused(self, repository: str, why: str, *, code: str | None = None) -> InvalidInput:
        return InvalidInput(f"{repository} {self.cannot}: {why}.", param=self._param, code=code)


def _what_befell(error: Exception, status: int | None) -> str:
    import httpx2

    if status is not None:
        return f"answers {status}{_said(error)}"
    if isinstance(error, json.JSONDecodeError):
        return "answers what is no hub's answer"
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return "does not answer in time"
    return "cannot be reached, or breaks off"


def _said(error: Exception) -> str:
    """What the hub itself said, which names no address."""
    said = getattr(error, "server_message", None)
    return f': "{str(said).strip()[:300]}"' if said else ""


def progress_bar(report: Callable[..., None]) -> type:
    """A tqdm that reports to us in place of a terminal; a long download must show signs of life."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = False
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> None:
            # Of files there are few; their bytes are what takes long.
            if self.total and self.unit == "B":
                rate = self.format_dict["rate"]
                left = max(self.total - self.n, 0) / rate if rate else None
                report(int(self.n), int(self.total), eta_seconds=left, unit=self.unit)

    return Reporter
