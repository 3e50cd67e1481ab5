"""Sizes of small open models of Qwen2's family, embedding and output tied; heads are 64 wide."""

from dataclasses import dataclass

VOCABULARY = 32_000


@dataclass(frozen=True)
class Shape:
    """One size of model."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    kv_heads: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Of each layer, (rows, columns)."""
        kv = 64 * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def weights(self) -> int:
        """How many there are, but for norms and biases."""
        layer = sum(rows * columns for rows, columns in self.matrices.values())
        return VOCABULARY * self.hidden + self.layers * layer


SHAPES = (
    Shape("0.1 B", 768, 2048, 12, 4),
    Shape("0.5 B", 1280, 5120, 20, 4),
    Shape("1.3 B", 2048, 7168, 23, 8),
)
