"""A GGUF file that llama-server chats with, made in a moment: one layer of random weights.

What it says means nothing, but it says it at length: nothing has taught it to end.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

WIDTH, HEADS, FEED_FORWARD = 32, 2, 64
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def write_random_gguf(
    path: Path,
    *,
    context: int = 2048,
    seed: int = 0,
    more: Sequence[str] = (),
    template: str | None = TEMPLATE,
) -> None:
    """Write the model to `path`, whose context is `context` tokens of a byte each.

    Args:
        more: tokens besides, the first of the vocabulary.
        template: of chats; None: it brings none.
    """
    # Letters stand for bytes as in GPT-2's own vocabulary, where a space is written Ġ.
    tokens = [*more, *map(chr, range(33, 127)), "Ġ", "Ċ", "th", "<|end|>"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(tokens) - 1)
    if template is not None:
        writer.add_chat_template(template)
    for name, shape in _shapes(len(tokens)).items():
        values = np.random.default_rng([seed, len(name)]).normal(size=shape).astype(np.float32)
        writer.add_tensor(name, np.ones(shape, np.float32) if "norm" in name else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
    layer = {
        **square,
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }
    return {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (vocabulary, WIDTH),
        **{f"blk.0.{name}.weight": shape for name, shape in layer.items()},
    }
