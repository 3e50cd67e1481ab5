import math
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, StepFailed
from serving.llama_cpp import require_tools
from serving.openai_compatible import NextToken
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    base_weights,
    chat_rows,
    shared_verification,
    step_of,
    step_settings,
    write_rows,
)
from training_data.tokens import ChatTokenizer
from worker.steps import programs, verify
from worker.steps.gguf_files import write_tokenizer
from worker.steps.merging import Weights, write_merged
from worker.steps.teacher_forcing import Told, difference_of, divergence, reference_of
from worker.steps.trained_weights import trained_weights
from worker.steps.verify_rows import force

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def run_verify(
    folder: Path, root: Path, exported: Exported, models: TrainedModels, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = step_settings(root / "served", **changes.pop("settings", {}))
    fields = {
        "step": "verify",
        "params": {"name": "faq", "quantizations": ["Q4_K_M", "Q8_0"]},
        "base": base_weights(models.base),
        "step_folders": exported.folders,
        "results": {"export": exported.result},
    }
    step, said = step_of(folder, settings, **{**fields, **changes})
    return verify.run(step), said


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What verify found of the fine-tune as it is, and said; the base's files are in the cache after it."""
    return shared_verification(tmp_path_factory.getbasetemp())


class TestVerify:
    def test_measures_each_file_and_what_quantising_costs_the_base(
        self, sound: tuple[dict[str, Any], list[dict[str, Any]]]
    ) -> None:
        result, said = sound
        assert [row["quantization"] for row in result["files"]] == ["Q4_K_M", "Q8_0"]
        for row in result["files"]:
            assert row["top1_agreement"] >= 0.98
            assert 0 <= row["kl"] <= row["kl_limit"]
            assert row["kl_base"] > 0
            # Answers known by heart: each of their tokens is nearly certain.
            assert 1 <= row["perplexity_weights"] < 1.1
            assert row["perplexity"] == pytest.approx(row["perplexity_weights"], rel=0.02)
            assert row["tokens_per_second"] > 0
            assert row["template_equal"]
            assert row["stops"]
            assert row["answers_by_heart"] == row["answers_ended"] == row["rows"] == 6
            assert row["split"] == "train"
        assert any("no held-out rows" in message.get("message", "") for message in said)

    @pytest.mark.usefixtures("sound")
    def test_held_out_rows_come_first_and_the_base_is_not_measured_twice(
        self, tmp_path: Path, root: Path, exported: Exported, models: TrainedModels
    ) -> None:
        (tmp_path / "prepare").mkdir()
        write_rows(tmp_path / "prepare" / "train.jsonl", chat_rows({"Nobody?": "No."}))
        write_rows(tmp_path / "prepare" / "test.jsonl", models.rows)
        folders = {**exported.folders, "prepare": tmp_path / "prepare"}
        result, said = run_verify(tmp_path / "verify", root, exported, models, step_folders=folders)
        assert {row["split"] for row in result["files"]} == {"test"}
        assert not list(tmp_path.glob("*/base-*/"))
        [cache] = (root / "cache" / "base-gguf").iterdir()
        assert {path.suffix for path in cache.iterdir()} == {".gguf", ".json"}
        assert not any("Quantising the base" in message.get("message", "") for message in said)
        self._tells_what_the_test_split_says(result["evaluation"], models)

    def _tells_what_the_test_split_says(self, evaluation: dict[str, Any], models: TrainedModels) -> None:
        table = {row["name"]: row for row in evaluation["table"]}
        assert list(table) == ["base-Q4_K_M", "Q4_K_M", "base-Q8_0", "Q8_0"]
        assert table["Q8_0"]["exact_match"] == 1
        assert table["base-Q8_0"]["exact_match"] == 0
        assert table["Q8_0"]["loss"] < table["base-Q8_0"]["loss"]
        sample = evaluation["samples"][0]
        answer = models.rows[0]["messages"][-1]["content"]
        assert sample["expected"] == sample["answers"]["Q8_0"] == answer
        assert len(evaluation["samples"]) == 5

    @pytest.mark.usefixtures("sound")
    def test_refuses_a_file_of_other_weights_with_the_figures(
        self, tmp_path: Path, root: Path, exported: Exported, models: TrainedModels
    ) -> None:
        """The untuned base in the place of the tuned file: as an adapter that was never merged."""
        [base_file] = (root / "cache" / "base-gguf").glob("*/Q8_0.gguf")
        (tmp_path / "export").mkdir()
        shutil.copyfile(base_file, tmp_path / "export" / "faq-Q8_0.gguf")
        result = {**exported.result, "files": [exported.result["files"][1]]}
        with pytest.raises(InvalidInput, match=r"top-1 agreement is 0\.\d+.*KL divergence is") as refusal:
            run_verify(
                tmp_path / "verify",
                root,
                exported,
                models,
                step_folders={**exported.folders, "export": tmp_path / "export"},
                results={"export": result},
            )
        assert refusal.value.code == "verification_failed"

    def test_refuses_a_file_that_renders_another_prompt(
        self, tmp_path: Path, root: Path, exported: Exported, models: TrainedModels
    ) -> None:
        train = tmp_path / "train"
        shutil.copytree(exported.folders["train"], train)
        template = train / "adapter" / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant\\n", "assistant: "))
        said = r'writes "…[^"]*assistant\\n" where the training\'s wrote "…[^"]*assistant: "'
        with pytest.raises(InvalidInput, match=said):
            run_verify(
                tmp_path / "verify",
                root,
                exported,
                models,
                settings={"min_top1_agreement": 0, "max_kl_ratio": 1e9},
                step_folders={**exported.folders, "train": train},
            )

    def test_model_from_scratch_is_held_against_its_16_bit_file(
        self, tmp_path: Path, root: Path, exported: Exported, models: TrainedModels
    ) -> None:
        (tmp_path / "train").mkdir()
        write_merged(Weights(models.base, models.adapter), tmp_path / "train" / "model")
        write_tokenizer(models.adapter, tmp_path / "train" / "model")
        (tmp_path / "export").mkdir()
        for name in ("faq-Q8_0.gguf", "faq-Q4_K_M.gguf"):
            shutil.copyfile(exported.folders["export"] / name, tmp_path / "export" / name)
        text = tmp_path / "text.txt"
        text.write_text("\n\n".join(f"{q} {a}" for q, a in _sentences()) * 20)
        from worker.step import FileInput

        result, _ = run_verify(
            tmp_path / "verify",
            root,
            exported,
            models,
            kind="pretrain",
            base=None,
            files={"file-1": FileInput(text, "text.txt", text.stat().st_size)},
            params={"name": "faq", "training_file": "file-1", "quantizations": ["Q4_K_M"]},
            step_folders={"train": tmp_path / "train", "export": tmp_path / "export"},
            results={"export": {**exported.result, "full": "faq-Q8_0.gguf"}},
            settings={"min_top1_agreement": 0.9},
        )
        assert {row["split"] for row in result["files"]} == {"text"}
        assert all("kl_base" not in row and row["template_equal"] for row in result["files"])


def _sentences() -> list[tuple[str, str]]:
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in _rows()]


