"""What a preset sets, in place of what `auto` would choose; whatever a request gives besides wins.

balanced   what `auto` chooses, by the model's size and the number of rows (`hyperparameters.py`).
fast       a small adapter, and half the passes: to see whether the rows are worth more.
best       a large adapter on a base that is not rounded. A high rank learns as much as all weights do
           (Biderman et al. 2024, arXiv:2405.09673; Schulman et al. 2025, "LoRA Without Regret"), given the
           scale of rsLoRA (Kalajdzievski 2023, arXiv:2312.03732).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AUTO = "auto"
FULL = "full"


@dataclass(frozen=True)
class Preset:
    """Args:
    sets: hyperparameters by the names of their params.
    adapter: those that only a training of an adapter has.
    epochs_times: the passes over the rows, of those that auto would choose.
    """

    sets: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    epochs_times: float = 1.0


PRESETS = {
    "fast": Preset(adapter={"lora_rank": 8}, epochs_times=0.5),
    "balanced": Preset(),
    "best": Preset(adapter={"lora_rank": 64, "use_rslora": True, "bits": 16}),
}


def of_preset(params: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that the params' preset sets: those of them that are not given."""
    preset = PRESETS[params.get("preset") or "balanced"]
    sets = preset.sets if params["tuning"] == FULL else {**preset.sets, **preset.adapter}
    return {name: value for name, value in sets.items() if params[name] == AUTO}


def epochs_times(params: Mapping[str, Any]) -> float:
    return PRESETS[params.get("preset") or "balanced"].epochs_times


def told(params: Mapping[str, Any], chosen: Mapping[str, Any]) -> str | None:
    """What to say of the preset once all is chosen; None where none was asked for."""
    name = params.get("preset")
    if name is None:
        return None
    sets = [f"{field} {json.dumps(value)}" for field, value in of_preset(params).items()]
    if epochs_times(params) != 1.0 and params["epochs"] == AUTO and params["max_steps"] is None:
        sets.append(f"epochs {chosen['epochs']:g}, which is {epochs_times(params):g} times what auto chooses")
    given = [field for field in PRESETS[name].adapter if params[field] != AUTO]
    kept = f" These are given, and stay: {', '.join(given)}." if given else ""
    return f"The preset {name} sets {', '.join(sets) or 'nothing beyond what auto chooses'}.{kept}"
