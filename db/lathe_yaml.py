"""`lathe.yaml`, the configuration of the small LLM API, and what each of its keys is today.

It names one model: where it is fetched from, how it is prompted, and what its server runs with. A key whose
value changes nothing is let through, since whole files are brought along; any other is refused by name, with
what to do in its place. Of the environment, `LLM_API_<KEY>` goes before the file, and `LATHE_<KEY>` before
both; `__` stands between a section and its key, and a whole section may be given as JSON.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from db.errors import InvalidInput
from db.params.values import HubId, HubPath, HubRevision, ModelName, PromptFormatName

SETTING = "LATHE_CONFIG"
PREFIXES = ("LLM_API_", "LATHE_")  # the later one wins
SECTIONS = ("setup_params", "model_params")
# Known by these names to both; elsewhere the names of LATHE_ are Lathe's own settings.
SHARED = ("models_dir", "model_family", "model_name", *SECTIONS)

FAMILIES: dict[str, PromptFormatName | None] = {
    "llama": "llama",
    "llama2": "llama",
    "llama3": "llama3",
    "alpaca": "alpaca",
    "vicuna": "vicuna",
    "chatml": "chatml",
    "plain": "plain",
    "huggingface": None,  # brings a template of its own
}
QUANTIZED_WEIGHTS = (
    "its weights are quantised for a GPU, which llama.cpp does not read. Name the repository that they were "
    "made from with model_family: huggingface, or have vLLM serve them: docs/how-to/backends.md"
)
REFUSED_FAMILIES = {"gptq_llama": QUANTIZED_WEIGHTS, "autoawq": QUANTIZED_WEIGHTS}

NOTHING = ("", "none", "null")
NO_CODE = "no code of a model's is run here, so there is nothing to trust"
BY_FILE = "the model's file says it"
MAPPED = "llama-server maps files into memory"
OF_GPTQ = QUANTIZED_WEIGHTS
GPUS = "LATHE_SERVING_DEVICE and LATHE_N_GPU_LAYERS say what runs on a GPU: docs/how-to/gpu.md"
# By key: the values that change nothing, and why any other is refused.
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "setup_params.migrate": (
        ("false",),
        "the formats before GGUF are not read any more. Convert the file with llama.cpp's "
        "convert_llama_ggml_to_gguf.py and pull the GGUF (lathe models pull FILE), or name a repository that "
        "has one",
    ),
    "setup_params.trust_remote_code": (("false",), NO_CODE),
    "setup_params.tokenizer_repo_id": ((), "the tokenizer is taken from the model's own repository"),
    "setup_params.config_params": (("{}",), "a model's own config.json is taken as it is"),
    "model_params.n_parts": (("-1", "1"), "join the parts first, with llama-gguf-split --merge"),
    "model_params.lora_path": ((), "fine-tune it here, or pull the model with the adapter merged"),
    "model_params.lora_base": ((), "fine-tune it here, or pull the model with the adapter merged"),
    "model_params.low_vram": (("false",), "lower n_gpu_layers"),
    "model_params.tensor_split": ((), "llama-server splits a model by itself; " + GPUS),
    "model_params.rope_freq_base": (("0", "10000", "10000.0"), BY_FILE),
    "model_params.rope_freq_scale": (("0", "1", "1.0"), BY_FILE),
    "model_params.f16_kv": (("true",), "llama-server keeps 16 bits"),
    "model_params.use_mmap": (("true",), MAPPED),
    "model_params.use_mlock": (("false",), f"{MAPPED}, and does not lock them"),
    "model_params.logits_all": (("false",), "ask for logprobs in a request"),
    "model_params.vocab_only": (("false",), "a model is loaded whole"),
    "model_params.embedding": (("true", "false"), "POST /embeddings asks the model `default`"),
    "model_params.verbose": (("true", "false"), "log_level says how much is logged"),
    "model_params.trust_remote_code": (("false",), NO_CODE),
    "model_params.torch_dtype": (
        ("auto",), "the weights are quantised: Q4_K_M, or pull it with other quantizations"
    ),
    "model_params.device_map": (("auto", "cpu"), GPUS),
    "model_params.safetensors": (("true",), "of weights that are no GGUF only safetensors are loaded"),
    "model_params.fuse_layers": (("false",), "llama-server chooses its kernels by itself"),
    "model_params.group_size": ((), OF_GPTQ),
    "model_params.wbits": ((), OF_GPTQ),
    "model_params.cuda_visible_devices": ((), GPUS),
    "model_params.device": ((), GPUS),
}  # fmt: skip
# What the keys were called at other times.
ALSO_CALLED = {"n_ctx": "ctx_size", "num_threads": "n_threads", "batch_size": "n_batch"}
LogLevel = Literal["trace", "debug", "info", "warning", "error", "critical"]
LOG_LEVELS = {"critical": "error", "trace": "debug"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SetupParams(_Section):
    repo_id: HubId | None = None
    filename: HubPath | None = None
    revision: HubRevision | None = None
    convert: bool = False  # what is no GGUF is converted anyway


class ModelParams(_Section):
    ctx_size: Annotated[int, Field(ge=0)] | None = None
    n_threads: Annotated[int, Field(ge=1)] | None = None
    n_batch: Annotated[int, Field(ge=1)] | None = None
    n_gpu_layers: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    last_n_tokens_size: Annotated[int, Field(ge=-1)] | None = None


class LatheYaml(_Section):
    models_dir: Annotated[str, StringConstraints(min_length=1)] | None = None
    model_family: str | None = None
    model_name: ModelName | None = None
    setup_params: SetupParams = SetupParams()
    model_params: ModelParams = ModelParams()
    host: Annotated[str, StringConstraints(min_length=1)] | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    log_level: LogLevel | None = None


KEYS = {"setup_params": SetupParams.model_fields, "model_params": ModelParams.model_fields}


class ConfiguredModel(_Section):
    """The model that is asked unless a request names another.

    Args:
        hub: where it is fetched from at the first start; None: it is one that exists.
        prompt_format: how it is prompted if it brings no chat template.
        sampling: by the names of a request's params, where that says nothing.
    """

    name: ModelName
    hub: HubId | None = None
    filename: HubPath | None = None
    revision: HubRevision | None = None
    prompt_format: PromptFormatName | None = None
    sampling: dict[str, int] = {}


def read_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings that `lathe.yaml` and the variables of its keys give; those of Lathe's own go before them.

    Raises:
        InvalidInput: the file cannot be read, or a key is unknown, wrong or refused; the message names it.
    """
    given = _read_file(environment.get(SETTING))
    named = {f"{section}.{key}" for section in SECTIONS for key in given.get(section) or {}}
    said_by = dict.fromkeys([*given, *named], SETTING)
    for prefix in PREFIXES:
        _take_variables(given, said_by, environment, prefix)
    for section in SECTIONS:
        given[section] = _kept(section, given.get(section) or {}, said_by)
    try:
        read = LatheYaml.model_validate(given)
    except ValidationError as error:
        raise _wrong_value(error, said_by) from None
    return _mapped(read, said_by)


