"""What each process of a step does: it ends with the one that started it, and says how its work ended."""

import ctypes
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from db.disk import DISK_FULL, DISK_FULL_MESSAGE
from db.errors import Exhausted, InvalidInput, InvalidLines, LatheError, StepFailed, Unavailable
from worker.step import Message, RankFailed, Stopped

PR_SET_PDEATHSIG = 1
MEMORY_OUT = "The host's memory ran out."
LAST_WORDS = ("result", "released", "refused", "unavailable", "exhausted", "failed")
EXIT_CODES = {"failed": 1, "refused": 2, "exhausted": 3, "unavailable": 4}


def die_with(parent: int) -> None:
    """Never outlive the process that started this one, whatever ends it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_like(code: int) -> NoReturn:
    """Exit with the code, or by the signal as a negative number, that ended another process."""
    if code >= 0:
        os._exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pause()
    os._exit(1)


def heed_sigterm(ask: Callable[[], None]) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: ask())


def message_sender(pipe: int) -> Callable[[Message], None]:
    """A function that writes one message as one line; threads of a step may call it at once."""
    out = os.fdopen(pipe, "w", encoding="utf-8", errors="replace", newline="\n")
    lock = threading.Lock()

    def send(message: Message) -> None:
        line = json.dumps(message, default=str) + "\n"
        with lock:
            out.write(line)
            out.flush()

    return send


def outcome(work: Callable[[], dict[str, Any]]) -> Message:
    """Do the work and turn its result, or the errors that have a meaning, into its last message."""
    try:
        return {"type": "result", "result": work()}
    except Stopped:
        return {"type": "released"}
    except InvalidInput as error:
        refused = {"type": "refused", **_said(error)}
        return refused | ({"problems": error.problems} if isinstance(error, InvalidLines) else {})
    except (Exhausted, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_FULL:
            raise
        traceback.print_exc()
        return {"type": "exhausted", **_exhausted(error)}
    except LatheError as error:
        if isinstance(error, RankFailed):  # whose ranks have printed why
            return {"type": "failed", **_said(error), "signal": error.signal}
        traceback.print_exc()
        return {"type": "unavailable" if isinstance(error, Unavailable) else "failed", **_said(error)}


def _said(error: LatheError) -> Message:
    return {"code": error.code, "message": error.message, "param": error.param}


def _exhausted(error: Exception) -> Message:
    if isinstance(error, Exhausted):
        return {"code": error.code, "message": error.message}
    if isinstance(error, MemoryError):
        return {"code": "out_of_memory", "message": MEMORY_OUT, "unsaid": True}
    return {"code": "disk_full", "message": DISK_FULL_MESSAGE}


def result_of(ending: Message) -> dict[str, Any]:
    """The result that a last message brings, or the error that `outcome` made it of.

    Raises:
        Stopped, InvalidInput, Unavailable, Exhausted, MemoryError, StepFailed: as the message says.
    """
    if ending["type"] == "result":
        result: dict[str, Any] = ending["result"]
        return result
    if ending["type"] == "released":
        raise Stopped
    if ending["type"] == "refused":
        raise InvalidInput(ending["message"], param=ending["param"], code=ending["code"])
    if ending["type"] == "unavailable":
        raise Unavailable(ending["message"], param=ending["param"], code=ending["code"])
    if ending["type"] == "failed":
        raise StepFailed(ending["message"])
    if "unsaid" in ending:
        raise MemoryError(ending["message"])
    raise Exhausted(ending["message"], code=ending["code"])
