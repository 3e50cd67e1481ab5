from typing import Any

import pytest
import typer

from cli.flags import PANELS, check_values, flags_of, read_values, spelling_of, understand
from db.kinds import PARAMS
from db.params.fine_tune import FineTuneParams
from db.params.pretrain import PretrainParams
from tests.cli.conftest import Run

# Of kinds whose command is called otherwise.
COMMANDS = {"inspect": ("data", "inspect")}
REQUIRED = {"base_model": "tiny", "training_file": "file-0", "name": "faq"}


class TestPanels:
    @pytest.mark.parametrize("kind", PANELS)
    def test_group_every_parameter_once(self, kind: str) -> None:
        grouped = [name for names in PANELS[kind].values() for name in names]
        assert sorted(grouped) == sorted(PARAMS[kind].model_fields)

    @pytest.mark.parametrize("kind", PANELS)
    def test_help_shows_each_group_and_flag(self, kind: str, run: Run) -> None:
        shown = run(*COMMANDS.get(kind, (kind.replace("_", "-"),)), "--help").out
        for panel, names in PANELS[kind].items():
            assert panel in shown
            for name in names:
                assert f"{flags_of(PARAMS[kind])[name].spelling} " in shown

    def test_every_flag_says_what_it_is(self) -> None:
        for model in map(PARAMS.__getitem__, PANELS):
            assert all(flag.help for flag in flags_of(model).values())

    def test_a_long_choice_is_named_by_the_help(self) -> None:
        flag = flags_of(FineTuneParams)["format"]
        assert flag.metavar == "name|auto"
        assert all(choice in flag.help for choice in flag.choices)

    def test_help_fits_eighty_columns(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        shown = run("fine-tune", "--help").out
        assert max(map(len, shown.splitlines())) <= 80
        assert all(f"{flag.spelling} " in shown for flag in flags_of(FineTuneParams).values())


class TestReading:
    @pytest.mark.parametrize(
        ("name", "typed", "read"),
        [
            ("learning_rate", "2e-4", 2e-4),
            ("learning_rate", "AUTO", "auto"),
            ("lora_rank", "8", 8),
            ("bits", "16", 16),
            ("lora_bias", "lora_only", "lora_only"),
            ("packing", "yes", True),
            ("packing", "auto", "auto"),
            ("assistant_only_loss", "false", False),
            ("system_prompt", "auto", "auto"),
            ("quantizations", ["q4_k_m,Q8_0", "f16"], ["Q4_K_M", "Q8_0", "F16"]),
            ("lora_target_modules", ["q_proj, v_proj"], ["q_proj", "v_proj"]),
            ("lora_target_modules", ["auto"], "auto"),
        ],
    )
    def test_makes_of_what_is_typed_what_the_api_takes(self, name: str, typed: Any, read: Any) -> None:
        values = read_values(FineTuneParams, {name: typed})
        assert values == {name: read}
        check_values(FineTuneParams, {**REQUIRED, **values})

    @pytest.mark.parametrize(
        ("name", "typed", "told"),
        [
            ("learning_rate", "fast", "'fast' is not a number or auto"),
            ("max_steps", "auto", "'auto' is not a whole number"),
            ("lora_rank", "1.5", "'1.5' is not a whole number or auto"),
            ("bits", "5", "'5' is none of 4, 8, 16"),
            ("quantizations", ["Q9"], "'Q9' is none of F16"),
            ("packing", "perhaps", "is not true or false or auto"),
        ],
    )
    def test_refuses_what_a_parameter_does_not_take(self, name: str, typed: Any, told: str) -> None:
        with pytest.raises(typer.BadParameter, match=told) as refusal:
            read_values(FineTuneParams, {name: typed})
        assert refusal.value.param_hint == f"--{name.replace('_', '-')}"

    def test_leaves_out_what_was_not_given(self) -> None:
        assert read_values(FineTuneParams, {"epochs": None, "quantizations": [], "seed": "-1"}) == {
            "seed": -1
        }


class TestChecking:
    @pytest.mark.parametrize(
        ("values", "flag", "told"),
        [
            ({"learning_rate": -1.0}, "--learning-rate", "greater than 0"),
            ({"lora_rank": 0}, "--lora-rank", "greater than or equal to 1"),
            ({"name": "../faq"}, "--name", "does not fit"),
            ({"base_model": ""}, "--base", "at least 1 character"),
        ],
    )
    def test_names_the_flag(self, values: dict[str, Any], flag: str, told: str) -> None:
        with pytest.raises(typer.BadParameter, match=told) as refusal:
            check_values(FineTuneParams, {**REQUIRED, **values})
        assert refusal.value.param_hint == flag

    def test_tells_rules_over_several_parameters(self) -> None:
        with pytest.raises(typer.BadParameter, match="exclude each other"):
            check_values(FineTuneParams, {**REQUIRED, "validation_file": "v.csv", "train_size": 0.5})

    def test_lets_a_path_stand_for_a_file(self) -> None:
        check_values(PretrainParams, {"name": "x", "training_file": "folder/my text.txt"})


class TestSpelling:
    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            ("base-model", "base"),
            ("training_file", "data"),
            ("validation-file", "validation"),
            ("learning_rate", "learning-rate"),
            ("gradient-accumulation-steps", "gradient-accumulation"),
            ("num_train_epochs", "epochs"),
            ("model-name-or-path", "base"),
            ("lora_r", "lora-rank"),
            ("watch", "watch"),
        ],
    )
    def test_understands_the_parameters_own_name(self, typed: str, meant: str) -> None:
        assert understand(typed) == meant

    def test_finds_the_flag_of_a_field_that_the_api_names(self) -> None:
        assert spelling_of(FineTuneParams, "base_model") == "--base"
        assert spelling_of(FineTuneParams, "quantizations[1]") == "--quantizations"
        assert spelling_of(FineTuneParams, "kind") is None
        assert spelling_of(FineTuneParams, None) is None