def _rows() -> list[dict[str, Any]]:
    from tests.worker.steps.export_fixtures import FACTS

    return chat_rows(FACTS)


class TestReference:
    def test_is_the_same_from_the_end_of_the_logits_as_from_all(
        self, tmp_path: Path, models: TrainedModels, root: Path
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        tokenizer = ChatTokenizer(models.base)
        [row] = filter(None, [force(models.rows[0]["messages"], tokenizer, 256)])
        step, said = step_of(tmp_path / "verify", step_settings(root / "served"))
        with trained_weights(models.base) as weights:
            [kept] = reference_of(step, weights, [row]).log_probabilities
        model = AutoModelForCausalLM.from_pretrained(models.base, dtype=torch.float32)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        every = torch.log_softmax(logits, dim=-1)[torch.tensor(row.positions) - 1]
        assert torch.allclose(kept, every, atol=1e-5)  # sums of another shape: some 1e-6
        assert said[0]["type"] == "progress"


class TestModelServer:
    def test_refuses_to_speak_to_a_stranger_on_its_port(
        self, tmp_path: Path, exported: Exported, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step, _ = step_of(tmp_path / "verify", step_settings(root / "served"))
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))  # it does not even listen, so each try fails at once
            monkeypatch.setattr(programs, "free_port", lambda: stranger.getsockname()[1])
            serving = programs.model_server(
                step, require_tools(step.input.settings), programs.ServedFile(exported.file("Q8_0")),
                context=64, slots=1, log=tmp_path / "server.log",
            )  # fmt: skip
            with pytest.raises(StepFailed, match="no free port"), serving:
                pass