def _read_file(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    try:
        given = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(SETTING, f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _refused(SETTING, f"{path} is not one document of YAML: {error}") from None
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _refused(SETTING, f"{path} is no list of keys with their values")
    for section in SECTIONS:
        values = given.get(section) or {}
        if not isinstance(values, dict):
            raise _refused(SETTING, f"{section} is no section: indent its keys below it")
        given[section] = _by_todays_names(values)
    return {str(key): value for key, value in given.items() if value is not None}


def _by_todays_names(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {ALSO_CALLED.get(str(key), str(key)): value for key, value in values.items()}


def _take_variables(
    given: dict[str, Any], said_by: dict[str, str], environment: Mapping[str, str], prefix: str
) -> None:
    known = SHARED if prefix == "LATHE_" else LatheYaml.model_fields
    for variable, value in environment.items():
        if not variable.upper().startswith(prefix) or not value:
            continue
        section, _, key = variable[len(prefix) :].lower().partition("__")
        if section not in known:
            if prefix == "LATHE_":
                continue  # a setting of Lathe's own
            raise _refused(variable, f"there is no key {section!r}. There are: {', '.join(known)}")
        if section not in SECTIONS:
            given[section], said_by[section] = value, variable
            continue
        values = _by_todays_names({key: value} if key else _section_of(variable, value))
        given[section] = {**(given.get(section) or {}), **values}
        said_by |= {f"{section}.{each}": variable for each in values}


def _section_of(variable: str, value: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(value)  # JSON is YAML
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise _refused(variable, 'it is a whole section, and takes JSON: {"key": value}')
    return values


def _kept(section: str, values: Mapping[str, Any], said_by: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a section that say something.

    Raises:
        InvalidInput: one is of those that are refused.
    """
    kept = {}
    for key, value in values.items():
        text, name = str("" if value is None else value).strip().lower(), f"{section}.{key}"
        if text in NOTHING:
            continue
        if name not in REFUSED:
            kept[key] = value
            continue
        harmless, why = REFUSED[name]
        if text not in harmless:
            raise _refused(said_by.get(name, SETTING), f"{name}: {value!r} is not taken: {why}")
    return kept


def _wrong_value(error: ValidationError, said_by: Mapping[str, str]) -> InvalidInput:
    row = error.errors()[0]
    name = ".".join(str(part) for part in row["loc"])
    variable = said_by.get(name, SETTING)
    if row["type"] == "extra_forbidden":
        section, _, key = name.rpartition(".")
        known = KEYS.get(section, LatheYaml.model_fields)
        return _refused(variable, f"{name}: there is no key {key!r} here. There are: {', '.join(known)}")
    if name == "setup_params.filename":
        return _refused(
            variable,
            f"{name}: {row['input']!r} is no .gguf file. The formats before GGUF are not read any more: "
            "convert it with llama.cpp's convert_llama_ggml_to_gguf.py and pull the GGUF, or name a "
            "repository that has one; of safetensors leave filename out",
        )
    return _refused(variable, f"{name}: {row['msg']}")


def _refused(variable: str, why: str) -> InvalidInput:
    return InvalidInput(f"{variable}: {why}.", param=variable)


# --- what each key is today ----------------------------------------------------------------------------


def _mapped(read: LatheYaml, said_by: Mapping[str, str]) -> dict[str, Any]:
    params, layers, level = read.model_params, read.model_params.n_gpu_layers, read.log_level
    settings = {
        "hub_cache_dir": read.models_dir,
        "api_host": read.host,
        "api_port": read.port,
        "log_level": LOG_LEVELS.get(level, level) if level is not None else None,
        "context_size": params.ctx_size,
        "threads": params.n_threads,
        "chat_batch_tokens": params.n_batch,
        "n_gpu_layers": None if layers == -1 else layers,  # all of them, as Lathe's own default
        "configured_model": _configured_model(read, said_by),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _configured_model(read: LatheYaml, said_by: Mapping[str, str]) -> ConfiguredModel | None:
    setup, family = read.setup_params, read.model_family
    variable = said_by.get("model_family", SETTING)
    if family in REFUSED_FAMILIES:
        raise _refused(variable, f"model_family: {family!r} is not served: {REFUSED_FAMILIES[family]}")
    if family is not None and family not in FAMILIES:
        raise _refused(
            variable, f"model_family: there is no family {family!r}. There are: {', '.join(FAMILIES)}"
        )
    if setup.repo_id is None and (setup.filename or setup.revision):
        raise _refused(SETTING, "setup_params.repo_id is missing: filename and revision are of a repository")
    name = read.model_name or _name_of(setup.repo_id)
    if name is None:
        return None
    sampling = {"seed": read.model_params.seed, "repeat_last_n": read.model_params.last_n_tokens_size}
    return ConfiguredModel(
        name=name,
        hub=setup.repo_id,
        filename=setup.filename,
        revision=setup.revision,
        prompt_format=FAMILIES[family] if family is not None else None,
        sampling={key: value for key, value in sampling.items() if value is not None and value != -1},
    )


def _name_of(repository: str | None) -> str | None:
    """What a model is called whose configuration gives it no name."""
    if repository is None:
        return None
    name = re.sub(r"[^a-z0-9._-]+", "-", repository.partition("/")[2].lower()).strip("._-")
    return name.removesuffix("-gguf")[:63] or "model"
