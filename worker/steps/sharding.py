"""Weights divided among the processes that train: each holds a share of every matrix, and a whole layer only
while it computes it (FSDP2).

transformers divides as it loads, so that a process reads no more than its share; torch gathers and averages.
An adapter is small: each process has a copy of it, whose gradients are averaged. What is kept is gathered, so
that a checkpoint is that of one process. What follows is called by all processes, in the same order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.steps import together
from worker.steps.base_model import weight_files

if TYPE_CHECKING:
    import torch


def shares() -> Any:
    """What `from_pretrained` is told for a process to get its share."""
    from transformers.distributed import DistributedConfig

    return DistributedConfig(fsdp_size=together.count())


def is_sharded(model: Any) -> bool:
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def divide_packed(model: Any) -> None:
    """Leave each process its share of a model whose matrices are NF4 (bitsandbytes), and which it has whole.

    transformers cannot pack a share as it loads. The scales, an eighth of a bit a weight, stay whole in each.
    """
    import torch
    from accelerate.hooks import remove_hook_from_submodules
    from bitsandbytes.nn import Linear4bit

    config, device, mesh = model.prepare_distribute_model(shares())
    packed = [module for module in model.modules() if isinstance(module, Linear4bit)]
    remove_hook_from_submodules(model)  # which keep it where it was loaded
    model.hf_device_map = {"": device}
    for module in packed:
        module.quant_state.to(device)
        # The numbers that it is packed in, which are sent as they are: the module has what they mean.
        numbers = module.weight.data.as_subclass(torch.Tensor)
        module.weight = torch.nn.Parameter(numbers, requires_grad=False)
    model.maybe_distribute_model(model, config, mesh)
    for module in packed:  # what peft asks of the weight for an adapter beside it
        module.weight.compress_statistics = module.quant_state.nested
        module.weight.quant_type = module.quant_state.quant_type


def draw_whole(model: Any, name: str) -> None:
    """Put a new layer, whole in each process, where the base has none to divide."""
    import torch

    share = getattr(model, name)
    with torch.device("meta"):
        layer = torch.nn.Linear(share.in_features, share.out_features, bias=share.bias is not None)
    layer = layer.to(share.weight.dtype).to_empty(device=share.weight.device)
    model._init_weights(layer)  # as transformers draws what a file has not
    setattr(model, name, layer)


@contextmanager
def beside_shares(model: Any) -> Iterator[None]:
    """Have an adapter be made beside a sharded model's weights: DoRA asks for the lengths of their rows."""
    if not is_sharded(model):
        yield
        return
    from torch.distributed.tensor.experimental import implicit_replication

    with implicit_replication():  # the adapter is the same everywhere
        yield


def gather_magnitudes(model: Any) -> None:
    """Give each process the whole of DoRA's vectors, of which it has reckoned those of its rows."""
    if not is_sharded(model):
        return
    import torch
    from torch.distributed.tensor import DTensor

    for name, share in list(model.named_parameters()):
        module, _, own = name.rpartition(".")
        if "lora_magnitude_vector" in name and isinstance(share, DTensor):
            whole = torch.nn.Parameter(share.full_tensor(), requires_grad=share.requires_grad)
            setattr(model.get_submodule(module), own, whole)


def put_away(model: Any) -> None:
    """Free what the last forward has left whole: before, parameters are not the shares that are trained."""
    if not is_sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered_state(optimizer: Any) -> dict[str, Any]:
    """The optimizer's state as that of one process, on the CPU, for the first one."""
    import torch
    from torch.distributed.tensor import DTensor

    def whole(value: Any) -> Any:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        return value.cpu() if isinstance(value, torch.Tensor) and together.is_first() else None

    state = optimizer.state_dict()
    return _with_state(state, lambda _, value: whole(value) if isinstance(value, torch.Tensor) else value)


def divided_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A process's share of the state of one, for its optimizer."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of = dict(zip(numbers, parameters, strict=True))
    return _with_state(state, lambda number, value: _share(value, of[number]))


def load_weights(model: Any, folder: Path) -> None:
    """Take a process's share of saved weights.

    Raises:
        KeyError: the folder holds a tensor that the model has not.
    """
    import torch

    put_away(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, saved in _saved(folder):
            parameters[name].copy_(_share(saved, parameters[name]))


def _saved(folder: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                yield name, tensors.get_tensor(name)


def _share(value: Any, of: Any) -> Any:
    """Of a whole tensor, what this process holds of a parameter of that shape; anything else as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(of, DTensor) or getattr(value, "shape", None) != of.shape:
        return value
    # Every process has read it: none has to send it.
    return distribute_tensor(value, of.device_mesh, of.placements, src_data_rank=None)


def _with_state(state: dict[str, Any], change: Callable[[int, Any], Any]) -> dict[str, Any]:
    """An optimizer's state with each of its values changed."""
    values = {
        number: {name: change(number, value) for name, value in of_one.items()}
        for number, of_one in state["state"].items()
    }
    return {**state, "state": values}
