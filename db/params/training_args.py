"""`training_args`: the fields of trl's config that a fine-tune takes as they are, and why it takes no others.

transformers and trl, with torch behind them, are only in the workers; so their fields stand here as a table,
and a test holds it against the installed classes: each of their fields is in one of these three.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

# A type, the values to choose one of, or those that a list may hold.
Takes = str | tuple[str, ...] | frozenset[str]

OPTIMISERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "ademamix", "sgd", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
)  # fmt: skip
_PREFERENCE_LOSSES = frozenset(
    {
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
        "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    }
)  # fmt: skip

# Of every method.
TAKEN: dict[str, Takes] = {
    "lr_scheduler_type": SCHEDULES,
    "lr_scheduler_kwargs": "object or null",
    "optim": OPTIMISERS,
    "optim_args": "text or null",
    "weight_decay": "number",
    "adam_beta1": "share",
    "adam_beta2": "share",
    "adam_epsilon": "number",
    "max_grad_norm": "number",
    "label_smoothing_factor": "share",
    "average_tokens_across_devices": "bool",
    "tf32": "bool or null",
    "activation_checkpointing_kwargs": "object or null",
    "gradient_checkpointing_kwargs": "object or null",
    "torch_compile": "bool",
    "torch_compile_backend": "text or null",
    "torch_compile_mode": "text or null",
    "neftune_noise_alpha": "number or null",
    "torch_empty_cache_steps": "count or null",
    "logging_first_step": "bool",
    "per_device_eval_batch_size": "count",
    "eval_accumulation_steps": "count or null",
    "full_determinism": "bool",
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}
# Of one method besides.
_TRLS: dict[str, Takes] = {
    "router_aux_loss_coef": "number or null",
    "activation_offloading": "bool",
    "pad_to_multiple_of": "count or null",
}
_REFERENCED: dict[str, Takes] = {
    **_TRLS,
    "disable_dropout": "bool",
    "precompute_ref_log_probs": "bool",
    "precompute_ref_batch_size": "count or null",
}
_SUPERVISED: dict[str, Takes] = {**_TRLS, "loss_type": ("nll", "dft")}
TAKEN_BY: dict[str, dict[str, Takes]] = {
    "supervised": _SUPERVISED,
    "pretraining": _SUPERVISED,
    "dpo": {
        **_REFERENCED,
        "loss_type": _PREFERENCE_LOSSES,
        "loss_weights": "list of numbers or null",
        "ld_alpha": "number or null",
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        "f_alpha_divergence_coef": "number",
        "label_smoothing": "share",
        "use_weighting": "bool",
        "discopop_tau": "number",
    },
    "orpo": {"disable_dropout": "bool"},
    "kto": {
        **_REFERENCED,
        "loss_type": ("kto", "apo_zero_unpaired"),
        "desirable_weight": "number",
        "undesirable_weight": "number",
        # Batches belong together: how far the model has moved is estimated from each.
        "train_sampling_strategy": ("sequential",),
    },
    "reward": {
        "disable_dropout": "bool",
        "center_rewards_coefficient": "number or null",
        "activation_offloading": "bool",
        "pad_to_multiple_of": "count or null",
    },
    "grpo": {
        "router_aux_loss_coef": "number or null",
        "pad_to_multiple_of": "count or null",
        "disable_dropout": "bool",
        "top_p": "part",
        "top_k": "count",
        "min_p": "share or null",
        "repetition_penalty": "positive number",
        "loss_type": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        "epsilon": "number",
        "epsilon_high": "number or null",
        "delta": "number or null",
        "sapo_temperature_neg": "positive number",
        "sapo_temperature_pos": "positive number",
        "vespo_k_pos": "number",
        "vespo_lambda_pos": "number",
        "vespo_k_neg": "number",
        "vespo_lambda_neg": "number",
        "importance_sampling_level": ("token", "sequence"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "scale_rewards": ("group", "batch", "none"),
        "mask_truncated_completions": "bool",
        "top_entropy_quantile": "part",
        "entropy_coef": "number",
        "off_policy_mask_threshold": "positive number or null",
        "use_bias_correction_kl": "bool",
        # The answers to one prompt come together, whatever their lengths.
        "train_sampling_strategy": ("random",),
    },
}

# By another name, Lathe's own.
PARAM_OF = {
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "auto_find_batch_size": "effective_batch_size",
    "eval_steps": "eval_steps",
    "eval_strategy": "eval_steps",
    "eval_delay": "eval_steps",
    "eval_on_start": "eval_steps",
    "save_steps": "save_steps",
    "save_strategy": "save_steps",
    "save_total_limit": "keep_checkpoints",
    "load_best_model_at_end": "early_stopping_patience",
    "metric_for_best_model": "early_stopping_patience",
    "greater_is_better": "early_stopping_patience",
    "seed": "seed",
    "data_seed": "seed",
    "max_length": "max_length",
    "num_generations": "num_generations",
    "max_completion_length": "max_completion_length",
    "temperature": "temperature",
    "reward_weights": "reward_weights",
    "truncation_mode": "max_length",
    "packing": "packing",
    "packing_strategy": "packing",
    "eval_packing": "packing",
    "padding_free": "packing",
    "completion_only_loss": "assistant_only_loss",
    "assistant_only_loss": "assistant_only_loss",
    "beta": "beta",
}

_FILES = "it names a file or a folder, and a request names none"
_ADDRESSES = "it says where results or tokens go, which is for the operator to say"
_CODE = "it would load a model, or run code, that the job does not name"
_ANSWERS = "answers are written by the model as it is trained, in this process and without tools"
_LOGS = "metrics, events and logs of a job are always written"
_TYPES = "the type that is computed in is chosen by the device"
_DEVICES = "which devices and processes train is for the worker to say"
_ROWS = "rows come to the trainer as tokens that are made already, with none dropped"
_RESUME = "a training must go on, to the last bit, from any of its checkpoints"
_REFERENCE = "the reference is the model that the training starts from, and stays that"
_EVALUATION = "evaluations measure the loss and what the method has besides, and keep no outputs"
_EVALUATED_ONCE = "of each held-out prompt one answer is judged at an evaluation"

WHY_NOT = {
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "chat_template_path", "deepspeed"), _FILES),
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
            "hub_revision", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
            "trackio_static_space_id", "vllm_server_base_url", "vllm_server_host", "vllm_server_port",
            "vllm_server_timeout", "vllm_group_port", "log_completions_hub_repo",
        ),
        _ADDRESSES,
    ),
    **dict.fromkeys(
        ("model_init_kwargs", "trust_remote_code", "liger_kernel_config", "use_liger_kernel"), _CODE
    ),
    **dict.fromkeys(
        (
            "logging_strategy", "logging_steps", "logging_nan_inf_filter", "log_on_each_node", "log_level",
            "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen", "debug",
            "skip_memory_metrics", "log_completions", "log_multimodal", "num_completions_to_print",
            "log_unique_prompts",
        ),
        _LOGS,
    ),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "cast_lm_head_to_fp32"), _TYPES),
    **dict.fromkeys(
        (
            "use_cpu", "accelerator_config", "parallelism_config", "fsdp", "fsdp_config", "local_rank",
            "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
            "ddp_backend", "ddp_timeout", "save_on_each_node", "dataloader_pin_memory",
            "ds3_gather_for_generation",
        ),
        _DEVICES,
    ),
    **dict.fromkeys(
        (
            "dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers",
            "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
            "remove_unused_columns", "label_names", "length_column_name", "dataset_text_field",
            "dataset_kwargs", "dataset_num_proc", "shuffle_dataset", "eos_token", "pad_token", "use_cache",
            "padding_value", "is_encoder_decoder", "chat_template_kwargs",
        ),
        _ROWS,
    ),
    **dict.fromkeys(
        (
            "save_only_model", "enable_jit_checkpoint", "ignore_data_skip",
            "restore_callback_states_from_checkpoint", "do_train", "do_eval", "do_predict",
            "generation_batch_size", "steps_per_generation", "num_iterations", "use_adaptive_entropy",
            "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
        ),
        _RESUME,
    ),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    **dict.fromkeys(
        (
            "use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode",
            "vllm_structured_outputs_regex", "vllm_gpu_memory_utilization", "vllm_max_model_length",
            "vllm_tensor_parallel_size", "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode", "vllm_importance_sampling_cap",
            "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min", "generation_kwargs",
            "cache_implementation", "use_transformers_continuous_batching",
            "transformers_continuous_batching_config", "use_transformers_paged",
            "max_tool_calling_iterations",
        ),
        _ANSWERS,
    ),
    "num_generations_eval": _EVALUATED_ONCE,
    **dict.fromkeys(
        (
            "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches", "eval_use_gather_object",
            "prediction_loss_only", "generate_during_eval",
        ),
        _EVALUATION,
    ),
    "optim_target_modules": "no optimiser that is installed takes it",
}  # fmt: skip


def taken_by(method: str) -> dict[str, Takes]:
    """What `training_args` may hold for a method, by name."""
    return {**TAKEN, **TAKEN_BY[method]}


def check_training_args(method: str, given: Mapping[str, Any]) -> None:
    """See that each is a field that the method's trainer takes, with a value of its type.

    Raises:
        ValueError: one is not; the message says which param to give in its place, or why there is none.
    """
    taken = taken_by(method)
    for name, value in given.items():
        if name in taken:
            _check_value(name, value, taken[name])
        elif name in PARAM_OF:
            raise ValueError(f"training_args.{name} is set by the param {_param_of(name, method)}: give that")
        elif name in WHY_NOT:
            raise ValueError(f"training_args.{name} cannot be given: {WHY_NOT[name]}")
        else:
            known = ", ".join(sorted(taken))
            raise ValueError(
                f"training_args.{name} is no field of the method {method!r}.{_meant(name, method)} It takes: "
                f"{known}"
            )


def _meant(name: str, method: str) -> str:
    near = get_close_matches(name, [*taken_by(method), *PARAM_OF], n=1)
    if not near:
        return ""
    return f" Do you mean {f'the param {_param_of(near[0], method)}' if near[0] in PARAM_OF else near[0]}?"


def _param_of(name: str, method: str) -> str:
    # Where no answers are written, a row's whole length is all there is to set.
    return "max_length" if name == "max_completion_length" and method != "grpo" else PARAM_OF[name]


def _check_value(name: str, value: Any, takes: Takes) -> None:
    if isinstance(takes, tuple):
        if value not in takes:
            raise ValueError(f"training_args.{name} must be one of {', '.join(takes)}")
        return
    if isinstance(takes, frozenset):
        if not isinstance(value, list) or not value or not all(each in takes for each in value):
            raise ValueError(f"training_args.{name} must be a list of some of {', '.join(sorted(takes))}")
        return
    kind, _, optional = takes.partition(" or ")
    if not (value is None and optional == "null") and not _fits(value, kind):
        raise ValueError(f"training_args.{name} must be {_IN_WORDS[kind]}{' or null' if optional else ''}")


_IN_WORDS = {
    "bool": "true or false",
    "count": "a whole number of at least 1",
    "number": "a number of at least 0",
    "share": "a number from 0 to below 1",
    "part": "a number above 0, to 1",
    "positive number": "a number above 0",
    "text": "text",
    "object": "an object, each number in it finite",
    "list of numbers": "a list of numbers of at least 0",
}


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _fits(value: Any, kind: str) -> bool:
    if kind == "list of numbers":
        return isinstance(value, list) and bool(value) and all(_fits(each, "number") for each in value)
    if kind in ("bool", "text", "object"):
        return isinstance(value, {"bool": bool, "text": str, "object": dict}[kind]) and _is_finite(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "count":
        return isinstance(value, int) and value >= 1
    if kind in ("part", "positive number"):
        return 0 < value <= 1 if kind == "part" else 0 < value < float("inf")
    return 0 <= value < (1 if kind == "share" else float("inf"))
