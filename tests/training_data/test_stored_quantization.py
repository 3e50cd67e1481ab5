"""What is known of weights that are stored by GPTQ or AWQ, by a config and the shapes of tensors alone."""

from typing import Any

import pytest

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from training_data.model_shape import read_shape
from training_data.stored_quantization import (
    StoredQuantization,
    check_fine_tune,
    check_merge_base,
    stored_quantization,
)

SHAPE = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
GPTQ = StoredQuantization("gptq", 4, 128)


def config(method: str = "gptq", **others: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128, **others}}


def params(**others: Any) -> FineTuneParams:
    given = {
        "base_model": "org/x-GPTQ",
        "training_file": "file-1",
        "name": "x",
        "merge_base": "org/x",
        **others,
    }
    return FineTuneParams.model_validate(given)


class TestReading:
    def test_gptq_and_awq_are_known(self) -> None:
        assert stored_quantization(config(bits=8)) == StoredQuantization("gptq", 8, 128)
        assert stored_quantization(config("awq")) == StoredQuantization("awq", 4, 128)
        assert str(GPTQ) == "GPTQ of 4 bits"

    @pytest.mark.parametrize(
        "given", [{}, {"quantization_config": None}, config("bitsandbytes"), config("fp8")]
    )
    def test_nothing_else_is(self, given: dict[str, Any]) -> None:
        assert stored_quantization(given) is None

    @pytest.mark.parametrize(
        ("method", "bits", "packed"),
        [("gptq", 4, (8, 96)), ("gptq", 8, (16, 96)), ("awq", 4, (64, 12))],
    )
    def test_shapes_are_those_of_the_weights_before(
        self, method: str, bits: int, packed: tuple[int, int]
    ) -> None:
        plain = {"model.embed_tokens.weight": (320, 64), "model.layers.0.self_attn.q_proj.weight": (96, 64)}
        stored = {
            "model.embed_tokens.weight": (320, 64),
            "model.layers.0.self_attn.q_proj.qweight": packed,
            "model.layers.0.self_attn.q_proj.qzeros": (1, 12),
            "model.layers.0.self_attn.q_proj.scales": (1, 96),
            "model.layers.0.self_attn.q_proj.g_idx": (64,),
        }
        shape = read_shape(config(method, bits=bits) | {"hidden_size": 64}, stored)
        assert shape == read_shape({"hidden_size": 64}, plain)
        assert shape.linear_names() == ["q_proj"]


class TestFineTune:
    def test_an_adapter_can_be_trained_with_its_own_bits(self) -> None:
        check_fine_tune(params(), "org/x-GPTQ", GPTQ)
        check_fine_tune(params(bits=4, use_rslora=True, method="dpo"), "org/x-GPTQ", GPTQ)

    @pytest.mark.parametrize(
        ("given", "field", "advice"),
        [
            ({"tuning": "full"}, "tuning", 'take "lora"'),
            ({"use_dora": True}, "use_dora", "leave it out"),
            ({"method": "reward"}, "method", "base of 16 bits"),
            ({"bits": 8}, "bits", "leave bits out, or give 4"),
            ({"bits": 16}, "bits", "leave bits out, or give 4"),
            ({"merge_base": None}, "merge_base", "name the model that it was made from"),
        ],
    )
    def test_what_does_not_go_with_it_names_field_and_fix(
        self, given: dict[str, Any], field: str, advice: str
    ) -> None:
        with pytest.raises(InvalidInput, match="org/x-GPTQ is a GPTQ of 4 bits") as refused:
            check_fine_tune(params(**given), "org/x-GPTQ", GPTQ)
        assert refused.value.param == field
        assert advice in refused.value.message

    def test_bits_that_nothing_trains_on_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="Those of 4 and of 8 bits"):
            check_fine_tune(params(), "org/x-GPTQ", StoredQuantization("gptq", 3, 128))

    def test_a_base_of_16_bits_is_merged_into_itself(self) -> None:
        with pytest.raises(InvalidInput, match="leave it out") as refused:
            check_fine_tune(params(), "org/x", None)
        assert refused.value.param == "merge_base"


class TestMergeBase:
    def check(self, **others: Any) -> None:
        check_merge_base(config() | SHAPE, {**SHAPE, **others}, name="org/x-GPTQ", merge_name="org/x")

    def test_has_the_same_shape(self) -> None:
        self.check(torch_dtype="bfloat16")
        with pytest.raises(InvalidInput, match="hidden_size 128 in place of 64") as refused:
            self.check(hidden_size=128)
        assert refused.value.param == "merge_base"

    def test_is_not_quantised_too(self) -> None:
        with pytest.raises(InvalidInput, match="org/x is quantised too"):
            self.check(**config())
