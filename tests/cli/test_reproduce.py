"""A fine-tune submitted again from its recipe, and two recipes held against each other."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cli.recipes import compare_recipes, params_of_recipe
from db.params.fine_tune import FineTuneParams
from tests.cli.conftest import Hand, Run

FAQ = b"question,answer\nWhat is Lathe?,A service.\n"
CHOSEN = {
    "learning_rate": 2e-4, "batch_size": 2, "gradient_accumulation_steps": 4, "lora_rank": 16, "bits": 4,
    "beta": None, "total_steps": 7, "lora_target_modules": "all-linear",
}  # fmt: skip


def recipe_of(job: Any) -> dict[str, Any]:
    """What its publish step would leave."""
    return {
        "format": 1, "kind": "fine_tune", "job": job.id, "name": job.params["name"], "params": job.params,
        "data": {
            "files": {job.params["training_file"]: {"filename": "faq.csv", "sha256": sha256(FAQ)}},
            "splits": {"train.jsonl": "aa"}, "rows": {"train": 1},
        },
        "base": {"name": "tiny@1", "source": "folder", "weights": "bb"},
        "template": {"source": "chat_template.jinja", "sha256": "cc"},
        "seed": 7, "hyperparameters": CHOSEN, "trained": {"adapter/adapter_model.safetensors": "dd"},
        "environment": {"packages": {"torch": "2.13.0"}, "threads": 2},
        "result": {"train_loss": 0.5, "eval_loss": 0.75},
    }  # fmt: skip


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "faq.csv"
    path.write_bytes(FAQ)
    return path


@pytest.mark.usefixtures("api_url")
class TestReproduce:
    @pytest.fixture
    def recipe(self, run: Run, hand: Hand, csv: Path, tmp_path: Path) -> Path:
        """Of a fine-tune that was submitted with what `auto` leaves open."""
        run("fine-tune", "--base", "tiny", "--data", str(csv), "--name", "faq", "--seed", "-1")
        job = next(job for job in hand.jobs() if job.kind == "fine_tune")
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**recipe_of(job), "base": {"name": "tiny", "source": "folder"}}))
        hand.artifact(job.id, "recipe.json", path.read_bytes())
        return path

    def test_submits_the_same_with_what_auto_came_to(self, run: Run, hand: Hand, recipe: Path) -> None:
        first = next(job for job in hand.jobs() if job.kind == "fine_tune")
        ran = run("reproduce", first.id, "--detach", "--json")
        assert (ran.status, ran.err) == (0, "")
        second = ran.json()
        assert second["metadata"] == {"reproduces": first.id}
        assert {name: second["params"][name] for name in ("learning_rate", "batch_size", "lora_rank")} == {
            "learning_rate": 2e-4, "batch_size": 2, "lora_rank": 16,
        }  # fmt: skip
        assert (second["params"]["seed"], second["params"]["beta"]) == (7, "auto")
        assert second["params"]["name"] == "faq-again"
        assert second["params"]["training_file"] == first.params["training_file"]

    def test_a_file_that_is_gone_is_asked_for_and_checked(
        self, run: Run, hand: Hand, recipe: Path, csv: Path, tmp_path: Path
    ) -> None:
        document = json.loads(recipe.read_text())
        [was] = document["data"]["files"].values()
        document["data"]["files"] = {"file-0": was}
        document["params"]["training_file"] = "file-0"
        recipe.write_text(json.dumps(document))
        gone = run("reproduce", str(recipe), "--detach")
        assert gone.status == 2
        assert "faq.csv is no longer on the server: give it by --data" in gone.err
        other = tmp_path / "other.csv"
        other.write_bytes(FAQ + b"More?,Yes.\n")
        assert was["sha256"] in run("reproduce", str(recipe), "--detach", "--data", str(other)).err
        again = run("reproduce", str(recipe), "--detach", "--data", str(csv), "--json").json()
        assert hand.upload_of(again["params"]["training_file"]) == FAQ

    def test_a_file_that_has_changed_is_refused(self, run: Run, recipe: Path) -> None:
        recipe.write_text(recipe.read_text().replace(sha256(FAQ), "0" * 64))
        ran = run("reproduce", str(recipe), "--detach")
        assert ran.status == 2
        assert "faq.csv is not what it was" in ran.err

    def test_compares_two_without_running_any(self, run: Run, recipe: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.json"
        other.write_text(recipe.read_text().replace('"dd"', '"ee"').replace("2.13.0", "2.14.0"))
        shown = run("reproduce", str(recipe), "--compare", str(other)).out
        assert "the trained weights differ" in shown
        assert "torch: 2.13.0 then, 2.14.0 now" in shown
        assert "equal to the last bit" in run("reproduce", str(recipe), "--compare", str(recipe)).out

    def test_what_has_no_recipe_is_told(self, run: Run, hand: Hand, tmp_path: Path) -> None:
        job = hand.fine_tune()
        assert "has left no recipe.json" in run("reproduce", job).err
        hand.publish("orphan", "Q8_0")
        assert run("reproduce", "orphan").status == 2
        (tmp_path / "none.json").write_text("[]")
        assert "is no recipe" in run("reproduce", str(tmp_path / "none.json")).err


class TestParams:
    def params(self, **given: Any) -> dict[str, Any]:
        params = FineTuneParams.model_validate(
            {"base_model": "org/base", "training_file": "file-0", "name": "faq", **given}
        )
        base = {"name": "org/base", "source": "hub", "revision": "abc"}
        recipe = {
            "base": base,
            "seed": 3,
            "hyperparameters": CHOSEN,
            "params": params.model_dump(mode="json"),
        }
        return FineTuneParams.model_validate(params_of_recipe(recipe, name=None)).model_dump()

    def test_fixes_the_base_at_its_commit(self) -> None:
        assert self.params()["base_model"] == "org/base@abc"

    def test_keeps_what_settles_other_values(self) -> None:
        multiplied = self.params(learning_rate_multiplier=2)
        assert (multiplied["learning_rate"], multiplied["learning_rate_multiplier"]) == ("auto", 2)
        batched = self.params(effective_batch_size=8)
        assert (batched["batch_size"], batched["effective_batch_size"]) == ("auto", 8)

    def test_a_long_name_still_fits(self) -> None:
        assert len(self.params(name="x" * 63)["name"]) <= 63


class TestComparison:
    def test_tells_losses_and_what_went_in_otherwise(self) -> None:
        first = {
            "job": "job-1", "trained": {"a": "1"}, "result": {"train_loss": 0.5, "eval_loss": 0.25},
            "data": {"splits": {"train.jsonl": "aa"}}, "base": {"name": "tiny@1"}, "template": {}, "seed": 1,
            "hyperparameters": {"bits": 4}, "environment": {"packages": {"torch": "1"}, "threads": 2},
        }  # fmt: skip
        second = copy.deepcopy(first)
        assert compare_recipes(first, second)["identical"]
        assert compare_recipes(first, second)["differs"] == []
        second |= {"trained": {"a": "2"}, "result": {"train_loss": 0.75}, "seed": 2}
        second["environment"]["threads"] = 4
        found = compare_recipes(first, second)
        assert not found["identical"]
        assert found["losses"] == {"train_loss": {"then": 0.5, "now": 0.75, "difference": 0.25}}
        assert found["differs"] == [["seed", 1, 2], ["threads", 2, 4]]
