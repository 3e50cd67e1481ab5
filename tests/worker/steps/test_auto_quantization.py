from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from db.params.values import AUTO_QUANTIZATIONS
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    base_weights,
    step_of,
    step_settings,
)
from worker.step import Step
from worker.steps import export, publish, verify
from worker.steps.auto_quantization import Choice, measure_asked

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

# Bytes as they are by type, and what each costs.
SIZES = {"Q8_0": 85, "Q6_K": 66, "Q5_K_M": 57, "Q4_K_M": 49, "Q3_K_M": 39}
KL = {"Q8_0": 0.0001, "Q6_K": 0.002, "Q5_K_M": 0.008, "Q4_K_M": 0.03, "Q3_K_M": 0.2}


@dataclass(frozen=True)
class Figures:
    figures: dict[str, Any]


def settle(
    folder: Path, asked: list[str], *, limit: float = 0.02, refused: tuple[str, ...] = ()
) -> tuple[Choice[Figures], list[str], list[dict[str, Any]]]:
    """What came of it, the types that were measured, and what was said."""
    settings = step_settings(folder / "served", auto_max_kl=limit)
    step, said = step_of(folder / "verify", settings, params={"quantizations": asked})
    rows = [{"quantization": name, "bytes": size} for name, size in SIZES.items()]
    tried: list[str] = []

    def measure(row: dict[str, Any]) -> Figures:
        name = row["quantization"]
        tried.append(name)
        if name in refused:
            raise InvalidInput(f"The {name} file does not answer as the weights do.")
        return Figures({"quantization": name, "kl": KL[name]})

    return measure_asked(step, rows, measure), tried, said


class TestMeasureAsked:
    def test_takes_the_smallest_within_the_bound_and_measures_no_further(self, tmp_path: Path) -> None:
        choice, tried, said = settle(tmp_path, ["auto"])
        assert choice.published == ["Q5_K_M"]
        assert tried == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]
        assert said[-1]["data"]["tried"] == {name: KL[name] for name in tried}
        assert said[-1]["level"] == "info"

    @pytest.mark.parametrize(("limit", "expected"), [(0.5, "Q3_K_M"), (0.03, "Q4_K_M"), (0.002, "Q6_K")])
    def test_the_bound_is_the_operators(self, tmp_path: Path, limit: float, expected: str) -> None:
        assert settle(tmp_path, ["auto"], limit=limit)[0].published == [expected]

    def test_a_type_that_does_not_pass_is_passed_over(self, tmp_path: Path) -> None:
        choice, _, said = settle(tmp_path, ["auto"], limit=0.5, refused=("Q3_K_M", "Q4_K_M"))
        assert choice.published == ["Q5_K_M"]
        assert [message["message"].split()[0] for message in said if message["level"] == "warn"] == [
            "Q3_K_M", "Q4_K_M",
        ]  # fmt: skip

    def test_none_within_the_bound_is_told(self, tmp_path: Path) -> None:
        choice, _, said = settle(tmp_path, ["auto"], limit=1e-9)
        assert choice.published == ["Q8_0"]
        assert said[-1]["level"] == "warn"
        assert "no type is within the bound" in said[-1]["message"]

    def test_none_that_passes_is_a_failure(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="The Q8_0 file does not answer"):
            settle(tmp_path, ["auto"], refused=AUTO_QUANTIZATIONS)

    def test_what_is_asked_for_beside_it_keeps_its_place_and_counts_once(self, tmp_path: Path) -> None:
        choice, tried, _ = settle(tmp_path, ["Q8_0", "auto"])
        assert choice.published == ["Q8_0", "Q5_K_M"]
        assert sorted(tried) == ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q8_0"]
        choice, tried, _ = settle(tmp_path, ["Q5_K_M", "auto"])
        assert choice.published == ["Q5_K_M"]
        assert tried.count("Q5_K_M") == 1

    def test_what_is_asked_for_by_name_must_pass(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="The Q4_K_M file"):
            settle(tmp_path, ["Q4_K_M", "auto"], refused=("Q4_K_M",))


class TestSteps:
    """The real thing: made in all types, measured, and one of them chosen."""

    def run(self, module: Any, root: Path, **changes: Any) -> tuple[dict[str, Any], Step]:
        name = module.__name__.rpartition(".")[2]
        step, _ = step_of(root / name, step_settings(root / "served"), **changes)
        result: dict[str, Any] = module.run(step)
        return result, step

    def test_only_the_chosen_file_is_published(
        self, models: TrainedModels, exported: Exported, tmp_path: Path
    ) -> None:
        folders = exported.folders
        given: dict[str, Any] = {
            "params": {"name": "faq", "quantizations": ["auto"]},
            "base": base_weights(models.base),
            "step_folders": {name: folders[name] for name in ("prepare", "train")},
        }
        exported, step = self.run(export, tmp_path, **given)
        assert {row["quantization"] for row in exported["files"]} == set(AUTO_QUANTIZATIONS)
        given["step_folders"] |= {"export": step.input.folder}
        given["results"] = {"export": exported}
        verified, _ = self.run(verify, tmp_path, **given)
        [taken] = verified["published"]
        figures = {row["quantization"]: row for row in verified["files"]}
        assert figures[taken]["kl"] <= 0.02
        assert all(row["kl"] > 0.02 for name, row in figures.items() if name != taken)
        given["results"] |= {"verify": verified}
        step, _ = step_of(tmp_path / "publish", step_settings(tmp_path), **given)
        assert [row["quantization"] for row in publish.chosen_files(step.input)] == [taken]
