"""Bases that cannot be trained on, and what their owner reads: refused by the first step."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from worker.steps import prepare
from worker.steps.base_model import safetensors_header
from worker.steps.quantized_base import load_for_training

PARAMS = {"base_model": "micro", "training_file": "file-1", "name": "x"}
WEIGHTS = "model.safetensors"


def config_of(model: Path, **changed: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def only_an_adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


def cut_off(model: Path) -> None:
    content = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(content[: len(content) // 2])


def with_header(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same tensors under another header."""
    path = model / WEIGHTS
    content, header = path.read_bytes(), safetensors_header(path)
    data = content[8 + struct.unpack("<Q", content[:8])[0] :]
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data)


def in_eight_bits(header: dict[str, Any]) -> None:
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["dtype"] = "F8_E4M3"


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda model: (model / "config.json").unlink(), "it has no config.json"),
    "an adapter": (only_an_adapter, "It is an adapter .*give the model that it was trained on"),
    "a config that is no JSON": (
        lambda model: (model / "config.json").write_text('{"model_type": '), "its config.json is broken"
    ),
    "a config that is a list": (
        lambda model: (model / "config.json").write_text("[]"), "its config.json is broken .it is no object"
    ),
    "no type": (
        lambda model: (model / "config.json").write_text("{}"), "its config.json names no model_type"
    ),
    "an unknown type": (
        lambda model: config_of(model, model_type="novel", architectures=["NovelModel"]),
        "of the type 'novel', of which transformers has no causal language model: choose another base",
    ),
    "no tokenizer": (
        lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer: none of tokenizer.json"
    ),
    "a tokenizer that is none": (
        lambda model: (model / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"
    ),
    "an older tokenizer that is none": (
        lambda model: (model / "tokenizer.json").rename(model / "tokenizer.model"),
        "tokenizer cannot be read: .* Save it as tokenizer.json",
    ),
    "settings of a tokenizer that are none": (
        lambda model: (model / "tokenizer_config.json").write_bytes(b"\xff"),
        "its tokenizer_config.json is broken",
    ),
    "a template that does not compile": (
        lambda model: (model / "chat_template.jinja").write_text("{% if %}"),
        "the chat template does not compile.*chat_template.jinja",
    ),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), "has no safetensors"),
    "weights that are cut off": (cut_off, r"safetensors is damaged: it has [\d,]+ bytes, and [\d,]+ by"),
    "weights that are none": (
        lambda model: (model / WEIGHTS).write_bytes(b"\x09" + bytes(7) + b"no header" * 9),
        "model.safetensors is not a safetensors file",
    ),
    "weights of 8 bits": (
        lambda model: with_header(model, in_eight_bits), "is stored in F8_E4M3.*choose the model in 16 bits"
    ),
    "a shard that is missing": (
        lambda model: (model / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "b.safetensor"}}'),
        "is incomplete: b.safetensor is missing",
    ),
}  # fmt: skip


@pytest.fixture
def model(micro_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_model, tmp_path / "model"))


@pytest.mark.parametrize("what", BROKEN)
def test_the_first_step_says_what_is_wrong(steps: Any, model: Path, tmp_path: Path, what: str) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\nWho?,She.\n")
    spoil, says = BROKEN[what]
    spoil(model)
    with pytest.raises(InvalidInput, match=says) as caught:
        steps.run(prepare.run, "fine_tune", "prepare", params=PARAMS, files={"file-1": rows}, base=model)
    assert caught.value.param == "base_model"
    assert not re.search(r"\w+(Error|Exception)\b|/tmp/", caught.value.message)


def without_one(header: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    header[name.replace("up_proj", "other")] = header.pop(name)


def in_another_shape(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] += [1]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_one, "layers.0.mlp.up_proj.weight are not"),
        (in_another_shape, "model.norm.weight have another shape"),
    ],
)
def test_no_weight_begins_as_a_random_number(model: Path, spoil: Any, says: str) -> None:
    import torch

    with_header(model, spoil)
    with pytest.raises(InvalidInput, match=says) as caught:
        load_for_training(model, 16, torch.float32)
    assert caught.value.param == "base_model"
