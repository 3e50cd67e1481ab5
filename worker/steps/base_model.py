"""The model a job starts from, as a local folder: a server's own, or fetched from the hub.

Only configuration, tokenizer and safetensors are ever fetched; code in a repository is neither
fetched nor run.
"""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.adapter_configs import CONFIG_FILE as ADAPTER_CONFIG
from training_data.json_files import read_json
from training_data.model_shape import ModelShape, read_shape
from training_data.stored_quantization import stored_quantization
from training_data.tokens import read_template
from worker.step import BaseWeights, Step
from worker.steps.hub import Hub

CONFIG_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
WEIGHT_FILES = ["*.safetensors"]
# Copies of the weights in other layouts, such as Mistral's: as large again, and never loaded.
NOT_FETCHED = ["*/*", "consolidated*"]
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
# What a config calls the length it was trained for, in the order of trust.
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
CONFIGURATION = ("config.json", "generation_config.json", "model.safetensors.index.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OLDER_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
# As safetensors calls them.
TRAINABLE_DTYPES = ("BF16", "F16", "F32", "F64")
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how the classes of causal language models are called
DEFAULT_CONTEXT = 2048
SAFETENSORS_HEADER_MAX_BYTES = 100 * 1024**2


def fetch_base(
    base: BaseWeights, step: Step, *, param: str = "base_model", quantized_too: bool = False
) -> Path:
    """Give the folder that holds a base model, downloading it first when it is the hub's.

    Args:
        quantized_too: also one whose weights are stored by GPTQ or AWQ.
    Raises:
        InvalidInput: it is unknown, it has no safetensors, it is quantised, or it needs code of its own.
        Unavailable: the hub cannot be reached.
    """
    if base.source == "hub":
        hub = Hub(step.input.settings, param=param, step=step)
        patterns = [*CONFIG_FILES, *WEIGHT_FILES]
        folder = hub.folder(base.location, base.revision, patterns, ignored=NOT_FETCHED)
    else:
        folder = Path(base.location)
    check_weights(folder, base.name, param, quantized_too=quantized_too)
    return folder


def fetch_configuration(model: BaseWeights, step: Step, *, param: str = "base_model") -> Path:
    """Give a folder with a model's configuration and tokenizer, without fetching its weights.

    Raises:
        InvalidInput: the hub has no such model.
        Unavailable: the hub cannot be reached.
    """
    if model.source == "hub":
        hub = Hub(step.input.settings, param=param)
        return hub.folder(model.location, model.revision, CONFIG_FILES, ignored=NOT_FETCHED)
    return Path(model.location)


def describe_base(base: BaseWeights, step: Step) -> tuple[Path, ModelShape, bool]:
    """What there is to know of a base model without its weights, which are not fetched for this.

    Returns:
        a folder with its config and tokenizer, its shape, and whether its weights are here.
    Raises:
        InvalidInput, Unavailable: as `fetch_base`.
    """
    folder = fetch_configuration(base, step)
    files = weight_files(folder)
    if base.source != "hub" or (files and all(path.is_file() for path in files)):
        check_weights(folder, base.name, "base_model", quantized_too=True)
        return folder, shape_of(folder), True
    check_config(folder, base.name, "base_model", quantized_too=True)
    tensors = Hub(step.input.settings, param="base_model").tensors(base.location, base.revision)
    return folder, read_shape(read_json(folder / "config.json"), tensors), False


def shape_of(folder: Path) -> ModelShape:
    """The shape of a model whose weights are in `folder`."""
    tensors = {
        name: tensor["shape"]
        for path in weight_files(folder)
        for name, tensor in safetensors_header(path).items()
        if name != "__metadata__"
    }
    return read_shape(read_json(folder / "config.json"), tensors)


def fetch_tokenizer(model: BaseWeights, target: Path, step: Step) -> None:
    """Copy a model's tokenizer with its chat template into `target`, without fetching its weights."""
    copy_tokenizer(fetch_configuration(model, step, param="tokenizer"), target, param="tokenizer")


def copy_tokenizer(source: Path, target: Path, *, param: str = "base_model") -> None:
    """Copy the tokenizer's files unchanged; make tokenizer.json where a model has only an older form.

    The chat template always ends up in chat_template.jinja, whichever file it came from.

    Raises:
        InvalidInput: there is no tokenizer, or none that can be read.
    """
    see_json(source, TOKENIZER_SETTINGS, param)
    target.mkdir(parents=True, exist_ok=True)
    if (source / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    else:
        _convert_tokenizer(source, target, param)
        if (source / "tokenizer.model").is_file():  # llama.cpp's converter reads this form for some families
            shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")
    template, _ = read_template(source)
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _convert_tokenizer(source: Path, target: Path, param: str) -> None:
    from transformers import AutoTokenizer

    if not any((source / name).is_file() for name in OLDER_TOKENIZERS):
        raise InvalidInput(
            f"The base model has no tokenizer: none of tokenizer.json, {', '.join(OLDER_TOKENIZERS)} is "
            "there. Put the tokenizer's files into its folder, or fetch it again.",
            param=param,
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    # As transformers and the libraries under it fail, by the form that it is in.
    except (OSError, ValueError, TypeError, LookupError, ImportError, AttributeError, RuntimeError) as error:
        said = str(error).strip().split("\n")[0].replace(f"{source}/", "")[:300]
        raise InvalidInput(
            f"The base model's tokenizer cannot be read: {said} "
            "Save it as tokenizer.json by a current transformers, or fetch it again.",
            param=param,
        ) from error
    tokenizer.save_pretrained(target)


def weight_files(folder: Path) -> list[Path]:
    """The files that the weights are loaded from, for a folder may hold them in other layouts as well."""
    shards = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(shards, dict):
        return sorted({folder / Path(str(name)).name for name in shards.values()})
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else []


def count_parameters(folder: Path) -> int:
    """Sum the tensors' sizes from the safetensors headers, without loading any."""
    return sum(
        math.prod(tensor["shape"])
        for path in weight_files(folder)
        for name, tensor in safetensors_header(path).items()
        if name != "__metadata__"
    )


def context_length(folder: Path) -> int:
    """The number of tokens a model was made for."""
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return DEFAULT_CONTEXT


def safetensors_header(path: Path, *, param: str = "base_model") -> dict[str, Any]:
    """What a file of weights says of its tensors, by name.

    Raises:
        InvalidInput: it is no safetensors file, or not whole.
    """
    there = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header: Any = None
        try:
            header = (
                json.loads(file.read(size)) if 0 < size <= min(SAFETENSORS_HEADER_MAX_BYTES, there) else None
            )
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, LookupError, TypeError):
            raise InvalidInput(
                f"{path.name} is not a safetensors file: fetch it again, or save the weights anew.",
                param=param,
            ) from None
    whole = len(prefix) + size + max(ends, default=0)
    if there != whole:
        raise InvalidInput(
            f"{path.name} is damaged: it has {there:,} bytes, and {whole:,} by its header. Fetch it again.",
            param=param,
        )
    return dict(header)


def check_weights(folder: Path, name: str, param: str, *, quantized_too: bool = False) -> None:
    """See that a folder holds a causal language model, whole and in safetensors of 16 bits or more.

    Args:
        quantized_too: or of fewer, by GPTQ or AWQ.
    Raises:
        InvalidInput: it does not.
    """
    check_config(folder, name, param, quantized_too=quantized_too)
    files = weight_files(folder)
    if not files:
        raise InvalidInput(
            f"{name} has no safetensors, and nothing else is loaded: convert its weights first.", param=param
        )
    missing = ", ".join(path.name for path in files if not path.is_file())
    if missing:
        raise InvalidInput(f"{name} is incomplete: {missing} is missing. Fetch it again.", param=param)
    if stored_quantization(read_json(folder / "config.json")) is None:
        _check_dtypes(files, name, param)


def _check_dtypes(files: list[Path], name: str, param: str) -> None:
    headers = (safetensors_header(path, param=param) for path in files)
    kinds = {
        tensor["dtype"]
        for header in headers
        for each, tensor in header.items()
        if each.endswith(".weight") and len(tensor["shape"]) > 1
    }
    others = sorted(kinds - set(TRAINABLE_DTYPES))
    if others:
        raise InvalidInput(
            f"{name} is stored in {', '.join(others)}, and only weights in {', '.join(TRAINABLE_DTYPES)} can "
            "be taken: choose the model in 16 bits that it was made from.",
            param=param,
        )


def check_config(folder: Path, name: str, param: str, *, quantized_too: bool = False) -> None:
    """See by its config that a model is a causal language model that can be trained.

    Raises:
        InvalidInput: it is not.
    """
    if not (folder / "config.json").is_file():
        adapter = (folder / ADAPTER_CONFIG).is_file()
        raise InvalidInput(
            f"{name} is no model: it has no config.json."
            + f" It is an adapter ({ADAPTER_CONFIG}): give the model that it was trained on." * adapter,
            param=param,
        )
    see_json(folder, CONFIGURATION, param, name=name)
    config = read_json(folder / "config.json")
    if "quantization_config" in config and not (quantized_too and stored_quantization(config)):
        method = (config["quantization_config"] or {}).get("quant_method", "unknown")
        raise InvalidInput(
            f"{name} is quantised already ({method}), and only 16-bit weights can be taken here: choose the "
            "model that it was made from.",
            param=param,
        )
    plainly_causal = any(each.endswith(CAUSAL) for each in config.get("architectures") or [])
    if "auto_map" in config or not plainly_causal:  # else the import, of some seconds, is saved
        check_type(folder, name, param=param)


def check_type(folder: Path, name: str, *, param: str = "base_model") -> None:
    """Look a model's type up in transformers.

    Raises:
        InvalidInput: transformers has no causal language model of this type.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(folder / "config.json")
    if config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "auto_map" in config:
        raise InvalidInput(
            f"{name} brings Python code of its own, which is never run here: choose a model whose type "
            "transformers knows.",
            param=param,
        )
    kind = config.get("model_type")
    if not kind:
        raise InvalidInput(f"{name} is no model: its config.json names no model_type.", param=param)
    raise InvalidInput(
        f"{name} is of the type {kind!r}, of which transformers has no causal language model: choose another "
        "base.",
        param=param,
    )


def see_json(folder: Path, names: tuple[str, ...], param: str, *, name: str = "The base model") -> None:
    """Raises:
    InvalidInput: one of these files is there, and is no JSON object.
    """
    for each in names:
        path = folder / each
        try:
            whole = not path.is_file() or isinstance(json.loads(path.read_bytes()), dict)
            why = "it is no object"
        except ValueError as error:  # no JSON, or no UTF-8
            whole, why = False, str(error)
        if not whole:
            raise InvalidInput(
                f"{name} cannot be loaded: its {each} is broken ({why}). Fetch it again.", param=param
            )
