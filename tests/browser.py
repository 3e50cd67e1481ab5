"""Chromium, as Debian and others install it, driven by Playwright: nothing is downloaded."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Names of pages that are not ours: all of them lead to this machine.
FOREIGN = "evil.example"
REBOUND = "rebound.example"
ARGUMENTS = [f"--host-resolver-rules=MAP {FOREIGN} 127.0.0.1, MAP {REBOUND} 127.0.0.1"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser without a window."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.fail("These tests want a browser: apt install chromium. `make test` leaves them out without.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