class TestDivergence:
    def test_equals_the_definition_when_every_token_is_served(self) -> None:
        import torch

        p, q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        served = NextToken([(i, math.log(value)) for i, value in enumerate(q)])
        assert divergence(torch.tensor(p).log(), served) == pytest.approx(expected, rel=1e-6)

    def test_counts_what_was_not_served_as_one_token(self) -> None:
        import torch

        p = torch.tensor([0.6, 0.3, 0.1])
        served = NextToken([(0, math.log(0.5))])
        expected = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
        assert divergence(p.log(), served) == pytest.approx(expected, rel=1e-6)

    def test_is_nothing_between_equals(self) -> None:
        import torch

        p = torch.tensor([0.9, 0.1])
        served = NextToken([(0, math.log(0.9)), (1, math.log(0.1))])
        assert divergence(p.log(), served) == pytest.approx(0, abs=1e-7)


class TestDifference:
    def test_near_ties_do_not_count_as_disagreement(self) -> None:
        """The server puts token 1 first at both positions; the weights are clear only at the second."""
        import torch

        expects = NextToken([(1, math.log(0.55)), (0, math.log(0.45))])
        served = [Told(expects, 1, math.log(0.55)), Told(expects, 0, None)]
        expected = list(torch.tensor([[0.52, 0.48], [0.1, 0.9]]).log())
        difference = difference_of(expected, served)
        assert (difference.top1_agreement, difference.top1_agreement_all) == (1.0, 0.5)
        assert (difference.tokens, difference.decided) == (2, 1)
        # Of the row's own tokens those count that the server tells of.
        assert difference.perplexity == pytest.approx(1 / 0.55)
        assert difference.perplexity_weights == pytest.approx(1 / 0.48)


class TestPromptsAlone:
    def test_are_answered_by_the_weights_and_judged_by_the_rewards(
        self, tmp_path: Path, root: Path, exported: Exported, models: TrainedModels
    ) -> None:
        """As after a training by GRPO: nobody has written down what the answers should be."""
        (tmp_path / "prepare").mkdir()
        prompts = [{"messages": row["messages"][:-1]} for row in models.rows]
        write_rows(tmp_path / "prepare" / "train.jsonl", prompts)
        write_rows(tmp_path / "prepare" / "test.jsonl", prompts[:2])
        chosen = {"max_completion_length": 64, "reward_weights": [2.0]}
        q8 = {**exported.result, "files": [exported.result["files"][1]]}
        result, said = run_verify(
            tmp_path / "verify", root, exported, models,
            step_folders={**exported.folders, "prepare": tmp_path / "prepare"},
            params={"name": "faq", "quantizations": ["Q8_0"]},
            rewards=[{"name": "brevity"}],
            results={
                "export": q8,
                "prepare": {"reward_columns": []},
                "train": {"hyperparameters": chosen},
            },
        )  # fmt: skip
        [row] = result["files"]
        assert (row["split"], row["rows"]) == ("own answers", 2)
        assert row["answers_by_heart"] == row["answers_ended"] == 2
        assert row["top1_agreement"] >= 0.98
        assert any("what the weights answer to 2" in message.get("message", "") for message in said)
        table = {row["name"]: row for row in result["evaluation"]["table"]}
        assert 0 < table["Q8_0"]["reward"] < 2
        [sample, _] = result["evaluation"]["samples"]
        assert sample["expected"] is None
        assert sample["answers"]["Q8_0"] == models.rows[0]["messages"][-1]["content"]
