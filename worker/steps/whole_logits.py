"""The output layer on a CPU: its logits held as a whole, and no loss computed twice.

trl's fused output layer goes over the vocabulary in tiles, for GPUs that have no room for more: each tile is
computed again for its gradient, and in float32. Here the logits of the tokens that are learnt, in what the
model computes in, are kept from the forward pass and become their own gradient, a few rows at a time.
"""

import functools
import inspect
import types
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import FusedCausalLMOutput

from training_data.footprint import whole_logits_rows
from worker.steps.method_rows import IGNORED

ROUTERS = "output_router_logits"


def hold_whole_logits(model: Any) -> bool:
    """Have a model that trl gave its fused output layer hold whole logits in its place.

    Returns:
        whether that could be done: its forward pass has to be able to leave out positions.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    written = type(inner).forward
    routes = getattr(inner.config.get_text_config(), ROUTERS, False)
    if "logits_to_keep" not in inspect.signature(written).parameters or routes:
        return False
    in_tiles = inner.forward

    @functools.wraps(written)  # `generate` holds what it is given against the signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None or kwargs.get(ROUTERS):
            given = {
                "labels": labels,
                "num_items_in_batch": num_items_in_batch,
                "fused_lm_head": fused_lm_head,
            }
            return in_tiles(
                *args, **kwargs, **{name: value for name, value in given.items() if value is not None}
            )
        learnt = labels[:, 1:] != IGNORED
        kept = learnt.any(dim=0).nonzero()[:, 0]
        logits = in_tiles(*args, **{**kwargs, "use_cache": False}, logits_to_keep=kept).logits
        targets = labels[:, 1:][:, kept].clamp(min=0)
        told = LogProbabilities.apply(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        log_probs, entropy, mean_logits, is_top1 = (
            each.new_zeros(learnt.shape).index_copy(1, kept, each.view(targets.shape)).masked_fill(~learnt, 0)
            for each in told
        )
        count = learnt.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / count,
            log_probs=log_probs,
            entropy=entropy,
            mean_logits=mean_logits,
            is_top1=is_top1,
            label_mask=learnt,
        )

    inner.forward = types.MethodType(forward, inner)
    return True


class LogProbabilities(torch.autograd.Function):
    """Log probabilities of one token of each row of logits, in float32."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            logits: (tokens, vocabulary); overwritten by their gradient.
            targets: (tokens,).

        Returns:
            log probabilities (tokens,); without gradients the rows' entropy, their mean logit, and whether
            the target is the likeliest.
        """
        log_z, chosen, entropy, mean = (torch.empty(len(logits), dtype=torch.float32) for _ in range(4))
        is_top1 = torch.empty(len(logits), dtype=torch.bool)
        rows = whole_logits_rows(logits.shape[-1])
        for at in (slice(start, start + rows) for start in range(0, len(logits), rows)):
            z = logits[at].float()
            log_z[at] = torch.logsumexp(z, dim=-1)
            chosen[at] = z.gather(-1, targets[at, None])[:, 0]
            mean[at] = z.mean(dim=-1)
            is_top1[at] = z.argmax(dim=-1) == targets[at]
            entropy[at] = log_z[at] - (z * (z - log_z[at, None]).exp_()).sum(dim=-1)
        ctx.save_for_backward(logits, targets, log_z)
        ctx.mark_non_differentiable(entropy, mean, is_top1)
        return chosen - log_z, entropy, mean, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """d log p(target) / d logit = 1 where it is the target's, less its probability."""
        logits, targets, log_z = ctx.saved_tensors
        wanted = gradients[0].float()
        rows = whole_logits_rows(logits.shape[-1])
        for at in (slice(start, start + rows) for start in range(0, len(logits), rows)):
            found = (logits[at].float() - log_z[at, None]).exp_().mul_(-wanted[at, None])
            found.scatter_add_(-1, targets[at, None], wanted[at, None])
            logits[at] = found
        return logits, None
