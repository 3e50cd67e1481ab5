"""Who makes the request that is being answered. The gate sets it; every `Unit` of the request has it."""

from contextvars import ContextVar
from dataclasses import dataclass

from db.keys import EVERY_SCOPE, Scope
from db.models import DEFAULT_PROJECT, Project

# In the audit log, where it stands for LATHE_API_KEY.
OPERATORS_KEY = "LATHE_API_KEY"


@dataclass(frozen=True)
class Limits:
    """How much a project may use; None: as much as there is."""

    max_jobs: int | None = None
    max_gpu_minutes: int | None = None
    max_bytes: int | None = None
    max_requests_per_minute: int | None = None


@dataclass(frozen=True)
class Caller:
    """A key's holder, for one project.

    Args:
        key_id: None where no key is needed.
        limits: of the project, as they were a few seconds ago.
    """

    project_id: str = DEFAULT_PROJECT
    key_id: str | None = None
    scopes: frozenset[Scope] = EVERY_SCOPE
    limits: Limits = Limits()

    @property
    def is_operator(self) -> bool:
        """Whether it administers the server, and not only its own project."""
        return Scope.ADMIN in self.scopes and self.project_id == DEFAULT_PROJECT

    def may(self, needed: frozenset[Scope]) -> bool:
        return Scope.ADMIN in self.scopes or bool(needed & self.scopes)


def limits_of(project: Project) -> Limits:
    return Limits(
        project.max_jobs, project.max_gpu_minutes, project.max_bytes, project.max_requests_per_minute
    )


# Copied to every thread and task on which a request is worked at.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def known(caller: Caller | None) -> Caller:
    """The caller, who has to be known to look at anybody's rows.

    Raises:
        RuntimeError: it is not: this is no request that the gate let in, or one that is open to all.
    """
    if caller is None:
        raise RuntimeError("nobody asks: this is not the request of a caller that the gate let in")
    return caller
