"""Every key of lathe.yaml: what it is today, or that it is refused by its name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from db import lathe_yaml
from db.errors import InvalidInput
from db.lathe_yaml import FAMILIES, REFUSED, ConfiguredModel, LatheYaml, ModelParams, SetupParams
from db.settings import load_settings

HUB = {"setup_params": {"repo_id": "org/Some-7B-GGUF"}}
# A key with a value, and what it becomes: of the settings, or of the configured model.
SETTINGS = [
    ({"models_dir": "/srv/models"}, "hub_cache_dir", Path("/srv/models")),
    ({"host": "0.0.0.0"}, "api_host", "0.0.0.0"),  # noqa: S104 - only read
    ({"port": 8123}, "api_port", 8123),
    ({"log_level": "critical"}, "log_level", "error"),
    ({"log_level": "trace"}, "log_level", "debug"),
    ({"log_level": "warning"}, "log_level", "warning"),
    ({"model_params": {"ctx_size": 1024}}, "context_size", 1024),
    ({"model_params": {"n_ctx": 1024}}, "context_size", 1024),
    ({"model_params": {"n_threads": 3}}, "threads", 3),
    ({"model_params": {"num_threads": 3}}, "threads", 3),
    ({"model_params": {"n_batch": 256}}, "chat_batch_tokens", 256),
    ({"model_params": {"batch_size": 256}}, "chat_batch_tokens", 256),
    ({"model_params": {"n_gpu_layers": 12}}, "n_gpu_layers", 12),
    ({"model_params": {"n_gpu_layers": -1}}, "n_gpu_layers", 99),
]
MODEL = [
    (HUB, "hub", "org/Some-7B-GGUF"),
    (HUB, "name", "some-7b"),
    ({**HUB, "model_name": "mine"}, "name", "mine"),
    ({"setup_params": {"repo_id": "a/b", "filename": "q/b-Q4.gguf"}}, "filename", "q/b-Q4.gguf"),
    ({"setup_params": {"repo_id": "a/b", "revision": "v1"}}, "revision", "v1"),
    ({"setup_params": {"repo_id": "a/b", "convert": True}}, "filename", None),
    ({**HUB, "model_params": {"seed": 7}}, "sampling", {"seed": 7}),
    ({**HUB, "model_params": {"seed": -1}}, "sampling", {}),
    ({**HUB, "model_params": {"last_n_tokens_size": 64}}, "sampling", {"repeat_last_n": 64}),
    *(({**HUB, "model_family": family}, "prompt_format", chosen) for family, chosen in FAMILIES.items()),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"modle_name": "x"}, "modle_name: there is no key"),
    ({"setup_params": {"repo": "a/b"}}, "setup_params.repo: there is no key 'repo' here. There are: repo_id"),
    ({"model_params": {"n_thread": 1}}, "model_params.n_thread: there is no key"),
    ({"model_params": {"ctx_size": "many"}}, "model_params.ctx_size: Input should be a valid integer"),
    ({"setup_params": {"repo_id": "../etc"}}, "setup_params.repo_id"),
    ({"setup_params": {"repo_id": "a/b", "filename": "ggml-q4_0.bin"}}, "convert_llama_ggml_to_gguf"),
    ({"setup_params": {"filename": "a.gguf"}}, "repo_id is missing"),
    ({"setup_params": ["repo_id"]}, "setup_params is no section"),
    ({"model_family": "gptq_llama"}, "vLLM"),
    ({"model_family": "autoawq"}, "vLLM"),
    ({"model_family": "rwkv"}, "there is no family 'rwkv'. There are: llama, llama2"),
    ({"model_name": "../x"}, "model_name"),
    ({"port": 0}, "port: Input should be greater"),
    ({"log_level": "loud"}, "log_level"),
]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lathe.yaml"
    monkeypatch.setenv("LATHE_CONFIG", str(path))
    monkeypatch.delenv("LATHE_THREADS")  # which all tests have, and which goes before the file
    return path


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content))


def configured() -> ConfiguredModel:
    model = load_settings().configured_model
    assert model is not None
    return model


class TestKeys:
    @pytest.mark.parametrize(("content", "setting", "value"), SETTINGS)
    def test_becomes_a_setting(self, file: Path, content: dict[str, Any], setting: str, value: Any) -> None:
        write(file, content)
        assert getattr(load_settings(), setting) == value

    @pytest.mark.parametrize(("content", "field", "value"), MODEL)
    def test_is_of_the_configured_model(
        self, file: Path, content: dict[str, Any], field: str, value: Any
    ) -> None:
        write(file, content)
        assert getattr(configured(), field) == value

    @pytest.mark.parametrize("name", REFUSED)
    def test_is_refused_by_name_unless_it_changes_nothing(self, file: Path, name: str) -> None:
        section, _, key = name.partition(".")
        harmless, why = REFUSED[name]
        for value in (None, *harmless):
            write(file, {section: {key: value}})
            load_settings()
        if harmless == ("true", "false"):
            return  # whatever it is, it changes nothing
        write(file, {section: {key: 77}})
        with pytest.raises(InvalidInput) as caught:
            load_settings()
        assert caught.value.message == f"LATHE_CONFIG: {name}: 77 is not taken: {why}."

    @pytest.mark.parametrize(("content", "message"), WRONG)
    def test_is_named_if_it_is_wrong(self, file: Path, content: dict[str, Any], message: str) -> None:
        write(file, content)
        with pytest.raises(InvalidInput) as caught:
            load_settings()
        assert caught.value.message.startswith("LATHE_CONFIG: ")
        assert message in caught.value.message
        assert caught.value.param == "LATHE_CONFIG"

    def test_every_one_is_in_these_tables(self) -> None:
        given = [content for content, *_ in (*SETTINGS, *MODEL)]
        for section, model in (("setup_params", SetupParams), ("model_params", ModelParams)):
            tested = {key for content in given for key in content.get(section, {})}
            assert set(model.model_fields) <= tested
        assert set(LatheYaml.model_fields) == {key for content in given for key in content}

    @pytest.mark.parametrize("text", ["a: [", "- a", "a: 1\n---\na: 2", "text"])
    def test_a_file_that_is_none(self, file: Path, text: str) -> None:
        file.write_text(text)
        with pytest.raises(InvalidInput, match="LATHE_CONFIG"):
            load_settings()

    def test_a_file_that_is_not_there_and_one_that_is_empty(self, file: Path) -> None:
        with pytest.raises(InvalidInput, match="cannot be read"):
            load_settings()
        file.write_text("# nothing\n")
        assert load_settings().configured_model is None


class TestPrecedence:
    def test_variables_go_before_the_file_and_lathes_before_the_other(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, {"model_params": {"n_ctx": 1, "n_threads": 1, "n_batch": 1, "seed": 1}, **HUB})
        monkeypatch.setenv("LLM_API_MODEL_PARAMS", '{"n_threads": 2, "n_batch": 2, "seed": 2}')
        monkeypatch.setenv("LLM_API_MODEL_PARAMS__N_BATCH", "3")
        monkeypatch.setenv("LATHE_MODEL_PARAMS__SEED", "4")
        settings = load_settings()
        assert (settings.context_size, settings.threads, settings.chat_batch_tokens) == (1, 2, 3)
        assert configured().sampling == {"seed": 4}
        monkeypatch.setenv("LATHE_CONTEXT_SIZE", "5")
        assert load_settings().context_size == 5

    @pytest.mark.parametrize("prefix", lathe_yaml.PREFIXES)
    def test_they_do_without_a_file(self, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
        monkeypatch.delenv("LATHE_CONFIG")
        monkeypatch.setenv(f"{prefix}SETUP_PARAMS__REPO_ID", "org/it")
        monkeypatch.setenv(f"{prefix}MODEL_FAMILY", "vicuna")
        monkeypatch.setenv(f"{prefix}MODEL_NAME", "")
        assert (configured().hub, configured().prompt_format) == ("org/it", "vicuna")

    @pytest.mark.parametrize(
        ("variable", "value", "message"),
        [
            ("LLM_API_PROT", "1", "there is no key 'prot'"),
            ("LLM_API_MODEL_PARAMS", "8", "takes JSON"),
            ("LATHE_MODEL_PARAMS__N_THREAD", "8", "there is no key 'n_thread'"),
            ("LLM_API_SETUP_PARAMS__MIGRATE", "true", "convert_llama_ggml_to_gguf"),
            ("LLM_API_MODEL_FAMILY", "autoawq", "vLLM"),
        ],
    )
    def test_a_wrong_one_is_named(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
    ) -> None:
        monkeypatch.delenv("LATHE_CONFIG")
        monkeypatch.setenv(variable, value)
        with pytest.raises(InvalidInput) as caught:
            load_settings()
        assert caught.value.param == variable
        assert message in caught.value.message
