"""The encoder, against transformers' own."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_gives_what_transformers_gives(folder: Path) -> None:
    import torch
    from transformers import BertModel

    from worker.steps.bert import Bert

    theirs = BertModel.from_pretrained(folder).eval()
    ours = Bert(folder, device="cpu", dtype=torch.float32)
    ids = torch.randint(0, 60, (3, 11))
    lengths = torch.tensor([11, 4, 7])
    mask = torch.arange(11) < lengths.unsqueeze(1)
    with torch.inference_mode():
        states = ours.encode(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(states[mask], expected[mask], atol=1e-5)
        unpadded = theirs(input_ids=ids).last_hidden_state
        assert torch.allclose(ours.encode(ids, None), unpadded, atol=1e-5)
        assert not torch.allclose(states[mask], unpadded[mask], atol=1e-2)
    assert ours.longest == 16


def test_in_bfloat16_it_gives_nearly_the_same(folder: Path) -> None:
    import torch

    from worker.steps.bert import Bert

    ids = torch.randint(0, 60, (3, 11))
    with torch.inference_mode():
        exact = Bert(folder, device="cpu", dtype=torch.float32).encode(ids, None)
        rounded = Bert(folder, device="cpu", dtype=torch.bfloat16).encode(ids, None).float()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.999
    assert not torch.equal(exact, rounded)


@pytest.mark.parametrize("change", [{"model_type": "roberta"}, {"hidden_act": "relu"}])
def test_refuses_what_it_would_compute_otherwise(folder: Path, change: dict[str, str]) -> None:
    import torch

    from worker.steps.bert import CONFIG, Bert

    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="holds no BERT"):
        Bert(folder, device="cpu", dtype=torch.float32)
