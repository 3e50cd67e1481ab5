"""Bases whose weights are stored by GPTQ or AWQ: read by gptqmodel, an extra (`pip install -e '.[gptq]'`)."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from training_data.json_files import read_json
from training_data.stored_quantization import (
    StoredQuantization,
    check_fine_tune,
    check_merge_base,
    stored_quantization,
)
from worker.step import BaseWeights, Step
from worker.steps.base_model import check_config, fetch_configuration, weight_files

if TYPE_CHECKING:
    import torch

PACKAGES = ("gptqmodel", "optimum")
EXTRA_MISSING = "extra_missing"
MATRICES, COLUMNS = 16, 64  # that are looked at, from all over the model
LEAST_COSINE = 0.9


def stored_in(folder: Path) -> StoredQuantization | None:
    """How the weights of a model's folder are stored; None: not by GPTQ or AWQ."""
    return stored_quantization(read_json(folder / "config.json"))


def require_gptqmodel(what: str, *, param: str = "base_model") -> None:
    """See that this worker can read and write such weights.

    Raises:
        InvalidInput: it cannot; the message says what to install.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"{what} needs {' and '.join(missing)}, which this worker does not have: its operator installs "
            "them by `pip install --no-build-isolation -e '.[gptq]'`, and starts the workers again.",
            param=param,
            code=EXTRA_MISSING,
        )


def check_quantized_base(step: Step, params: FineTuneParams, folder: Path) -> StoredQuantization | None:
    """See that the base in `folder` can be trained on as asked, and what it was made from can be found.

    Returns:
        how its weights are stored; None: in 16 bits or more.
    Raises:
        InvalidInput: it cannot; the message names the field.
    """
    base = step.input.require_base()
    stored = stored_in(folder)
    check_fine_tune(params, base.name, stored)
    if stored is None or base.merge_base is None:
        return None
    require_gptqmodel(f"{base.name}, a {stored},")
    merged = fetch_configuration(base.merge_base, step, param="merge_base")
    check_config(merged, base.merge_base.name, "merge_base")
    check_merge_base(
        read_json(folder / "config.json"),
        read_json(merged / "config.json"),
        name=base.name,
        merge_name=base.merge_base.name,
    )
    step.event(
        f"The adapter is trained on {base.name}, a {stored}, and will be merged into {base.merge_base.name}.",
        base=base.name,
        merge_base=base.merge_base.name,
    )
    return stored


def merge_base_revision(step: Step, merge_base: BaseWeights) -> str:
    """The commit at which the hub's 16-bit model is taken from now on."""
    return fetch_configuration(merge_base, step, param="merge_base").name  # the client's cache names it so


def see_that_it_was_made_from(model: Any, base: BaseWeights, sixteen_bit: Path) -> None:
    """Hold columns of a loaded quantised model's matrices against those of the 16-bit one.

    Rounding turns a column by little, and AWQ stretches it besides: the cosine stays near 1 (4 bits: 0.99),
    where another model's is near 0.

    Args:
        model: with or without an adapter.
        sixteen_bit: the folder of what it is said to be made from.
    Raises:
        InvalidInput: it was not.
    """
    import torch

    assert base.merge_base is not None  # noqa: S101 - for the type checker
    modules = {_plain(name): each for name, each in model.named_modules() if hasattr(each, "qweight")}
    with torch.no_grad():
        for name in list(modules)[:: max(1, len(modules) // MATRICES)]:
            cosine = _cosine(modules[name], _columns(sixteen_bit, f"{name}.weight"))
            if cosine < LEAST_COSINE:
                raise InvalidInput(
                    f"merge_base: {base.name} was not made from {base.merge_base.name}: {name} is another "
                    f"matrix there (cosine {cosine:.2f} of its columns, at least {LEAST_COSINE} is needed).",
                    param="merge_base",
                )


def _plain(name: str) -> str:
    """A module's name as its file has it, without what peft puts around it."""
    inner = name.removeprefix("base_model.model.")
    return inner.removesuffix(".base_layer").removesuffix(".quant_linear_module")


def _columns(folder: Path, name: str) -> "torch.Tensor":
    """Some columns (inputs, outputs) of a stored matrix, fp32, from its left side."""
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if name in set(file.keys()):
                return file.get_slice(name)[:, :COLUMNS].float().T
    raise InvalidInput(f"merge_base: its files have no {name}.", param="merge_base")


def _cosine(module: Any, columns: "torch.Tensor") -> float:
    """The mean cosine of columns (inputs, outputs) and those that a packed matrix stands for."""
    import torch

    device, count = module.qweight.device, len(columns)
    units = torch.zeros(count + 1, module.in_features, device=device, dtype=module.scales.dtype)
    units[:count, :count] = torch.eye(count)
    answered = module(units).float().cpu()  # the last row is the bias alone
    return float(torch.cosine_similarity(answered[:-1] - answered[-1], columns, dim=-1).mean())


def stored_config(folder: Path) -> Any:
    """What transformers is told of weights that are stored quantised, beside what they say themselves.

    Of the kernels, those through which gradients flow. None: they are stored in 16 bits or more.
    """
    stored = stored_in(folder)
    if stored is None:
        return None
    from transformers import AwqConfig, GPTQConfig

    kind = GPTQConfig if stored.method == "gptq" else AwqConfig
    return kind(bits=stored.bits, group_size=stored.group_size, backend="auto_trainable")
