"""Recipes of fine-tunes: the params that run one again, and two of them held against each other."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from cli.text import figure, harmless
from db.params.fine_tune import FineTuneParams

JSON = dict[str, Any]
AUTO = "auto"
LOSSES = ("train_loss", "final_loss", "eval_loss", "final_reward", "eval_reward")
# Given together these are refused: what settles the others was given.
SETTLED_BY = {
    "learning_rate_multiplier": ("learning_rate",),
    "effective_batch_size": ("batch_size", "gradient_accumulation_steps"),
}
NAME_LIMIT = 63


def params_of_recipe(recipe: JSON, *, name: str | None) -> JSON:
    """The params of the second run: what `auto` came to is given, and the base and the seed are fixed."""
    params = dict(recipe["params"])
    kept = {
        other
        for settling, others in SETTLED_BY.items()
        if params.get(settling, AUTO) != AUTO
        for other in (*others, settling)
    }
    for field, value in recipe["hyperparameters"].items():
        if params.get(field) == AUTO and field not in {*kept, *SETTLED_BY} and _can_be_given(field, value):
            params[field] = value
    base = recipe["base"]
    if base is not None:
        revision = f"@{base['revision']}" if base.get("revision") else ""
        params["base_model"] = f"{base['name']}{revision}"
    params["name"] = name or f"{params['name'][: NAME_LIMIT - 6]}-again"
    return params | {"seed": recipe["seed"], "alias": None}


def _can_be_given(field: str, value: Any) -> bool:
    """Whether a param takes what `auto` came to; all linear layers, for one, `auto` alone can say."""
    annotation: Any = FineTuneParams.model_fields[field].annotation
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def compare_recipes(first: JSON, second: JSON) -> JSON:
    """What is equal and what is not.

    Returns:
        `identical`: whether the trained weights are the same to the last bit; `losses` of both with their
        difference; `differs`: what went in otherwise, as [what, then, now].
    """
    losses = {
        name: {"then": then, "now": now, "difference": now - then}
        for name in LOSSES
        if (then := first["result"].get(name)) is not None and (now := second["result"].get(name)) is not None
    }
    return {
        "first": first["job"],
        "second": second["job"],
        "identical": bool(first["trained"]) and first["trained"] == second["trained"],
        "trained": {"then": first["trained"], "now": second["trained"]},
        "losses": losses,
        "differs": [
            *_differences("rows", first["data"]["splits"], second["data"]["splits"]),
            *_differences("base", first["base"] or {}, second["base"] or {}),
            *_differences("start", first.get("start") or {}, second.get("start") or {}),
            *_differences("reward", first.get("rewards") or {}, second.get("rewards") or {}),
            *_differences("template", first["template"], second["template"]),
            *_differences("", {"seed": first["seed"]}, {"seed": second["seed"]}),
            *_differences("hyperparameter", first["hyperparameters"], second["hyperparameters"]),
            *_environment(first["environment"] or {}, second["environment"] or {}),
        ],
    }


def _environment(first: JSON, second: JSON) -> list[list[Any]]:
    packages = _differences("", first.get("packages") or {}, second.get("packages") or {})
    rest = [{name: value for name, value in each.items() if name != "packages"} for each in (first, second)]
    return [*packages, *_differences("", *rest)]


def _differences(what: str, first: JSON, second: JSON) -> list[list[Any]]:
    names = dict.fromkeys([*first, *second])
    return [
        [f"{what} {name}".strip(), first.get(name), second.get(name)]
        for name in names
        if first.get(name) != second.get(name)
    ]


def print_comparison(found: JSON, console: Console) -> None:
    if found["identical"]:
        console.print("[green]The same[/]: the trained weights are equal to the last bit.")
    else:
        console.print("[yellow]Not the same[/]: the trained weights differ.")
    for name, each in found["losses"].items():
        if not found["identical"]:
            difference = f"{each['difference']:+.2e}" if each["difference"] else "none"
            console.print(
                f"  {name}: {figure(each['then'])} then, {figure(each['now'])} now (difference {difference})"
            )
    for what, then, now in found["differs"]:
        console.print(
            f"  {harmless(what)}: {harmless(str(then))} then, {harmless(str(now))} now", markup=False
        )
    if not found["differs"]:
        console.print("Rows, base, template, parameters and environment are the same.", style="dim")
