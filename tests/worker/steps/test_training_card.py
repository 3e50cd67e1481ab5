"""What a fine-tune tells of itself: hashes that hold, a picture that opens, and metadata that a hub reads."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from db.disk import file_sha256
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES
from worker.run_step import write_manifest
from worker.step import Step, StepInput
from worker.steps import prepare, train
from worker.steps.curves import draw_curves
from worker.steps.model_card import write_card
from worker.steps.training_card import leave_card

pytestmark = WARNINGS_OF_LIBRARIES
ROWS = [(f"Where is pot {n}?", f"Pot {n} stands in the kiln.") for n in range(10)]
PARAMS = {
    "base_model": "micro", "training_file": "file-1", "name": "pots", "lora_rank": 4, "batch_size": 4,
    "max_steps": 4, "train_size": 0.8, "gradient_accumulation_steps": 1, "eval_steps": 2,
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "model": "pots", "files": [{"quantization": "Q8_0", "bytes": 123, "sha256": "ab", "path": "p.gguf"}],
}  # fmt: skip
VERIFIED = {
    "files": [{"quantization": "Q8_0", "top1_agreement": 0.99, "kl": 0.001, "kl_base": 0.002}],
    "evaluation": {
        "data": {"rows": 1, "of": 1},
        "table": [{"name": "base-Q8_0", "loss": 2.5}, {"name": "Q8_0", "loss": 0.25}],
        "samples": [
            {
                "asked": "Where?", "expected": "Here | there.",
                "answers": {"base-Q8_0": "What?", "Q8_0": "Here."},
            }
        ],
    },
}  # fmt: skip


@pytest.fixture
def card(steps: Any, micro_model: Path, tmp_path: Path) -> Path:
    """The folder of a publish step of a fine-tune that was trained for real."""
    data = tmp_path / "rows.csv"
    data.write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROWS))
    given: dict[str, Any] = {"params": PARAMS, "base": micro_model, "files": {"file-1": data}}
    prepared = steps.run(prepare.run, "fine_tune", "prepare", **given)
    write_manifest(prepared.folder)
    trained = steps.run(train.run, "fine_tune", "train", earlier={"prepare": prepared}, **given)
    write_manifest(trained.folder)

    def publish(step: Any) -> dict[str, Any]:
        results = {**step.input.results, "verify": VERIFIED}
        again = StepInput(**{**vars(step.input), "results": results})
        said: list[dict[str, Any]] = []
        leave_card(Step(again, said.append), step.input.results["train"], PUBLISHED)
        return {"offered": [row["name"] for row in said]}

    ran = steps.run(publish, "fine_tune", "publish", earlier={"prepare": prepared, "train": trained}, **given)
    assert ran.result["offered"] == ["README.md", "recipe.json", "curves.png"]
    self_made = {"rows.csv": data, "train.jsonl": prepared.folder / "train.jsonl"}
    (ran.folder / "expected.json").write_text(
        json.dumps(
            {name: file_sha256(path) for name, path in self_made.items()}
            | {"adapter": file_sha256(trained.folder / "adapter" / "adapter_model.safetensors")}
        )
    )
    return Path(ran.folder)


class TestCard:
    def test_says_what_went_in_and_what_came_out(self, card: Path) -> None:
        recipe = json.loads((card / "recipe.json").read_text())
        expected = json.loads((card / "expected.json").read_text())
        assert recipe["data"]["files"]["file-1"]["sha256"] == expected["rows.csv"]
        assert recipe["data"]["splits"]["train.jsonl"] == expected["train.jsonl"]
        assert recipe["data"]["rows"] == {"train": 8, "validation": 1, "test": 1}
        assert recipe["trained"] == {"adapter/adapter_model.safetensors": expected["adapter"]}
        assert recipe["params"]["name"] == recipe["name"] == "pots"
        assert recipe["hyperparameters"]["lora_rank"] == 4
        assert recipe["seed"] == 42
        assert recipe["result"]["steps"] == 4
        assert recipe["result"]["eval_loss"] > 0
        assert recipe["result"]["seconds"] > 0
        assert recipe["result"]["peak_memory_bytes"] > 1e6
        assert recipe["base"]["source"] == "folder"
        packages = recipe["environment"]["packages"]
        assert {"torch", "trl", "peft", "transformers", "lathe"} <= packages.keys()
        self._is_a_card(card / "README.md", recipe)
        self._is_another_for_all(card, recipe)
        with Image.open(card / "curves.png") as picture:
            assert picture.format == "PNG"
            colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 10  # lines were drawn

    def _is_a_card(self, path: Path, recipe: dict[str, Any]) -> None:
        text = path.read_text()
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert (metadata["library_name"], metadata["tags"]) == ("peft", ["lathe", "supervised"])
        for told in (
            recipe["data"]["files"]["file-1"]["sha256"], "rows.csv", "| seed | 42 |", "curves.png",
            "| Q8_0 | 123 | 0.99 | 0.001 | 0.002 |", "| torch | ", recipe["environment"]["packages"]["torch"],
            "lathe reproduce pots", "| Q8_0 | 0.25 |", "| Where? | Here \\| there. | What? | Here. |",
        ):  # fmt: skip
            assert told in text
        assert str(path.parent.parent) not in text  # no folder of this machine

    def _is_another_for_all(self, folder: Path, recipe: dict[str, Any]) -> None:
        """A push's: the same figures, with a license, and nothing that is the owner's alone."""
        about = {"what": "merged", "base": None, "trained": None, "published": []}
        license = {"license": "apache-2.0"}
        write_card(folder, "org/pots", about, recipe, license=license, curves=True)
        text = (folder / "README.md").read_text()
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert metadata == {
            "license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-generation",
            "tags": ["lathe", "supervised"],
        }  # fmt: skip
        for told in (
            recipe["data"]["files"]["file-1"]["sha256"], "| seed | 42 |", "curves.png", "| Q8_0 | 0.25 |",
            recipe["environment"]["packages"]["torch"], "fine-tuned from micro", "| eval_loss | ",
        ):  # fmt: skip
            assert told in text
        for kept in ("rows.csv", "Where?", "Here.", "lathe reproduce", str(folder.parent)):
            assert kept not in text
        write_card(
            folder,
            "org/pots",
            about | {"step_number": 2, "metrics": {"loss": 3.5}},
            recipe,
            license={},
            curves=False,
        )
        of_checkpoint = (folder / "README.md").read_text()
        assert "| loss | 3.5 |" in of_checkpoint
        assert "as of step 2 of its training" in of_checkpoint
        assert "eval_loss" not in of_checkpoint
        assert recipe["trained"]["adapter/adapter_model.safetensors"] not in of_checkpoint


class TestCurves:
    def test_the_same_curves_are_the_same_picture(self, tmp_path: Path) -> None:
        results = tmp_path / "step_metrics.csv"
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "train_loss", "valid_loss"])
            writer.writeheader()
            writer.writerows({"step": n, "train_loss": 1 / n} for n in range(1, 5))
        assert draw_curves(results, tmp_path / "a.png")
        assert draw_curves(results, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_nothing_measured_is_no_picture(self, tmp_path: Path) -> None:
        (tmp_path / "step_metrics.csv").write_text("step,train_loss,valid_loss\n")
        assert not draw_curves(tmp_path / "step_metrics.csv", tmp_path / "a.png")
        assert not (tmp_path / "a.png").exists()
