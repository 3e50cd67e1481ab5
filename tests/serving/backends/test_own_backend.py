"""The documented example of a backend of one's own, as it is documented."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from db.settings import Settings
from serving.backends.guarding import Guarded
from serving.backends.interface import Answer, request_of
from serving.backends.roster import Backends
from serving.backends.routing import named
from serving.openai_compatible import make_async_client
from tests.serving.backends.asking import ask

ROOT = Path(__file__).parents[3]
SAID = [{"role": "user", "content": "so many words"}]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    docs = (ROOT / "docs/how-to/backends.md").read_text()
    entry = re.search(r"```toml\n(\[echo\].*?)```", docs, re.DOTALL)
    assert entry is not None
    path = tmp_path / "backends.toml"
    path.write_text(entry[1])
    return Settings(backends=path)


async def echo(settings: Settings, work: Any) -> Any:
    async with make_async_client() as client:
        backends = Backends(settings, client)
        [place] = named(backends.configs, "echo")
        guarded = backends.get(place.backend)
        assert guarded is not None
        return await work(guarded)


class TestExample:
    @pytest.mark.anyio
    async def test_a_whole_answer(self, settings: Settings) -> None:
        status, content = await echo(settings, lambda there: ask(there, "echo", messages=SAID))
        answer = json.loads(content)
        assert status == 200
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "SO MANY WORDS "}
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}

    @pytest.mark.anyio
    async def test_a_stream(self, settings: Settings) -> None:
        body = {"messages": SAID, "stream": True, "stream_options": {"include_usage": True}}
        _, content = await echo(settings, lambda there: ask(there, "echo", **body))
        events = content.decode().strip().split("\n\n")
        assert events.pop() == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]]
        assert deltas == ["SO ", "MANY ", "WORDS ", None]
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 6)

    @pytest.mark.anyio
    async def test_who_hangs_up_gives_the_place_back(self, settings: Settings) -> None:
        async def work(there: Guarded) -> int:
            body = {"messages": SAID, "stream": True}
            answer: Answer = await there.ask("chat", request_of("echo", body))
            await answer.close()
            return there.door.inside

        assert await echo(settings, work) == 0

    @pytest.mark.anyio
    async def test_what_it_cannot_do_is_refused(self, settings: Settings) -> None:
        with pytest.raises(InvalidInput, match="'echo' cannot embed"):
            await echo(settings, lambda there: ask(there, "echo", route="embed"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
