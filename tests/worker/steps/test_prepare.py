import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, Unavailable
from worker.step import BaseWeights
from worker.steps import prepare
from worker.steps.base_model import count_parameters

ROWS = [(f"Where is pot {n}?", f"Pot {n} stands in the kiln.") for n in range(10)]
PARAMS = {"base_model": "micro", "training_file": "file-1", "name": "x"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS))
    return path


def read(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


@pytest.fixture
def prepared(steps, micro_model, data):
    def run(*, model: Any = micro_model, files: dict[str, Path] | None = None, **params: Any):
        return steps.run(
            prepare.run, "fine_tune", "prepare", params={**PARAMS, **params},
            files={"file-1": data, **(files or {})}, base=model,
        )  # fmt: skip

    return run


class TestRows:
    def test_trains_on_all_of_them_by_default(self, prepared):
        ran = prepared()
        assert ran.result["rows"] == {"train": 10, "validation": 0, "test": 0}
        assert read(ran.folder / "train.jsonl")[3] == [
            {"role": "user", "content": "Where is pot 3?"},
            {"role": "assistant", "content": "Pot 3 stands in the kiln."},
        ]

    def test_splits_evenly_by_seed(self, prepared):
        one, same, other = (prepared(train_size=0.6, seed=seed) for seed in (5, 5, 6))
        assert one.result["rows"] == {"train": 6, "validation": 2, "test": 2}
        assert read(one.folder / "test.jsonl") == read(same.folder / "test.jsonl")
        assert read(one.folder / "train.jsonl") != read(other.folder / "train.jsonl")

    def test_draws_and_keeps_a_seed(self, prepared):
        ran = prepared(seed=-1)
        assert ran.result["seed"] >= 0
        assert f"Drew the seed {ran.result['seed']}." in ran.events()

    def test_keeps_the_weights_of_answers_and_tells_of_them(self, prepared, tmp_path):
        turns = [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "Nowhere.", "weight": 0},
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "In the kiln.", "weight": 1},
        ]
        rows = tmp_path / "weighted.jsonl"
        rows.write_text(json.dumps({"messages": turns}) + "\n")
        ran = prepared(files={"file-1": rows})
        [read_back] = read(ran.folder / "train.jsonl")
        assert [turn.get("weight") for turn in read_back] == [None, "0", None, None]
        assert "1 answers have weight 0: they are read, and not learnt." in ran.events()

    def test_takes_a_validation_file(self, prepared, tmp_path):
        path = tmp_path / "held-out.jsonl"
        path.write_text('{"prompt": "a", "completion": "b"}\n')
        ran = prepared(validation_file="file-2", files={"file-2": path})
        assert ran.result["rows"] == {"train": 10, "validation": 1, "test": 0}

    def test_reads_a_validation_file_by_names_of_its_own(self, prepared, tmp_path):
        mapped, own = tmp_path / "mapped.csv", tmp_path / "own.jsonl"
        mapped.write_text("Frage,Antwort\nWo?,Hier.\n")
        own.write_text('{"instruction": "a", "input": "b", "output": "c"}\n')
        files = {"file-1": mapped, "file-2": own}
        columns = {"question": "Frage", "answer": "Antwort"}
        with pytest.raises(InvalidInput, match=r"own\.jsonl has no column 'Frage'") as caught:
            prepared(validation_file="file-2", files=files, columns=columns)
        assert caught.value.param == "validation_file"
        ran = prepared(
            validation_file="file-2", files=files, columns=columns,
            validation_format="input_output", validation_columns={"input": "instruction"},
        )  # fmt: skip
        assert read(ran.folder / "validation.jsonl") == [
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]
        ]

    def test_names_the_line_and_file_that_are_wrong(self, prepared, tmp_path):
        path = tmp_path / "held-out.jsonl"
        path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n')
        with pytest.raises(InvalidInput, match="Line 2 has the columns 'prompt', and not") as caught:
            prepared(validation_file="file-2", files={"file-2": path})
        assert caught.value.param == "validation_file"

    def test_tells_how_both_files_were_read(self, prepared, tmp_path):
        path = tmp_path / "held-out.csv"
        path.write_bytes("id;question;answer\n1;Wo?;Köln\n".encode("cp1252"))
        ran = prepared(validation_file="file-2", files={"file-2": path})
        assert "rows.csv is CSV with question,answer, in utf-8." in ran.events()
        assert "These columns are not used: id." in ran.events("warn")
        assert any("held-out.csv is not UTF-8" in event for event in ran.events("warn"))

    def test_tells_of_doubled_rows_and_unused_columns(self, prepared, tmp_path):
        path = tmp_path / "double.csv"
        path.write_text("id,question,answer\n1,a,b\n2,c,d\n3,a,b\n")
        ran = prepared(files={"file-1": path})
        assert "These columns are not used: id." in ran.events("warn")
        assert any("1 rows say what an earlier row says (lines 4)" in event for event in ran.events("warn"))


