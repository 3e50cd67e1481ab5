"""Estimates of real trainings of a very small model, and the refusal of what cannot fit."""

from pathlib import Path
from typing import Any

import pytest

from db.disk import file_sha256
from db.errors import InvalidInput
from db.sources import Held, Source, hold
from tests.worker.steps.conftest import Ran, StepRunner
from tests.worker.steps.fake_hub import FakeHub
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES
from worker.step import BaseWeights
from worker.steps import estimate, prepare, reckoning, train
from worker.steps.base_model import describe_base, shape_of

ROWS = 12
PARAMS: dict[str, Any] = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "lora_rank": 4, "bits": 16,
    "effective_batch_size": 4, "max_steps": 3,
}  # fmt: skip
FAMILIES = ("llama", "qwen2", "gemma3_text", "phi3", "gpt2", "mixtral", "qwen3_moe")
GB = 10**9
MB = 10**6
HERE = {"host": "here", "ram_bytes": 64 * GB}

pytestmark = WARNINGS_OF_LIBRARIES


class Estimating:
    """An estimate, and the fine-tune's own first steps, of the same params."""

    def __init__(self, steps: StepRunner, base: Path | BaseWeights, data: Path) -> None:
        self._steps, self._base, self._data = steps, base, data

    def run(self, module: Any, kind: str, step: str, *, params: dict[str, Any], **given: Any) -> Ran:
        files = {"file-1": self._data}
        params = {**PARAMS, **params}
        return self._steps.run(module.run, kind, step, params=params, base=self._base, files=files, **given)

    def estimate(self, machine: dict[str, Any] | None = None, **params: Any) -> Ran:
        return self.run(estimate, "estimate", "estimate", params=params, machines=[machine or HERE])

    def prepare(self, machine: dict[str, Any] | None = None, **params: Any) -> Ran:
        return self.run(prepare, "fine_tune", "prepare", params=params, machines=[machine or HERE])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(written(ROWS))
    return path


def written(rows: int) -> str:
    return "question,answer\n" + "".join(
        f"Where is pot {n}?,Pot {n} stands in the kiln.\n" for n in range(rows)
    )


def held_adapter(folder: Path) -> Path:
    """What a job holds that goes on from an earlier one's adapter, as far as an estimate looks at it."""
    folder.mkdir()
    path = folder / "adapter_config.json"
    path.write_text('{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}')
    held = Held(path, f"trained/{path.name}", path.stat().st_size, file_sha256(path))
    hold(Source({"step_number": None}, [held]), folder / "start")
    return folder / "start"


@pytest.fixture
def micro(steps: StepRunner, micro_model: Path, data: Path) -> Estimating:
    return Estimating(steps, micro_model, data)


