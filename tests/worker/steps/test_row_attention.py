"""Attention by rows against that of each row alone, and the models that it is kept from."""

from itertools import pairwise
from typing import Any

import pytest

from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES

pytestmark = WARNINGS_OF_LIBRARIES

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
LENGTHS = (7, 1, 12, 3)


def model_of(family: str, **config: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, f"{family}Config")(**{**SIZES, **config})
    return getattr(transformers, f"{family}ForCausalLM")(configuration).eval()


def tensors(*, heads: int = 4, shared: int = 2, width: int = 8) -> list[Any]:
    import torch

    dice = torch.Generator().manual_seed(0)
    return [torch.randn(1, each, sum(LENGTHS), width, generator=dice) for each in (heads, shared, shared)]


def starts() -> Any:
    import torch

    return torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)


class TestTakingUp:
    @pytest.mark.parametrize(
        ("family", "config"),
        [
            ("Llama", {}),
            ("Qwen3", {"head_dim": 16}),
            ("Mistral", {"sliding_window": 4}),
            ("Gemma", {"head_dim": 16}),
            ("Phi3", {}),
        ],
    )
    def test_is_for_families_that_compute_the_same(self, family, config):
        from worker.steps.row_attention import NAME, take_up

        model = model_of(family, **config)
        assert take_up(model) is None
        assert model.config._attn_implementation == NAME

    @pytest.mark.parametrize(
        ("family", "config", "why"),
        [
            ("Llama", {"attention_dropout": 0.1}, "drops a share"),
            ("Gemma2", {"head_dim": 16, "attn_logit_softcapping": 30.0}, "ValueError: .*softcap"),
        ],
    )
    def test_leaves_other_attention_alone(self, family, config, why):
        import re

        from worker.steps.row_attention import take_up

        model = model_of(family, **config)
        before = model.config._attn_implementation
        assert re.search(why, take_up(model) or "")
        assert model.config._attn_implementation == before

    def test_sees_when_a_model_loses_where_rows_begin(self):
        """Nothing else would: the loss goes down all the same."""
        from worker.steps.row_attention import take_up

        model = model_of("Llama")
        forward = model.model.forward

        def forgetful(*args: Any, **given: Any) -> Any:
            for name in ("cu_seq_lens_q", "cu_seq_lens_k", "position_ids"):
                given.pop(name, None)
            return forward(*args, **given)

        model.model.forward = forgetful
        assert "where rows see each other" in (take_up(model) or "")
        assert model.config._attn_implementation == "sdpa"

    def test_leaves_a_model_in_training_as_it_was(self):
        from worker.steps.row_attention import take_up

        model = model_of("Llama").train()
        take_up(model)
        assert model.training


class TestRows:
    @pytest.mark.parametrize("window", [None, 4])
    def test_have_the_gradients_that_each_has_alone(self, window):
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        from worker.steps.row_attention import row_attention

        given = [each.requires_grad_() for each in tensors()]
        found, _ = row_attention(None, *given, None, cu_seq_lens_q=starts(), sliding_window=window)
        found.square().sum().backward()
        gradients = [each.grad.clone() for each in given]
        for each in given:
            each.grad = None
        back = window or sum(LENGTHS)
        alone = [
            scaled_dot_product_attention(
                *(each[:, :, start:end] for each in given), enable_gqa=True,
                attn_mask=torch.ones(end - start, end - start, dtype=torch.bool).tril().triu(1 - back),
            )
            for start, end in pairwise(starts().tolist())
        ]  # fmt: skip
        expected = torch.cat(alone, dim=2).transpose(1, 2)
        assert torch.allclose(found, expected, atol=1e-6)
        expected.square().sum().backward()
        for gradient, each in zip(gradients, given, strict=True):
            assert torch.allclose(gradient, each.grad, atol=1e-5)

    def test_begin_where_their_positions_do(self):
        import torch

        from worker.steps.row_attention import row_attention

        positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
        by_positions, _ = row_attention(None, *tensors(), None, position_ids=positions)
        assert torch.equal(by_positions, row_attention(None, *tensors(), None, cu_seq_lens_q=starts())[0])

    def test_are_given_to_the_kernel_of_a_gpu_as_it_takes_them(self):
        """torch has this operation for GPUs alone: here with a kernel by torch's own plain attention."""
        import torch
        from torch.nn.attention import varlen
        from torch.nn.functional import scaled_dot_product_attention

        from worker.steps.row_attention import _by_varlen, _row_by_row

        @varlen._varlen_attn.register_kernel("cpu")
        def attend(q, k, v, begins, _, *args):
            longest, is_causal, scale, (back, ahead) = args[0], args[2], args[3], args[4]
            assert (longest, ahead) == (max(LENGTHS), 0)
            rows = []
            for start, end in pairwise(begins.tolist()):
                length = end - start
                mask = (
                    torch.ones(length, length, dtype=torch.bool).tril().triu(-back if back >= 0 else -length)
                )
                assert is_causal == (back < 0)
                row = [each[start:end].transpose(0, 1)[None] for each in (q, k, v)]
                attended = scaled_dot_product_attention(*row, attn_mask=mask, scale=scale, enable_gqa=True)
                rows.append(attended[0].transpose(0, 1))
            return torch.cat(rows), torch.zeros(q.size(1), q.size(0)), torch.zeros(2, dtype=torch.uint64)

        for window in (None, 4):
            given: dict[str, Any] = {"scaling": 0.3, "window": window}
            found = _by_varlen(*tensors(), starts(), longest=max(LENGTHS), **given)
            expected = _row_by_row(*tensors(), starts(), **given)
            # bfloat16 has 8 bits; values are sums of some that are near 1.
            assert torch.allclose(found, expected, atol=2**-6)