class TestSystemTurns:
    def test_gives_rows_the_asked_one(self, prepared):
        ran = prepared(system_prompt="Be brief.")
        assert read(ran.folder / "train.jsonl")[0][0] == {"role": "system", "content": "Be brief."}
        assert (ran.result["has_system_prompt"], ran.result["system_merged"]) == (True, False)

    def test_merges_it_when_told_to(self, prepared):
        ran = prepared(system_prompt="Be brief.", has_system_prompt=False)
        assert read(ran.folder / "train.jsonl")[0][0]["content"] == "Be brief.\n\nWhere is pot 0?"
        assert ran.result["system_merged"] is True
        assert any("10 rows was merged" in event for event in ran.events("warn"))

    def test_detects_a_template_without_the_role(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "no-system"))
        (model / "chat_template.jinja").write_text(
            "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
            "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
        )
        ran = prepared(model=model, system_prompt="Be brief.")
        assert ran.result["has_system_prompt"] is False
        assert ran.result["system_merged"] is True

    def test_refuses_to_lose_it_in_a_template_without_the_role(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "no-system"))
        (model / "chat_template.jinja").write_text(
            "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        )
        with pytest.raises(InvalidInput, match="shows no system turn") as caught:
            prepared(model=model, system_prompt="Be brief.", has_system_prompt=True)
        assert caught.value.param == "has_system_prompt"


class TestTokens:
    def test_counts_them_and_names_rows_that_would_be_cut(self, prepared, data):
        data.write_text(data.read_text() + "Long?," + "clay " * 200 + "\n")
        ran = prepared(max_length=64)
        assert ran.result["tokens"]["over_max_length"] == 1
        assert ran.result["tokens"]["longest"] > 200
        assert any("lines 12" in event and "will be cut" in event for event in ran.events("warn"))
        assert json.loads((ran.folder / "report.json").read_text())["cut_lines"]["train"] == {
            "rows.csv": [12]
        }

    def test_refuses_a_max_length_beyond_the_model(self, prepared):
        with pytest.raises(InvalidInput, match="more than the 128 tokens") as caught:
            prepared(max_length=129)
        assert caught.value.param == "max_length"

    def test_settles_what_auto_means(self, prepared):
        ran = prepared(learning_rate=0.5)
        chosen = ran.result["hyperparameters"]
        assert [name for name, value in chosen.items() if value == "auto"] == ["bits"]  # the device decides
        assert ran.result["hyperparameters"]["learning_rate"] == 0.5


class TestPrompt:
    ASKING_OTHERWISE = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant, think: {% endif %}"
    )

    def test_is_what_the_answer_follows_in_training(self, prepared):
        assert not any("does not follow the prompt" in event for event in prepared().events("warn"))

    def test_tells_when_it_is_another(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "otherwise"))
        (model / "chat_template.jinja").write_text(self.ASKING_OTHERWISE)
        ran = prepared(model=model)
        assert any("In 10 of the first 10 rows" in event for event in ran.events("warn"))


class TestBase:
    def test_uses_a_plain_template_for_a_model_without_one(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "plain"))
        (model / "chat_template.jinja").unlink()
        ran = prepared(model=model)
        assert ran.result["chat_template_source"] == "lathe:plain"
        assert any("brings no chat template" in event for event in ran.events("warn"))

    def test_refuses_weights_that_are_not_safetensors(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "pickled"))
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        with pytest.raises(InvalidInput, match="has no safetensors"):
            prepared(model=model)

    def test_refuses_a_model_that_needs_its_own_code(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "coded"))
        config = json.loads((model / "config.json").read_text())
        config |= {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"}}
        (model / "config.json").write_text(json.dumps(config))
        with pytest.raises(InvalidInput, match="never run here"):
            prepared(model=model)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"quantization_config": {"quant_method": "fp8"}}, r"quantised already \(fp8\)"),
            ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "of the type 't5'"),
        ],
    )
    def test_refuses_what_cannot_be_tuned_and_merged(self, prepared, micro_model, tmp_path, change, message):
        model = Path(shutil.copytree(micro_model, tmp_path / "other"))
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InvalidInput, match=message) as caught:
            prepared(model=model)
        assert caught.value.param == "base_model"

    def test_refuses_weights_of_which_a_part_is_missing(self, prepared, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "partial"))
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InvalidInput, match=r"model-2\.safetensors is missing"):
            prepared(model=model)

    def test_counts_weights_once_that_are_there_in_two_layouts(self, micro_model, tmp_path):
        model = Path(shutil.copytree(micro_model, tmp_path / "twice"))
        shutil.copyfile(model / "model.safetensors", model / "consolidated.safetensors")
        assert count_parameters(model) == count_parameters(micro_model)

    def test_a_full_disk_is_not_the_hubs_fault(self, prepared, monkeypatch):
        import huggingface_hub

        def no_space(*args: Any, **options: Any) -> str:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", no_space)
        with pytest.raises(OSError, match="No space left"):
            prepared(model=BaseWeights(name="a/b", source="hub", location="a/b"))

    def test_a_hub_that_is_away_is_worth_another_try(self, prepared):
        weights = BaseWeights(name="nobody/nothing", source="hub", location="nobody/nothing-like-this")
        with pytest.raises(Unavailable, match=r"cannot be reached.*LATHE_BASE_MODELS_DIR") as caught:
            prepared(model=weights)
        assert (caught.value.param, caught.value.code) == ("base_model", "hub_unavailable")
