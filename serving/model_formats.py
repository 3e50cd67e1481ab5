"""What kind of file holds a model, by its first bytes: told before anything is parsed."""

import struct
from typing import Literal

from db.errors import InvalidInput

HEAD_BYTES = 16
Kind = Literal["gguf", "zip"]

# Their magic numbers are written little-endian, and so read backwards.
OLD_FORMATS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA (a LoRA adapter)"}
HOW_TO_CONVERT = (
    "Convert it with llama.cpp's convert_llama_ggml_to_gguf.py (GGJT v3, or an older one that is not "
    "quantised), or take a GGUF of the same model, or its safetensors"
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def kind_of(head: bytes, name: str, *, param: str) -> Kind:
    """Tell a file by its first `HEAD_BYTES`.

    Raises:
        InvalidInput: it is in a format that is not taken; the message names it, and what to do.
    """
    magic = head[:4]
    if magic == b"GGUF":
        _check_version(head, name, param)
        return "gguf"
    if magic in OLD_FORMATS:
        version = _number(head[4:8]) if magic != b"lmgg" else None
        called = f"{OLD_FORMATS[magic]} v{version}" if version is not None else OLD_FORMATS[magic]
        raise _refused(f"{name} is in the old format {called}, before GGUF. {HOW_TO_CONVERT}.", param)
    if name.lower().endswith(PICKLES) or head[:1] == b"\x80":
        raise _refused(
            f"{name} is a pickle, which can run code when it is loaded: save the model as safetensors "
            "(save_pretrained does), or as GGUF.",
            param,
        )
    if magic == b"PK\x03\x04":
        return "zip"
    if name.lower().endswith(".safetensors"):
        raise _refused(
            f"{name} holds weights alone: put it into a .zip together with config.json and tokenizer.",
            param,
        )
    raise _refused(
        f"{name} is no model that is taken: give a GGUF file, or a .zip of a folder with config.json, "
        "tokenizer and safetensors.",
        param,
    )


def _check_version(head: bytes, name: str, param: str) -> None:
    version = _number(head[4:8])
    if version is None or version in (2, 3):
        return  # what is cut off is told by who reads on
    if version == 1:
        raise _refused(
            f"{name} is GGUF v1, which llama.cpp no longer reads: convert the model's safetensors anew with "
            "convert_hf_to_gguf.py.",
            param,
        )
    if version & 0xFFFF == 0:
        raise _refused(
            f"{name} is a GGUF of big-endian machines: turn it with gguf_convert_endian.py of gguf-py.", param
        )
    raise _refused(f"{name} is GGUF v{version}: versions 2 and 3 are read.", param)


def _number(raw: bytes) -> int | None:
    return int(struct.unpack("<I", raw)[0]) if len(raw) == 4 else None


def _refused(message: str, param: str) -> InvalidInput:
    return InvalidInput(message, param=param, code="unsupported_model_format")
