"""Load a base model for training: NF4 with double quantisation, 8-bit, or 16-bit; CPU and CUDA alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput
from worker.step import Step
from worker.steps import together
from worker.steps.gptq import stored_config
from worker.steps.runtime import computes_in_bfloat16
from worker.steps.sharding import divide_packed, draw_whole, shares

if TYPE_CHECKING:
    import torch


def compute_dtype(wanted: str) -> "torch.dtype":
    """bfloat16 where the device computes in it, else float32 (float16 overflows in training)."""
    import torch

    return torch.float32 if wanted == "fp32" or not computes_in_bfloat16() else torch.bfloat16


NAMES_TOLD = 5
HEAD = "score"  # as transformers calls the layer that gives a number in place of tokens


def load_for_training(
    folder: Path, bits: int, dtype: "torch.dtype", *, judges: bool = False, sharded: bool = False
) -> Any:
    """Load a causal language model over all the devices this process sees.

    Args:
        folder: the model, in Hugging Face's layout, with safetensors.
        bits: 4 (NF4, double quantisation), 8 (LLM.int8) or 16; nothing to a base that is stored quantised.
        dtype: of what is not quantised, and of the arithmetic.
        judges: with a new head of one number, in place of the one that gives tokens.
    Raises:
        InvalidInput: no such head can be put on it, or its weights are not those that its config tells of.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    stored = stored_config(folder)
    skipped = [HEAD] if judges else None  # None: the output layer
    quantization = {
        4: lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # What is shared out has to be numbers that could learn, of the dtype that peft gives adapters.
            bnb_4bit_quant_storage=torch.float32 if sharded else torch.uint8,
            llm_int8_skip_modules=skipped,
        ),
        8: lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped),
        16: lambda: None,
    }[16 if stored is not None else bits]()
    if judges:
        _check_that_it_can_judge(folder)
    kind: Any = AutoModelForSequenceClassification if judges else AutoModelForCausalLM
    packed, drawn_from = sharded and bits == 4, torch.get_rng_state()
    model, loaded = kind.from_pretrained(
        folder,
        **({"num_labels": 1} if judges else {}),
        dtype=dtype,
        quantization_config=quantization if stored is None else stored,
        **_placed(sharded=sharded, packed=packed),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    if stored is None:
        _see_that_all_was_there(loaded)
    model.config.use_cache = False
    if packed:
        divide_packed(model)
    if sharded and judges:
        torch.set_rng_state(drawn_from)  # for all to begin with the head that one process begins with
        draw_whole(model, HEAD)
    if sharded:
        model._tp_size = None  # With that set, peft gathers the whole base to save an adapter.
    for module in model.modules():
        # On a CPU with AVX512-BF16, bitsandbytes repacks the weights at the first evaluation, and rounds
        # their scales: training would go on from another base than it began with.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _see_that_all_was_there(loaded: dict[str, Any]) -> None:
    """What a file has not, or in another shape, would begin as random numbers."""
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith(HEAD))
    others = sorted(str(each[0]) for each in loaded["mismatched_keys"])
    for names, how in ((missing, "are not in its files"), (others, "have another shape in its files")):
        if names:
            more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
            raise InvalidInput(
                f"The base model is not whole: of the weights that its config.json tells of, "
                f"{', '.join(names[:NAMES_TOLD])}{more} {how}. Fetch it again, or mend its config.json.",
                param="base_model",
            )


def _check_that_it_can_judge(folder: Path) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InvalidInput(
            f"transformers has no {config.model_type} model with a head of one number: train the reward "
            "model on another base.",
            param="base_model",
        )


def check_targets(model: Any, targets: list[str] | str) -> None:
    """See that each named module is there: peft would pass over a name as long as another one fits.

    Raises:
        InvalidInput: a name fits no layer that can have an adapter, or the output layer.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(targets, str):
        return
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    modules = model.named_modules()
    names = [name for name, module in modules if isinstance(module, kinds) or hasattr(module, "qweight")]
    # trl computes the loss from the output layer's own weights; where they are the embedding's too, a merge
    # into one would change the other.
    tied = model.config.get_text_config().tie_word_embeddings
    closed = [
        model.get_output_embeddings(),
        getattr(model, HEAD, None),
        *([model.get_input_embeddings()] if tied else []),
    ]
    open_names = [name for name in names if not any(model.get_submodule(name) is each for each in closed)]
    known = sorted({name.rpartition(".")[2] for name in open_names})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in open_names):
            raise InvalidInput(
                f"lora_target_modules names {target!r}, which this model has no adapter for: choose among "
                f"{', '.join(known)}.",
                param="lora_target_modules",
            )


def device_name(step: Step) -> str:
    """Name what this process trains on, and tell the user."""
    import torch

    if not torch.cuda.is_available():
        name = f"cpu ({step.input.settings.threads} threads)"
    else:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        name = ", ".join(f"cuda:{i} {text}" for i, text in enumerate(names))
    step.event(f"Training on {name}.", device=name)
    return name


def _placed(*, sharded: bool, packed: bool) -> dict[str, Any]:
    """Where weights go as they are loaded: as a whole to a device, or a share of them to each process's."""
    import torch

    if packed:  # as a whole, and divided after
        return {"device_map": {"": "cpu"}}
    return {"distributed_config": shares()} if sharded else {"device_map": _device_map(torch)}


def _device_map(torch: Any) -> Any:
    """One GPU holds all; several share the layers, unless as many processes train; without one, the CPU."""
    if not torch.cuda.is_available():
        return {"": "cpu"}
    if together.count() > 1:
        return {"": torch.cuda.current_device()}
    return {"": 0} if torch.cuda.device_count() == 1 else "auto"
