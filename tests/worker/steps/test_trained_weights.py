"""What of a training the file's weights are held against."""

from pathlib import Path
from typing import Any

import pytest

from worker.steps.merging import merged_model, sixteen_bit_dtype
from worker.steps.trained_weights import sample_matrices, trained_weights

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
SMALLEST, LARGE = 3e-5, 0.02  # of an adapter's B; the base's weights are about 0.02


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights") / "base"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, size: float) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=size)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("size", [SMALLEST, LARGE])
def test_base_and_what_is_added_are_what_merging_makes(base: Path, tmp_path: Path, size: float) -> None:
    """An adapter of a careful training changes most weights by less than 16 bits can hold."""
    adapter = write_adapter(base, tmp_path / "adapter", size)
    merged = merged_model(base, adapter).state_dict()
    with trained_weights(base, adapter) as model:
        samples = sample_matrices(model, sixteen_bit_dtype(base))
    assert len(samples) == 14
    for sample in samples:
        assert sample.added is not None
        assert (sample.base + sample.added).equal(merged[f"{sample.name}.weight"][sample.rows].float())
    unchanged = sum(int((sample.added == 0).sum()) for sample in samples if sample.added is not None)
    everything = sum(sample.base.numel() for sample in samples)
    assert (unchanged / everything > 0.5) is (size == SMALLEST)
