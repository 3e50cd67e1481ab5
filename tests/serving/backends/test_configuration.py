"""The operator's file of backends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from db.errors import InvalidInput
from db.settings import Settings
from serving.backends.configuration import BackendConfig, read_backends
from serving.backends.roster import Backends
from serving.backends.routing import Place, named, standing_in
from serving.openai_compatible import make_async_client

Write = Callable[[str], Settings]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def settings_with(text: str) -> Settings:
        path = tmp_path / "backends.toml"
        path.write_text(text)
        return Settings(backends=path, chat_server_url="http://chat:1", ollama_host="box")

    return settings_with


def roster(settings: Settings) -> Backends:
    return Backends(settings, make_async_client())


class TestReading:
    def test_without_a_file_there_are_those_of_the_older_settings(self) -> None:
        alone = read_backends(Settings(chat_server_url="http://chat:1"))
        assert {name: config.url for name, config in alone.items()} == {
            "llama_server": "http://chat:1",
            "embeddings": "http://127.0.0.1:8082",
        }
        assert read_backends(Settings(ollama_host="box:11434"))["ollama"].url == "http://box:11434"

    def test_a_table_of_a_built_in_one_adds_to_it(self, write: Write) -> None:
        found = read_backends(write("[ollama]\nconcurrency = 2\nmodels = ['qwen3:0.6b']"))["ollama"]
        assert (found.url, found.concurrency, found.models) == ("http://box", 2, {"qwen3:0.6b": "qwen3:0.6b"})

    def test_addresses_as_openais_clients_take_them(self, write: Write) -> None:
        config = read_backends(write("[a]\ntype = 'openai'\nurl = 'https://there/v1/'"))["a"]
        assert config.url == "https://there"

    def test_keys_are_not_shown(self, write: Write) -> None:
        config = read_backends(write("[a]\ntype = 'openai'\nurl = 'http://a'\nkey = 'hush'"))["a"]
        assert "hush" not in repr(config)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[a", "is no TOML"),
            ("a = 1", r"a is no table: write \[a\]"),
            ("[a]\ntype = 'openai'", "a.url is missing"),
            ("[a]\nurl = 'http://x'", "a.type: Field required"),
            ("[a]\ntype = 'openai'\nurl = 'there'", "a.url: must begin with http"),
            ("[a]\ntype = 'openai'\nurl = 'http://x'\nretrys = 1", "a.retrys: Extra inputs"),
            ("[a]\ntype = 'openai'\nurl = 'http://x'\ntimeout = {connect = 0}", "a.timeout.connect: "),
            ("['A b']\ntype = 'openai'\nurl = 'http://x'", "A b.name: "),
            (
                "[a]\ntype = 'openai'\nurl = 'http://x'\nstands_in_for = 'b'",
                "there is no 'b'; there are: llama_",
            ),
            ("[a]\ntype = 'transformers'", "a.process is missing"),
            (
                "[a]\ntype = 'transformers'\nprocess = {model = 'm', bits = 5}",
                "a.process.bits: must be 4, 8 or",
            ),
        ],
    )
    def test_what_is_wrong_names_the_entry(self, write: Write, text: str, why: str) -> None:
        with pytest.raises(InvalidInput, match=why) as caught:
            read_backends(write(text))
        assert caught.value.param == "LATHE_BACKENDS"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_backends(Settings(backends=tmp_path / "gone.toml"))


class TestRoster:
    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            ("opnai", "it is one of llama_server, ollama, openai"),
            ("nowhere:Class", "cannot be imported.*PYTHONPATH"),
            ("json:Nothing", "cannot be imported"),
            ("json:JSONDecoder", "is no class derived from"),
        ],
    )
    def test_a_type_that_there_is_not(self, write: Write, kind: str, why: str) -> None:
        with pytest.raises(InvalidInput, match=why):
            roster(write(f"[a]\ntype = '{kind}'\nurl = 'http://x'"))

    def test_names(self, write: Write) -> None:
        found = roster(
            write(
                "[a]\ntype = 'openai'\nurl = 'http://a'\nmodels = {qwen = 'Qwen/Qwen3-8B'}\n"
                "[b]\ntype = 'openai'\nurl = 'http://b'\nmodels = ['qwen']\nown_models = false\n"
                "stands_in_for = 'llama_server'"
            )
        )
        assert named(found.configs, "a/Qwen/Qwen3-8B") == [Place("a", "Qwen/Qwen3-8B")]
        assert named(found.configs, "qwen") == [Place("a", "Qwen/Qwen3-8B"), Place("b", "qwen")]
        assert standing_in(found.configs, "llama_server") == ["b"]
        for reference in ("b/qwen", "c/x", "a/", "llama_server/faq-v-012345678901", "gpt-5"):
            assert named(found.configs, reference) == []


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs/how-to/backends.md").read_text()
    for name in BackendConfig.model_fields:
        assert name == "name" or f"`{name}`" in text, name
