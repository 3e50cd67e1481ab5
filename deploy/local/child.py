"""Start a program so that it cannot outlive us: `python deploy/local/child.py [--unprivileged] -- ARGV…`

The kernel sends the program SIGINT (or --death-signal) when the process that started it dies, SIGKILL
included. With --unprivileged, root becomes another user first, since Postgres refuses to run as root;
where a folder on the way is closed to that user (a home of mode 0700, say), one capability to pass
closed folders is kept, in place of opening them up.

Standard library only: it runs before every server, so it has to start fast.
"""

import argparse
import ctypes
import os
import pwd
import signal
import struct
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def unprivileged_user() -> pwd.struct_passwd:
    """The user whom root becomes for Postgres: `postgres` where it exists, else `nobody`."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise SystemExit("Postgres refuses to run as root, and this machine has no user `postgres` or `nobody`.")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _permitted_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    return 0


def become(user: pwd.struct_passwd) -> None:
    """Give up root for `user`, keeping the one capability that lets it pass folders closed to it."""
    permitted = _permitted_capabilities()
    kept = next((cap for cap in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if permitted & (1 << cap)), None)
    # access(2), by which Postgres looks for its own programs, leaves a user's capabilities out of account
    # unless this is set. Where even root may not set it, only folders open to all will do.
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    _check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    mask = 0 if kept is None else 1 << kept
    _check(libc.capset(header, struct.pack("6I", mask, mask, mask, 0, 0, 0)), "capset")
    if kept is None:
        return
    _check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept, 0, 0), "prctl")


def die_with_parent(death_signal: int, parent: int) -> None:
    """Ask the kernel for `death_signal` when the parent dies; go at once if it is dead already."""
    _check(libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unprivileged", action="store_true")
    parser.add_argument("--death-signal", default="SIGINT")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    if options.unprivileged and os.geteuid() == 0:
        become(unprivileged_user())
    # Only now: a change of user clears the death signal.
    die_with_parent(signal.Signals[options.death_signal], options.parent)
    os.execv(options.argv[0], options.argv)  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()
