"""Run one of llama.cpp's converters, and answer for tokenizers that Lathe made itself.

    python convert_driver.py CONVERT_FOLDER GGUF_FOLDER SCRIPT its arguments …

Their converter knows a BPE tokenizer by a hash over token ids, which no new vocabulary can match. The
splitting of text before BPE is what it wants to know, and that is written in tokenizer.json: where it is
the one of Qwen2, as in the tokenizers we train, the answer is "qwen2". For some
families it loads tokenizers with `trust_remote_code=True`; here that is always off. Their files stay as they
are.
"""

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def splits_like_qwen2(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits text as Qwen2 does: its pattern, then bytes; no prefix space."""
    pre_tokenizer = tokenizer.get("pre_tokenizer") or {}
    if pre_tokenizer.get("type") != "Sequence":
        return False
    parts = pre_tokenizer.get("pretokenizers", [])
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return False
    split, byte_level = parts
    return (
        split.get("pattern") == {"Regex": QWEN2_SPLIT}
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and not byte_level.get("add_prefix_space")
        and not byte_level.get("use_regex")
    )


def find_modules(convert: Path, gguf_python: Path) -> None:
    """Have `conversion` and `gguf` imported from llama.cpp's folders."""
    sys.path[:0] = [str(convert), str(gguf_python)]


def prepare_converter() -> None:
    """Change what their converter does with tokenizers, in this process."""
    from conversion import base  # type: ignore[import-not-found]  # theirs, found through sys.path

    trust_no_remote_code()
    _teach(base.TextModel if hasattr(base, "TextModel") else base.ModelBase)


def _teach(model_base: Any) -> None:
    known: Callable[[Any, Any], str] = model_base.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            described = json.loads((self.dir_model / "tokenizer.json").read_text("utf-8"))
            if not splits_like_qwen2(described):
                raise
            return "qwen2"

    model_base.get_vocab_base_pre = get_vocab_base_pre


def load_transformers_without_torch() -> None:
    """Have transformers believe that there is no torch, in this process.

    The converter asks it for configurations and tokenizers alone. With torch it imports all that a training
    needs as well: a third of an export's start, and of its memory.
    """
    for name in ("transformers.utils.import_utils", "transformers.utils"):
        importlib.import_module(name).is_torch_available = lambda: False  # type: ignore[attr-defined]


def trust_no_remote_code() -> None:
    """A model's files may name Python code at the hub (`auto_map`), and their converter would run it."""
    # By name: `serving` itself does without it, but this process is the converter's.
    transformers = importlib.import_module("transformers")
    for auto in (transformers.AutoConfig, transformers.AutoTokenizer):
        auto.from_pretrained = _untrusting(auto.from_pretrained)


def _untrusting(load: Callable[..., Any]) -> Callable[..., Any]:
    def from_pretrained(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "trust_remote_code": False})

    return from_pretrained


def main() -> None:
    convert, gguf_python, name, *rest = sys.argv[1:]
    del sys.path[0]  # this file's own folder
    find_modules(Path(convert), Path(gguf_python))
    prepare_converter()
    script = str(Path(convert) / name)
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