class TestFigures:
    def test_are_those_of_the_training_that_follows(self, micro: Estimating) -> None:
        told = micro.estimate().result
        prepared = micro.prepare()
        trained = micro.run(train, "fine_tune", "train", params={}, earlier={"prepare": prepared})
        [begins] = [m["data"] for m in trained.of_type("event") if "trainable_parameters" in m["data"]]
        assert told["model"]["trainable_parameters"] == begins["trainable_parameters"]
        assert told["data"]["tokens_an_epoch"] == prepared.result["tokens"]["train"]
        assert told["steps"] == trained.result["steps"] == 3
        assert told["data"]["counted_every"] == 1
        assert told["fits"] is True
        assert told["refusal"] is None
        assert prepared.result["estimate"]["foretold"] == told["foretold"]

    def test_are_of_every_kind_and_each_says_how_it_was_reckoned(self, micro: Estimating) -> None:
        ran = micro.estimate()
        told = ran.result
        parts = told["memory"]["ram"]["parts"]
        assert sum(parts.values()) == told["memory"]["ram"]["bytes"]
        assert sum(told["disk"]["parts"].values()) == told["disk"]["bytes"] > 0
        assert sum(told["time"]["steps"].values()) == pytest.approx(told["time"]["seconds"], abs=0.5)
        assert set(told["how"]) == {"trainable_parameters", "tokens", "steps", "memory", "disk", "time"}
        assert "no job has finished" in told["how"]["time"]
        assert told["own_error"]["jobs"] == 0
        assert not list(ran.folder.glob("*.jsonl"))

    def test_of_several_gpus_are_of_each(self, micro: Estimating) -> None:
        gpus = {"host": "h", "ram_bytes": 64 * GB, "device": "GPU-X", "device_bytes": 8 * GB, "devices": 2}
        ran = micro.prepare(gpus)
        told = ran.result["estimate"]
        one = micro.prepare({**gpus, "devices": 1}).result["estimate"]
        placed = {"devices": 2, "ranks": 2, "batch_size": 2, "accumulation": 1, "parallel": "ddp"}
        assert told["placement"] == placed
        assert told["memory"]["device"]["parts"]["averaging"] > 0
        assert (
            "2 processes train, each with a copy of the weights, on 2 × 1 rows a step"
            in told["how"]["memory"]
        )
        assert any("of each of 2 GPU-X" in said for said in ran.events())
        for name in ("batch_size", "gradient_accumulation_steps", "bits"):
            assert told["hyperparameters"][name] == one["hyperparameters"][name]

    @pytest.mark.parametrize("case", [("lora", 3, "fsdp"), ("full", 10, None)])
    def test_divide_weights_beside_an_earlier_adapter_as_the_training_does(
        self, micro: Estimating, micro_model: Path, tmp_path: Path, case: tuple[str, int, str | None]
    ) -> None:
        """An adapter that is trained further is no part of the weights; one that is merged is."""
        tuning, room, parallel = case
        there = room * shape_of(micro_model).parameters  # for a share of one of two GPUs, and no copy
        gpus = {"host": "h", "ram_bytes": 64 * GB, "device": "X", "device_bytes": there, "devices": 2}
        params = {"tuning": tuning, "lora_rank": "auto", "bits": 16 if tuning == "lora" else "auto"}
        plain = micro.estimate(gpus, **params).result
        assert plain["placement"]["parallel"] == "fsdp"
        start = held_adapter(tmp_path / "earlier")
        ran = micro.run(
            estimate, "estimate", "estimate",
            params={**params, "start_from": "faq"}, machines=[gpus], start=start,
        )  # fmt: skip
        assert ran.result["placement"]["parallel"] == parallel

    def test_of_plain_text_are_of_full_sequences(self, micro: Estimating, data: Path) -> None:
        data.write_text("text\n" + "The kiln is hot and the clay is dry.\n" * 40)
        asked: dict[str, Any] = {"method": "pretraining", "max_length": 32, "max_steps": None, "epochs": 2.0}
        told = micro.estimate(**asked).result
        sequences = -(-(told["data"]["tokens_an_epoch"] - 1) // 31)
        assert told["steps"] == -(-sequences // 4) * 2
        assert told["fits"] is True

    def test_learn_from_finished_jobs_and_report_their_error(self, micro: Estimating) -> None:
        first = micro.prepare().result
        finished = {
            "device": None,
            "seconds": {"prepare": 2, "train": 100, "export": 3, "verify": 4, "publish": 1},
            "results": {
                "prepare": first,
                "train": {
                    "hyperparameters": {**first["hyperparameters"], "compute_dtype": "float32"},
                    "trained_tokens": 1_000,
                    "tokens_per_second": 20.0,
                    "peak_memory_bytes": int(1.25 * first["estimate"]["foretold"]["arithmetic_bytes"]),
                },
            },
        }
        ran = micro.run(
            estimate, "estimate", "estimate", params={"max_steps": 3}, machines=[HERE], finished=[finished]
        )
        told = ran.result
        assert told["memory"]["correction"] == 1.25
        assert told["time"]["jobs"] == 1
        tokens = told["data"]["tokens_an_epoch"]  # three steps of four rows are all twelve
        assert told["time"]["steps"]["train"] == pytest.approx(100 - 1_000 / 20 + tokens / 20, abs=0.1)
        assert "The last job took" in told["own_error"]["text"]
        assert "1.2 times the memory" in told["own_error"]["text"]

    def test_of_a_large_file_are_of_every_so_manieth_row(
        self, micro: Estimating, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = micro.estimate().result["data"]
        monkeypatch.setattr(reckoning, "SAMPLED_BYTES", data.stat().st_size // 3)
        ran = micro.estimate()
        assert ran.result["data"]["counted_every"] == 3
        assert ran.result["data"]["rows"] == whole["rows"] == ROWS
        assert ran.result["data"]["tokens_an_epoch"] == pytest.approx(whole["tokens_an_epoch"], rel=0.1)
        assert any("one row in 3" in told for told in ran.events("warn"))
        assert micro.prepare().result["rows"]["train"] == ROWS


class TestRefusing:
    def test_what_cannot_fit_with_what_would_make_it_fit(self, micro: Estimating, data: Path) -> None:
        data.write_text(written(200))
        gpu = {"host": "h", "ram_bytes": 64 * GB, "device": "GPU-X", "device_bytes": 700 * MB}
        asked = {
            "bits": 16,
            "batch_size": 4096,
            "gradient_accumulation_steps": 1,
            "effective_batch_size": "auto",
        }
        refusal = micro.estimate(gpu, **asked).result["refusal"]
        assert refusal["code"] == "does_not_fit"
        assert "GPU-X on h has 700 MB" in refusal["message"]
        with pytest.raises(InvalidInput) as caught:
            micro.prepare(gpu, **asked)
        assert (caught.value.message, caught.value.code) == (refusal["message"], "does_not_fit")
        assert refusal["changes"]
        for change in refusal["changes"]:
            assert micro.estimate(gpu, **{**asked, **change}).result["fits"]

    def test_of_the_hosts_memory(self, micro: Estimating) -> None:
        with pytest.raises(InvalidInput, match=r"small's memory has 100 MB.*smaller base_model"):
            micro.prepare({"host": "small", "ram_bytes": 100 * MB})

    def test_of_the_disk(self, micro: Estimating, monkeypatch: pytest.MonkeyPatch) -> None:
        needed = micro.prepare().result["estimate"]["disk"]
        monkeypatch.setattr(reckoning.shutil, "disk_usage", lambda folder: _Free(needed["bytes"] - 1))
        with pytest.raises(InvalidInput, match=r"of disk through its export.*keep_checkpoints 1") as caught:
            micro.prepare()
        assert caught.value.code == "does_not_fit"

    def test_nothing_where_no_worker_tells_what_there_is(self, micro: Estimating) -> None:
        told = micro.run(estimate, "estimate", "estimate", params={}).result
        assert told["fits"] is True
        assert "No live worker trains" in told["how"]["memory"]


class _Free:
    def __init__(self, free: int) -> None:
        self.free = free


class TestAuto:
    def test_settles_on_what_fits_and_says_so(self, micro: Estimating) -> None:
        asked = {"effective_batch_size": "auto", "max_steps": None}
        plain = micro.prepare(**asked).result["estimate"]["memory"]["ram"]["bytes"]
        less = micro.prepare({"host": "h", "ram_bytes": int(plain * 0.99 / 0.92)}, **asked)
        settled = less.result["estimate"]["settled"]
        assert less.result["hyperparameters"]["batch_size"] == settled["batch_size"]
        before = micro.prepare(**asked).result["hyperparameters"]
        product = settled["batch_size"] * settled["gradient_accumulation_steps"]
        assert product == before["batch_size"] * before["gradient_accumulation_steps"]
        assert any("auto settles on batch_size" in told for told in less.events())


class TestHub:
    def test_fetches_no_weights(
        self, steps: StepRunner, data: Path, micro_model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(data.parent / "hub-cache"))
        files = {path.name: path.read_bytes() for path in micro_model.iterdir() if path.is_file()}
        hub = FakeHub({"org/micro": files}).start()
        base = BaseWeights(name="org/micro", source="hub", location="org/micro")
        steps.settings = {"hub_url": hub.url}
        try:
            told = Estimating(steps, base, data).estimate().result
        finally:
            hub.stop()
        assert told["model"]["parameters"] == shape_of(micro_model).parameters
        assert told["disk"]["parts"]["base"] == 2 * told["model"]["parameters"]
        assert hub.ranges == ["bytes=0-100000"]  # where the header is
        assert not list(data.parent.glob("hub-cache/**/*.safetensors"))


class TestTrainable:
    """What is counted from shapes alone is what peft makes of the model."""

    # peft has patterns for experts as other models hold them.
    @pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
    @pytest.mark.parametrize(
        "family", ["llama", "qwen2", "gemma3_text", "phi3", "gpt2", "mixtral", "qwen3_moe"]
    )
    @pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
    def test_is_what_peft_makes(self, tmp_path: Path, family: str, bias: str) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {
            "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        }  # fmt: skip
        if family == "gpt2":
            sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        if family == "mixtral":
            sizes["num_local_experts"] = 2
        if family == "qwen3_moe":
            sizes |= {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
        model.save_pretrained(tmp_path)
        chosen = {"lora_rank": 4, "lora_target_modules": "all-linear", "lora_bias": bias}
        config = LoraConfig(r=4, target_modules="all-linear", bias=bias, task_type="CAUSAL_LM")
        made = get_peft_model(model, config)
        learns = sum(each.numel() for each in made.parameters() if each.requires_grad)
        assert shape_of(tmp_path).trainable(chosen) == learns

    def test_knows_a_folder_as_it_is(self, steps: StepRunner, micro: Estimating, micro_model: Path) -> None:
        micro.prepare()
        base = BaseWeights("micro", "folder", str(micro_model))

        def look(step: Any) -> dict[str, Any]:
            folder, shape, downloaded = describe_base(base, step)
            return {"same": folder == micro_model, "parameters": shape.parameters, "downloaded": downloaded}

        looked = steps.run(look, "estimate", "estimate", params=PARAMS, base=micro_model)
        assert looked.result == {
            "same": True, "parameters": shape_of(micro_model).parameters, "downloaded": True,
        }  # fmt: skip
