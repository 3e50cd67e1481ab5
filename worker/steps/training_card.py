"""The card that a training leaves with its artifacts: README.md for people, with the metadata that a hub
reads, recipe.json for programs, and the curves.

The training leaves it, and the step that publishes leaves it again, with what it has learnt of the files. A
push adds what a hub asks for besides (`model_card.py`).
"""

from typing import Any

from db.states import JobKind, steps_of
from training_data.json_files import write_json
from worker.step import Step
from worker.steps.card_sections import (
    CURVES,
    curves_section,
    data_section,
    environment_section,
    evaluation_section,
    training_section,
    verified_section,
)
from worker.steps.curves import draw_curves
from worker.steps.model_card import CARD, front_matter, metadata_of
from worker.steps.recipe import RECIPE, make_recipe
from worker.steps.training_results import RESULTS_FILE

JSON = dict[str, Any]


def leave_card(step: Step, train: JSON, published: JSON | None = None) -> None:
    """Write the card of a fine-tune into the attempt's folder, and offer its files.

    Args:
        train: what the training returned.
        published: what the publish step returns; None: nothing is published yet.
    """
    folder = step.input.folder
    recipe = make_recipe(step, train, published)
    write_json(folder / RECIPE, recipe)
    trained = step.input.step_folders.get("train", folder)
    # Once, at the end of the job: a picture takes longer than all else of this.
    is_last = steps_of(JobKind(step.input.kind), step.input.params)[-1][0] == step.input.step
    has_curves = is_last and draw_curves(trained / RESULTS_FILE, folder / CURVES)
    (folder / CARD).write_text(card_of(recipe, curves=has_curves), encoding="utf-8")
    for name in (CARD, RECIPE, *([CURVES] if has_curves else [])):
        step.artifact(name)


def card_of(recipe: JSON, *, curves: bool) -> str:
    base, name = recipe["base"], recipe["name"]
    whole = recipe["hyperparameters"].get("tuning") == "full"
    what = "All weights" if whole else "A LoRA adapter"
    parts = [
        front_matter(model_name=name, **metadata_of(recipe, "merged" if whole else "adapter")),
        f"# {name}",
        f"{what} of {base['name'] if base else 'a base'}, trained on {recipe['data']['rows']['train']} rows "
        f"by job {recipe['job']}. The same again: `lathe reproduce {name}`.",
        *data_section(recipe, public=False),
        *training_section(recipe, recipe["result"]),
        *(curves_section(recipe) if curves else []),
        *evaluation_section(recipe["evaluation"], public=False),
        *verified_section(recipe),
        *environment_section(recipe["environment"]),
    ]
    return "\n\n".join(parts) + "\n"
