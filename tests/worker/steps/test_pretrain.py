import json
import shutil
from pathlib import Path

import pytest

from db.errors import InvalidInput
from training_data.chat_templates import CHATML
from training_data.tokens import ChatTokenizer
from worker.steps import pretrain
from worker.steps.pretrain_text import PRE_TOKENIZER_PATTERN

MICRO = {"vocab_size": 320, "context_length": 128, "layers": 1, "heads": 2, "batch_size": 4, "steps": 4}
CHAT = [{"role": "user", "content": "What is a kiln?"}]


class TestModelFolder:
    def test_holds_what_transformers_loads(self, micro_model):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(micro_model)
        tokenizer = AutoTokenizer.from_pretrained(micro_model)
        assert model.config.model_type == "llama"
        assert model.dtype == torch.bfloat16
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.bos_token is None
        assert tokenizer.chat_template == CHATML
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    def test_answers_chat(self, micro_model):
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        tokenizer = ChatTokenizer(micro_model)
        ids = torch.tensor([tokenizer.encode_prompt(CHAT)])
        row = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
        assert row.shape[1] > ids.shape[1]

    def test_cuts_text_exactly_as_qwen2_does(self, micro_model):
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        split, byte_level = json.loads((micro_model / "tokenizer.json").read_text())["pre_tokenizer"][
            "pretokenizers"
        ]
        assert split["pattern"]["Regex"] == PRE_TOKENIZER_PATTERN == PRETOKENIZE_REGEX
        assert (split["behavior"], split["invert"]) == ("Isolated", False)
        assert (byte_level["add_prefix_space"], byte_level["use_regex"]) == (False, False)

    def test_registers_special_tokens_as_such(self, micro_model):
        added = json.loads((micro_model / "tokenizer.json").read_text())["added_tokens"]
        assert [(token["content"], token["special"]) for token in added] == [
            ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True),
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["Köln 日本語 🙂\t\n  x", "e\u0301", "it's  1234", "\x00\ufeff"])
    def test_tokenizer_loses_nothing(self, micro_model, text):
        tokenizer = ChatTokenizer(micro_model)
        assert tokenizer.tokenizer.decode(tokenizer.encode_text(text)) == text


class TestRun:
    def test_says_how_it_learns(self, micro_pretrain):
        losses = [m["values"]["loss"] for m in micro_pretrain.of_type("metrics")]
        assert losses[-1] < losses[0]
        assert micro_pretrain.of_type("progress")[-1]["done"] == 8
        assert [e for e in micro_pretrain.events() if e.startswith(("Step 4: The", "Step 8: The"))]
        assert micro_pretrain.of_type("metrics")[-1]["values"]["tokens_per_second"] > 0

    def test_returns_what_it_made(self, micro_pretrain):
        result = micro_pretrain.result
        assert result["cached"] is False
        assert result["context_length"] == 128
        assert result["tokens"] == 8 * 4 * 128
        assert result["parameters"] > 500_000

    def test_takes_weights_of_the_same_recipe_from_the_cache(self, steps, potters_text):
        params = {"training_file": "file-1", **MICRO}
        files = {"file-1": potters_text}
        first = steps.run(pretrain.run, "pretrain", "train", params={"name": "a", **params}, files=files)
        again = steps.run(pretrain.run, "pretrain", "train", params={"name": "b", **params}, files=files)
        assert again.result["cached"] is True
        assert again.result["recipe"] == first.result["recipe"]
        assert any("in the cache" in event for event in again.events())
        weights = [ran.folder / "model" / "model.safetensors" for ran in (first, again)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_makes_damaged_weights_again(self, steps, potters_text):
        params = {"name": "a", "training_file": "file-1", **MICRO}
        files = {"file-1": potters_text}
        first = steps.run(pretrain.run, "pretrain", "train", params=params, files=files)
        cached = steps.root / "cache" / "weights" / first.result["recipe"] / "model.safetensors"
        cached.write_bytes(cached.read_bytes()[:-1] + b"\xff")
        again = steps.run(pretrain.run, "pretrain", "train", params=params, files=files)
        assert again.result["cached"] is False
        assert any("damaged" in event for event in again.events("warn"))

    def test_makes_other_weights_of_another_seed(self, steps, potters_text, micro_pretrain):
        params = {"name": "a", "training_file": "file-1", **MICRO, "seed": -1}
        ran = steps.run(pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text})
        assert ran.result["seed"] >= 0
        assert ran.result["recipe"] != micro_pretrain.result["recipe"]

    def test_goes_on_from_another_model(self, steps, potters_text, micro_pretrain, micro_model):
        params = {"name": "a", "training_file": "file-1", "start_from": "micro", **MICRO}
        ran = steps.run(
            pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text}, base=micro_model
        )
        first_loss = ran.of_type("metrics")[0]["values"]["loss"]
        assert first_loss < micro_pretrain.of_type("metrics")[0]["values"]["loss"]
        assert (ran.folder / "model" / "tokenizer.json").read_bytes() == (
            micro_model / "tokenizer.json"
        ).read_bytes()

    def test_takes_the_tokenizer_of_another_model(self, steps, potters_text, micro_model):
        params = {"name": "a", "training_file": "file-1", "tokenizer": "micro", **MICRO}
        ran = steps.run(
            pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text},
            tokenizer=micro_model,
        )  # fmt: skip
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert (ran.folder / "model" / name).read_bytes() == (micro_model / name).read_bytes()

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"short", "holds 5 characters"), (b"a\n\xff" + b"x" * 3000, r"not UTF-8 text \(line 2\)")],
    )
    def test_refuses_text_it_cannot_learn_from(self, steps, tmp_path, content, message):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        params = {"name": "a", "training_file": "file-1", **MICRO}
        with pytest.raises(InvalidInput, match=message):
            steps.run(pretrain.run, "pretrain", "train", params=params, files={"file-1": path})

    def test_tells_what_another_model_has_settled(self, steps, potters_text, micro_model):
        params = {**MICRO, "name": "next", "training_file": "file-1", "start_from": "micro", "layers": 2}
        ran = steps.run(
            pretrain.run, "pretrain", "train", params={**params, "hidden_size": 512, "steps": 1},
            files={"file-1": potters_text}, base=micro_model,
        )  # fmt: skip
        [told] = [event for event in ran.events() if "settles some params" in event]
        assert "hidden_size is 256" in told
        assert "layers is 1" in told

    def test_stops_when_the_loss_is_no_number(self, steps, potters_text, micro_model, tmp_path):
        from safetensors.torch import load_file, save_file

        broken = Path(shutil.copytree(micro_model, tmp_path / "broken"))
        weights = {name: t * float("nan") for name, t in load_file(broken / "model.safetensors").items()}
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        params = {"name": "a", "training_file": "file-1", "start_from": "micro", **MICRO}
        with pytest.raises(InvalidInput, match="diverged at step 1") as caught:
            steps.run(
                pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text}, base=broken
            )
        assert caught.value.param == "learning_rate"

    def test_refuses_a_context_longer_than_the_text(self, steps, tmp_path):
        path = Path(shutil.copy(__file__, tmp_path / "text.txt"))
        params = {"name": "a", "training_file": "file-1", **MICRO, "context_length": 131_072}
        with pytest.raises(InvalidInput, match="lower it, or give more text"):
            steps.run(pretrain.run, "pretrain", "train", params=params, files={"file-1": path})
