"""Bases that are stored by GPTQ, as far as no gptqmodel is needed: what is refused, kept and judged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.step import BaseWeights
from worker.steps import estimate_quantize, prepare, publish, pull, quantize, verify_pulled
from worker.steps.base_model import fetch_base, shape_of
from worker.steps.calibration import HELD_OUT_EVERY, read_calibration
from worker.steps.reference_difference import between
from worker.steps.teacher_forcing import Difference, ForcedRow, Reference
from worker.steps.trainer_answers import judge_beside_trainer

GPU = {"host": "h", "ram_bytes": 64 * 10**9, "device": "GPU-X", "device_bytes": 8 * 10**9, "devices": 1}
PARAMS = {"base_model": "packed", "training_file": "file-1", "name": "x", "merge_base": "micro"}


@pytest.fixture(scope="module")
def packed(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model in the shapes of GPTQ: as `config.json` and the tensors' headers tell it."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("packed") / "model"
    shutil.copytree(micro_model, folder)
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".layers." not in name or "norm" in name:
            tensors[name] = tensor
            continue
        (outputs, inputs), module = tensor.shape, name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
        tensors[f"{module}.qzeros"] = torch.zeros(inputs // 32, outputs // 8, dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(inputs // 32, outputs, dtype=torch.float16)
        tensors[f"{module}.g_idx"] = torch.zeros(inputs, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    stored = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    write_json(folder / "config.json", read_json(folder / "config.json") | {"quantization_config": stored})
    return folder


def estimated(
    steps, base, data, machine=GPU, *, run=estimate_quantize.run, kind="estimate_quantize", **given
):
    """What the rows of `data` make of quantising a base there."""
    params = {"base_model": "micro", "name": "x", "input_file": "file-1", "max_rows": 20}
    step = "estimate" if kind == "estimate_quantize" else kind
    return steps.run(
        run, kind, step, params=params, base=base, files={"file-1": data}, machines=[machine], **given
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"Where is pot {n}?,Pot {n} stands in the kiln.\n" for n in range(40)]
    path.write_text("question,answer\n" + "".join(rows))
    return path


@pytest.fixture
def prepared(steps, packed, micro_model, data):
    def run(**params: Any):
        base = BaseWeights(
            "packed", "folder", str(packed), merge_base=BaseWeights("micro", "folder", str(micro_model))
        )
        given = {**PARAMS, **params}
        return steps.run(prepare.run, "fine_tune", "prepare", params=given, files={"file-1": data}, base=base)

    return run


@pytest.fixture
def installed(monkeypatch):
    """A machine that has the extra, and none that has not: of packages only their presence is asked here."""

    def there(is_there: bool) -> None:
        monkeypatch.setattr("worker.steps.gptq.find_spec", lambda name: object() if is_there else None)

    return there


class TestPrepare:
    def test_takes_bits_and_layers_from_the_base(self, prepared, installed, micro_model):
        installed(True)
        ran = prepared(preset="best")
        chosen = ran.result["hyperparameters"]
        assert chosen["bits"] == 4
        assert chosen["lora_target_modules"] == shape_of(micro_model).linear_names()
        assert ran.result["estimate"]["model"]["parameters"] == shape_of(micro_model).parameters
        assert (
            "The adapter is trained on packed, a GPTQ of 4 bits, and will be merged into micro."
            in ran.events()
        )

    def test_without_the_extra_says_what_to_install(self, prepared, installed):
        installed(False)
        with pytest.raises(
            InvalidInput, match=r"pip install --no-build-isolation -e '\.\[gptq\]'"
        ) as refused:
            prepared()
        assert (refused.value.param, refused.value.code) == ("base_model", "extra_missing")

    @pytest.mark.parametrize(
        ("params", "field"), [({"merge_base": None}, "merge_base"), ({"bits": 8}, "bits")]
    )
    def test_refuses_what_cannot_be_trained_or_served(self, prepared, params, field):
        with pytest.raises(InvalidInput) as refused:
            prepared(**params)
        assert refused.value.param == field

    def test_what_needs_16_bits_takes_no_such_base(self, packed):
        with pytest.raises(InvalidInput, match="only 16-bit weights"):
            fetch_base(BaseWeights("packed", "folder", str(packed)), step=None)  # type: ignore[arg-type]


def test_both_bases_reach_the_step(packed, micro_model):
    merge_base = BaseWeights("org/x", "hub", "org/x", "abc")
    base = BaseWeights("packed", "folder", str(packed), merge_base=merge_base)
    assert BaseWeights.from_dict(json.loads(json.dumps(base, default=vars))) == base


class TestPull:
    def test_keeps_it_as_a_base_and_serves_nothing(self, steps, packed, tmp_path):
        archive = shutil.make_archive(str(tmp_path / "packed"), "zip", packed)
        params = {"name": "packed", "source": {"file": "file-1"}}
        pulled = steps.run(pull.run, "pull", "pull", params=params, files={"file-1": Path(archive)})
        assert (pulled.result["files"], pulled.result["stored"]["bits"]) == ([], 4)
        assert (pulled.folder / "model" / "model.safetensors").is_file()
        verified = steps.run(verify_pulled.run, "pull", "verify", params=params, earlier={"pull": pulled})
        earlier = {"pull": pulled, "verify": verified}
        published = steps.run(publish.run, "pull", "publish", params=params, earlier=earlier)
        assert (published.result["model"], published.result["files"]) == ("packed", [])
        assert "Nothing of packed is served" in published.events()[0]


class TestQuantize:
    def test_without_the_extra_says_what_to_install(self, steps, installed, micro_model):
        installed(False)
        with pytest.raises(InvalidInput, match="gptqmodel and optimum"):
            steps.run(
                quantize.run,
                "quantize",
                "quantize",
                params={"base_model": "micro", "name": "x"},
                base=micro_model,
            )

    def test_is_estimated_layer_by_layer(self, steps, micro_model, data):
        ran = estimated(steps, micro_model, data)
        told = ran.result
        shape = shape_of(micro_model)
        assert told["model"]["parameters"] == shape.parameters
        assert told["data"]["rows"] == 18
        for where in ("ram", "device"):
            memory = told["memory"][where]
            assert sum(memory["parts"].values()) == memory["bytes"]
        assert told["memory"]["ram"]["parts"]["weights"] == 2 * shape.parameters
        assert told["memory"]["device"]["parts"]["tokens"] == 4 * told["data"]["tokens"] * shape.hidden
        assert sum(told["time"]["steps"].values()) == pytest.approx(told["time"]["seconds"], abs=0.2)
        assert set(told["how"]) == {"data", "memory", "disk", "time"}
        assert (told["fits"], told["refusal"], told["own_error"]["jobs"]) == (True, None, 0)

    def test_learns_from_those_that_have_finished(self, steps, micro_model, data):
        first = estimated(steps, micro_model, data).result
        peak = int(1.5 * first["foretold"]["arithmetic_bytes"])
        made = {"estimate": first, "peak_memory_bytes": peak}
        job = {"device": "GPU-X", "devices": 1, "seconds": {"quantize": 125.0, "verify": 15.0}}
        told = estimated(steps, micro_model, data, finished=[{**job, "results": {"quantize": made}}]).result
        assert told["memory"]["correction"] == 1.5
        assert told["memory"]["device"]["bytes"] == pytest.approx(peak, abs=1)
        assert told["time"]["steps"]["quantize"] == pytest.approx(125.0)
        assert "took" in told["own_error"]["text"]

    def test_what_cannot_fit_is_refused_before_it_begins(self, steps, micro_model, data, installed):
        installed(True)
        small = {"host": "small", "ram_bytes": 100 * 10**6}
        refusal = estimated(steps, micro_model, data, small).result["refusal"]
        assert (refusal["code"], refusal["param"]) == ("does_not_fit", "base_model")
        assert "small's memory has 100 MB. It holds the whole model in 16 bits" in refusal["message"]
        with pytest.raises(InvalidInput) as refused:
            estimated(steps, micro_model, data, small, run=quantize.run, kind="quantize")
        assert (refused.value.message, refused.value.code) == (refusal["message"], "does_not_fit")

    def test_groups_must_divide_each_row(self, micro_model):
        shape = shape_of(micro_model)
        quantize.check_groups(shape, 128)
        with pytest.raises(InvalidInput, match="give 128") as refused:
            quantize.check_groups(shape, 96)
        assert refused.value.param == "group_size"

    def test_what_it_is_judged_on_has_no_part_in_the_calibration(self, steps, micro_model, data):
        def read(step):
            return {"found": read_calibration(step, ChatTokenizer(micro_model), 128)}

        params = {"base_model": "micro", "name": "x", "input_file": "file-1", "max_rows": 20}
        ran = steps.run(read, "quantize", "quantize", params=params, files={"file-1": data})
        found = ran.result["found"]
        assert (len(found.rows), len(found.judged), found.held_out) == (18, 20 // HELD_OUT_EVERY, True)
        assert not any(row.ids in found.rows for row in found.judged)
        [said] = ran.events()
        assert said.startswith("Calibrated on 18 of 40 rows of rows.csv")

    def test_of_a_model_from_scratch_it_reads_the_text(self, steps, micro_model):
        def read(step):
            return {"found": read_calibration(step, ChatTokenizer(micro_model), 128)}

        params = {"base_model": "micro", "name": "x", "max_rows": 10}
        found = steps.run(read, "quantize", "quantize", params=params).result["found"]
        assert found.name == "the text that the model was made from"
        assert {len(row) for row in found.rows} == {128}


class TestBesideTheTrainer:
    def judge(self, kl: float, top1: float, *, untuned_kl: float = 0.02) -> list[str]:
        untuned = Difference(0.97, 0.9, untuned_kl, 100, 90, 9.0, 9.0)
        figures = {"kl": kl, "top1_agreement": top1}
        problems = judge_beside_trainer(figures, untuned, min_top1_agreement=0.98, max_kl_ratio=1.5)
        assert figures["kl_limit"] == pytest.approx(max(0.005, 1.5 * untuned_kl))
        return problems

    def test_a_file_may_be_as_far_as_the_base_was_rounded(self):
        assert self.judge(0.029, 0.975) == []
        assert self.judge(0.004, 0.99, untuned_kl=0.0) == []

    def test_no_farther(self):
        [kl] = self.judge(0.031, 0.975)
        assert "at most 0.03000 is allowed (untuned, the two are 0.02000 apart)" in kl
        [top1] = self.judge(0.01, 0.96)
        assert "top-1 agreement is 0.9600, at least 0.9700 is needed" in top1

    def test_two_sets_of_weights_are_compared_over_the_whole_vocabulary(self):
        import torch

        row = ForcedRow([0, 1, 2], [1, 2], 1, [])
        first = torch.log_softmax(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), -1)
        second = torch.log_softmax(torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 2.0]]), -1)
        apart = between(Reference([first], [False]), Reference([second], [False]), [row])
        kl = float((first[0].exp() * (first[0] - second[0])).sum()) / 2
        assert apart.kl == pytest.approx(kl, rel=1e-6)
        assert (apart.top1_agreement, apart.tokens) == (0.5, 2)
        assert apart.perplexity < apart.perplexity_first
