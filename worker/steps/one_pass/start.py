"""What the pass does without when it starts, which otherwise takes longer than a small model's weights.

Nothing here changes what comes out: a module that is left out is there as soon as something looks into it.
"""

import importlib
import marshal
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving.convert_driver import load_transformers_without_torch
from worker.deferred_imports import defer_imports, run_deferred

# How shapes of tensors without content come about, for operations that torch itself does not tell it of.
SHAPES_OF_OTHERS = ("torch._meta_registrations", "torch.distributed._meta_registrations")
UNUSED = (
    *SHAPES_OF_OTHERS, "torch.compiler", "torch.distributions", "torch.export", "torch.masked", "torch.optim",
    "torch.profiler", "torch.testing", "torch.utils.data", "transformers", "transformers.models",
)  # fmt: skip


def start_lean(cache: Path) -> None:
    """Have torch and transformers imported without what the pass does not use; nobody has imported them yet.

    Args:
        cache: where what transformers' folders hold is kept.
    """
    defer_imports(UNUSED)
    transformers: Any = importlib.import_module("transformers")
    transformers.__version__ = version("transformers")  # which its modules ask it for
    _keep_listing(cache / "transformers", transformers.__version__)
    load_transformers_without_torch()
    for name, file in (("AutoConfig", "configuration_auto"), ("AutoTokenizer", "tokenization_auto")):
        setattr(
            transformers, name, getattr(importlib.import_module(f"transformers.models.auto.{file}"), name)
        )


def know_all_shapes() -> bool:
    """Import what torch knows of shapes after all; whether that had been left out."""
    found = [run_deferred(name) for name in SHAPES_OF_OTHERS]
    return any(found)


def _keep_listing(folder: Path, release: str) -> None:
    """transformers reads each of its 1,600 files, twice, for the names in them, which never change."""
    theirs: Any = importlib.import_module("transformers.utils.import_utils")
    list_names: Callable[[Any], Any] = theirs.create_import_structure_from_path
    models = str(Path(theirs.__file__).parent.parent / "models")

    def listed(path: Any) -> Any:
        if os.fspath(path).removesuffix("/__init__.py") != models:
            return list_names(path)
        kept = folder / f"{release}-{sys.implementation.cache_tag}.names"
        try:
            return marshal.loads(kept.read_bytes())  # noqa: S302 - our own, in our own folder
        except (OSError, ValueError, EOFError, TypeError):
            found = list_names(path)
        with suppress(OSError):  # a full disk, or a cache that is read only: they are read again next time
            folder.mkdir(parents=True, exist_ok=True)
            beside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
            beside.write_bytes(marshal.dumps(found))
            beside.replace(kept)
        return found

    theirs.create_import_structure_from_path = listed
