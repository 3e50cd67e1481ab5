"""A browser at the chat page of a running API, which answers as `tests.api.answers` has it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.api.answers.conftest import (  # noqa: F401 - fixtures
    Desk,
    answering,
    app_settings,
    app_url,
    desk,
    embeddings,
    handbook,
    library,
)
from tests.browser import chromium

PATIENCE_MS = 20_000  # for a machine that has other things to do
WIDE, NARROW = (1280, 860), (360, 720)


# Of a module: while it is open, asyncio takes its loop for one that runs, and other tests could start none.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@dataclass
class Chat:
    """The page as somebody uses it. `complaints` are its scripts' errors, and what its policy has refused."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type == "error" else None
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.wait_for_models()

    def wait_for_models(self) -> None:
        expect(self.page.locator("#model")).not_to_have_value("")

    def choose(self, model: str) -> None:
        self.page.select_option("#model", model)

    def say(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def wait_for_answer(self) -> None:
        expect(self.page.locator("#messages[aria-busy=false]")).to_be_attached()

    def ask(self, text: str) -> None:
        self.say(text)
        self.wait_for_answer()

    def messages(self) -> list[str]:
        return self.page.locator(".message .body").all_inner_texts()

    def titles(self) -> list[str]:
        return self.page.locator("#conversations .open").all_inner_texts()

    def resize(self, width: int, height: int) -> None:
        self.page.set_viewport_size({"width": width, "height": height})

    def focused(self) -> str:
        """The id, or the name, of what has the focus."""
        told: str = self.page.evaluate(
            "document.activeElement.id || document.activeElement.getAttribute('aria-label')"
        )
        return told

    def tab_to(self, name: str, key: str = "Tab") -> None:
        """Press Tab until something has the focus, which has to be seen all the while."""
        for _ in range(40):
            self.page.keyboard.press(key)
            assert self.page.evaluate(SHOWS_FOCUS), f"{self.focused()} does not show that it has the focus"
            if self.focused() == name:
                return
        raise AssertionError(f"{name} cannot be reached by {key}")

    def see_that_all_can_use_it(self) -> None:
        """axe-core's rules, contrast among them; and nothing that is wider than the screen."""
        found = Axe().run(self.page).response["violations"]
        assert not [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]
        wide, screen = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= screen


# The box around the message shows it for the field within.
SHOWS_FOCUS = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  return style.outlineStyle !== "none" || Boolean(node.closest("#composer:focus-within"));
}"""


@pytest.fixture
def chat(browser: Browser, desk: Desk) -> Iterator[Chat]:  # noqa: F811
    """A browser of the test's own, where nothing is kept yet."""
    desk.server.streams = True
    width, height = WIDE
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="light",
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield Chat(context.new_page())
    desk.server.streams = False
    context.close()
