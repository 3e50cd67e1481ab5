"""Logits that are held as a whole: the loss, the gradients and the figures of trl's tiles."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training_data.footprint import holds_whole_logits, tiles_bytes, whole_logits_bytes
from worker.steps.base_model import shape_of

IGNORED = -100
CHOSEN = {"method": "supervised", "batch_size": 2, "max_length": 64, "compute_dtype": "float32"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def ran(folder: Path, labels: torch.Tensor, *, whole: bool, tuned: bool) -> tuple[Any, torch.Tensor]:
    """What the fused forward tells, and the gradient of the embedding or of the last norm."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from worker.steps.whole_logits import hold_whole_logits

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(tuned)
    learning = model.get_input_embeddings().weight if tuned else model.model.norm.weight.requires_grad_(True)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    if whole:
        assert hold_whole_logits(model)
    told = model(input_ids=labels.clamp(min=0), labels=labels, fused_lm_head=True)
    # Other weights of rows and tokens than a mean, as preferences have them.
    weighed = told.log_probs * torch.linspace(0.5, 2, told.log_probs.numel()).view(told.log_probs.shape)
    (told.loss + weighed.sum()).backward()
    return told, learning.grad


@pytest.mark.parametrize("tuned", [True, False])
def test_come_to_what_tiles_do(micro_model: Path, tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training_data.footprint.BLOCK_BYTES", 5 * 4 * 320)  # five rows at a time
    torch.manual_seed(1)
    labels = torch.randint(320, (2, 24))
    labels[0, :9] = labels[1, 15:] = IGNORED
    (whole, of_whole), (tiles, of_tiles) = (
        ran(micro_model, labels, whole=each, tuned=tuned) for each in (True, False)
    )
    assert float(whole.loss) == pytest.approx(float(tiles.loss), rel=1e-6)
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(whole, name), getattr(tiles, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.is_top1, tiles.is_top1)
    assert torch.equal(whole.label_mask, tiles.label_mask)
    assert float((of_whole - of_tiles).norm() / of_tiles.norm()) < 1e-5


def test_are_taken_where_they_need_no_more_than_tiles(micro_model: Path) -> None:
    shape = shape_of(micro_model)
    assert holds_whole_logits(shape, CHOSEN, 64)
    assert whole_logits_bytes(shape, CHOSEN, 64) <= tiles_bytes(shape, CHOSEN, 64, "cpu")
    # Tiles never grow beyond so many tokens; and of their own answers nothing is known of beforehand.
    assert not holds_whole_logits(shape, {**CHOSEN, "batch_size": 4096, "max_length": 4096}, 4096)
    assert not holds_whole_logits(shape, {**CHOSEN, "method": "grpo"}, 64)
