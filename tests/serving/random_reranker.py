"""A GGUF file that llama-server reranks with, made in a moment: BERT with one layer of random weights.

How it orders means nothing, but it is the same at each run, and it depends on the question and the passage.
"""

import string
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

WIDTH, HEADS, FEED_FORWARD, CONTEXT = 32, 2, 64, 512
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_lowercase + string.digits + string.punctuation


def write_random_reranker(path: Path, *, seed: int = 0) -> None:
    """Write the model to `path`; each character is a token of its own."""
    # A word's first piece begins with ▁, where Hugging Face marks the pieces after it.
    tokens = [*SPECIAL, *("▁" + letter for letter in LETTERS), *LETTERS]
    writer = GGUFWriter(path, "bert")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.RANK)
    writer.add_token_type_count(2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    )
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    chance = np.random.default_rng(seed)
    for name, shape in _shapes(len(tokens)).items():
        values = chance.normal(scale=0.5, size=shape).astype(np.float32)
        writer.add_tensor(name, np.ones(shape, np.float32) if name.endswith("norm.weight") else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    dense = {
        **dict.fromkeys((f"blk.0.attn_{part}" for part in ("q", "k", "v", "output")), (WIDTH, WIDTH)),
        "blk.0.ffn_up": (FEED_FORWARD, WIDTH),
        "blk.0.ffn_down": (WIDTH, FEED_FORWARD),
        "cls": (WIDTH, WIDTH),
        "cls.output": (1, WIDTH),
    }
    norms = ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm")
    return {
        "token_embd.weight": (vocabulary, WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (CONTEXT, WIDTH),
        **{f"{name}.weight": shape for name, shape in dense.items()},
        **{f"{name}.bias": shape[:1] for name, shape in dense.items()},
        **{f"{name}.{part}": (WIDTH,) for name in norms for part in ("weight", "bias")},
    }
