"""Attention for rows that lie one after another in one sequence, so that no batch is padded.

transformers' own sdpa makes a mask of such a sequence, its length squared, most of which forbids. Here each
row attends within itself: by torch's varlen kernel on a GPU, on a CPU by a call for each row. Where rows
begin is what trl's collator says (`cu_seq_lens_q`). A model is given it only after it has computed with it
what it computes of a row alone: of a family that passes the rows' beginnings on otherwise, or has attention
of another kind, rows would see each other without a word.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "row_attention"
# What some families add to attention, and this one has not.
UNKNOWN = ("softcap", "s_aux", "position_bias")
# How configs call a share of attention that is dropped in training, which torch's varlen kernel has not.
DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")
PROOF_LENGTHS = (5, 9)  # tokens of the two rows that it is proven on
# Of what rows would see of each other: rounding to 16 bits is some hundredths of that.
PROOF_SHARE = 0.1
VARLEN_CAPABILITY = (8, 0)  # of a GPU: flash attention's kernels begin with Ampere


def row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **told: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally within each row, as transformers' `AttentionInterface` asks.

    Args:
        query, key, value: (1, heads, tokens, width); keys and values may have fewer heads.
        sliding_window: how many tokens a token sees, itself and those before it.
        told: with `cu_seq_lens_q`, int32 (rows + 1): where each row begins, and the end of the last.

    Returns:
        (1, tokens, heads, width), and no weights.
    Raises:
        ValueError: it would have to be another attention.
    """
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is not None or query.shape[0] != 1 or dropout or not causal:
        raise ValueError("rows in one sequence have no mask, no dropout and no look ahead")
    if query.shape[2] != key.shape[2] or any(told.get(name) is not None for name in UNKNOWN):
        raise ValueError(f"there is no cache here, and none of {', '.join(UNKNOWN)}")
    starts = told.get("cu_seq_lens_q")
    if starts is None:
        starts = _starts(told.get("position_ids"), query)
    if not query.is_cuda:
        return _row_by_row(query, key, value, starts, scaling=scaling, window=sliding_window), None
    longest = told.get("max_length_q") or int(starts.diff().max())
    attended = _by_varlen(query, key, value, starts, longest=longest, scaling=scaling, window=sliding_window)
    return attended, None


def _starts(position_ids: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
    """Where rows begin by their positions; without any, all is one row."""
    tokens = query.shape[2]
    if position_ids is None:
        return torch.tensor([0, tokens], dtype=torch.int32, device=query.device)
    if position_ids.ndim != 2 or position_ids.shape[0] != 1:
        raise ValueError("positions have one dimension here")
    begins = (position_ids[0] == 0).nonzero()[:, 0].to(torch.int32)
    return torch.cat([begins, begins.new_tensor([tokens])])


def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    lengths = starts.diff().tolist()
    # A split's way back is one copy; that of a slice is zeros for the whole sequence, for each row.
    rows = zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
    attended = []
    for q, k, v in rows:
        mask = _band(q, window)
        attended.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous()


def _band(row: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The mask of a sliding window, (tokens, tokens), where a row is longer than that."""
    length = row.shape[2]
    if window is None or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=row.device).tril().triu(1 - window)


def _by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    *,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Source: torch.nn.attention.varlen, which takes (tokens, heads, width) in 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    starts = starts.to(device=query.device, dtype=torch.int32)
    dtype = torch.bfloat16 if query.dtype == torch.float32 else query.dtype
    q, k, v = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))
    back = -1 if window is None else window - 1
    attended: Any = varlen_attn(
        q, k, v, starts, starts, longest, longest, scale=scaling, window_size=(back, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return attended[None].to(query.dtype)


def device_has_it(compute_dtype: str) -> bool:
    """Every CPU has; of GPUs, those with flash attention, in 16 bits."""
    if not torch.cuda.is_available():
        return True
    return compute_dtype == "bfloat16" and torch.cuda.get_device_capability() >= VARLEN_CAPABILITY


def take_up(model: Any) -> str | None:
    """Give the model attention by rows, if it computes with it what it computes of each row alone.

    Returns:
        why it keeps its own; None: it has it.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in DROPOUTS):
        return "it drops a share of its attention in training"
    AttentionInterface.register(NAME, row_attention)
    before, training = model.config._attn_implementation, model.training
    model.eval()
    try:
        why = _differs(model)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
    if why is not None:
        model.set_attn_implementation(before)
    model.train(training)
    return why


@torch.no_grad()
def _differs(model: Any) -> str | None:
    """Hold the logits of two rows in one sequence against those of each alone."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ids = [number % model.config.get_text_config().vocab_size for number in range(3, 200, 7)]
    end = PROOF_LENGTHS[0]
    first, second = ids[:end], ids[end : sum(PROOF_LENGTHS)]

    def logits(batch: dict[str, Any]) -> torch.Tensor:
        device = model.get_input_embeddings().weight.device
        given = {name: each.to(device) if hasattr(each, "to") else each for name, each in batch.items()}
        return model(**given, use_cache=False).logits[0].float()

    alone = logits({"input_ids": torch.tensor([second])})
    # As one row, the second sees the first, which is the fault to be told from; the first sees only itself.
    mixed = logits({"input_ids": torch.tensor([[*first, *second]])})
    model.set_attn_implementation(NAME)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{"input_ids": first}, {"input_ids": second}])
    batch.pop("labels")
    found = logits(batch)
    difference = float((found - torch.cat([mixed[:end], alone])).abs().max())
    fault = float((mixed[end:] - alone).abs().max())
    if difference <= PROOF_SHARE * fault:
        return None
    return f"its logits differ by {difference:.2g}, and by {fault:.2g} where rows see each other"
