"""Going on from an earlier fine-tune: its adapter is trained further, or merged before all weights are."""

from pathlib import Path
from typing import Any

from db.params.fine_tune import FineTuneParams
from db.source_files import check_source, trained_source
from training_data.adapter_configs import CONFIG_FILE, adapter_params
from worker.step import Step


def with_its_adapter(step: Step, params: FineTuneParams) -> FineTuneParams:
    """The params of a training that goes on with an adapter: those that describe it are as they are there."""
    if step.input.start is None:
        return params
    folder = trained_source(step.input.start)
    about = check_source(step.input.start)
    at = f", as of step {about['step_number']}" if about.get("step_number") else ""
    if params.tuning == "full":
        how = "its adapter is merged into the base first" if _has_adapter(folder) else "all its weights go on"
        step.event(f"Starting from {params.start_from}{at}: {how}.", source=about)
        return params
    own = adapter_params(folder)
    step.event(
        f"Starting from {params.start_from}{at}: its adapter is trained further (rank {own['lora_rank']}).",
        source=about,
    )
    return params.model_copy(update=own)


def started_adapter(step: Step) -> Path | None:
    """The adapter that the training begins with, if it does."""
    folder = trained_source(step.input.start) if step.input.start is not None else None
    return folder if folder is not None and _has_adapter(folder) else None


def started_model(step: Step) -> Path | None:
    """The whole model that it begins with, in place of the base."""
    folder = trained_source(step.input.start) if step.input.start is not None else None
    return folder if folder is not None and not _has_adapter(folder) else None


def with_adapter(model: Any, adapter: Path, dropout: float) -> Any:
    """The base with an adapter that is to be trained further."""
    from peft import LoraConfig, PeftModel

    config: Any = LoraConfig.from_pretrained(adapter)
    config.lora_dropout, config.inference_mode = dropout, False
    return PeftModel.from_pretrained(model, adapter, config=config, is_trainable=True)


def _has_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()
