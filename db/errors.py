"""Everything that can go wrong, as Lathe names it.

    LatheError
    ├── InvalidInput      the request or its data is wrong; never tried again
    │   └── InvalidLines  several lines of a file are
    ├── NotFound          no such row in this project
    ├── Conflict          the row's state does not allow it
    ├── QuotaExceeded     the project has as much as it may
    ├── Unavailable       a server we need does not answer; worth another try
    │   └── Busy          it has as many requests as it takes
    ├── Exhausted         memory or disk ran out
    └── StepFailed        a step's process ended badly

They know nothing of HTTP or of retries: one table in `api/` and one in `worker/` do.
"""

from typing import Any


class LatheError(Exception):
    """Base of all of Lathe's errors: a message for a person, a code for a program."""

    code = "error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidInput(LatheError):
    """What was given cannot work. `param` names the field; the message says how to mend it."""

    code = "invalid_input"


class InvalidLines(InvalidInput):
    """Lines of a file are wrong.

    Args:
        problems: of each {"line", "code", "message", "param"}; at least one.
        placed: each message says by itself where it is.
    """

    code = "invalid_lines"

    def __init__(
        self, problems: list[dict[str, Any]], *, more: bool = False, param: str, placed: bool = False
    ) -> None:
        first, *others = problems
        rest = f" {len(others)}{' and more' if more else ''} other lines are wrong, too." if others else ""
        place = "" if placed else f"Line {first['line']}: "
        super().__init__(f"{place}{first['message']}{rest}", param=param, code=first["code"])
        self.problems = problems


class NotFound(LatheError):
    code = "not_found"


class Conflict(LatheError):
    code = "conflict"


class Unavailable(LatheError):
    """A server we need does not answer. `retry_after_seconds`: when it is likely to, where that is known."""

    code = "unavailable"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(LatheError):
    """The project has as much as it may. `retry_after_seconds`: when it may have more, if waiting helps."""

    code = "quota_exceeded"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class Busy(Unavailable):
    """A server we need has as many requests in hand and waiting as it takes."""

    code = "busy"


class Exhausted(LatheError):
    """Memory or disk ran out. `code` is `out_of_memory` or `disk_full`."""

    code = "out_of_memory"


class StepFailed(LatheError):
    """A step's process ended badly.

    Args:
        exit_code: the process's exit status, or None when a signal ended it.
        signal: the signal's number, or None.
        stderr: the end of what the process printed.
    """

    code = "step_failed"

    def __init__(
        self, message: str, *, exit_code: int | None = None, signal: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
        self.stderr = stderr
