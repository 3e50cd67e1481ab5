"""Fine-tune by trl, peft and bitsandbytes; CPU and CUDA alike.

What differs between learning answers and learning preferences is in `methods.py`; between training an adapter
and training all weights, in `tunings.py`.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training_data.answer_batches import GRPO
from training_data.division import Division
from training_data.hyperparameters import LEAST_BATCHES
from training_data.json_files import read_json
from training_data.tokens import ChatTokenizer
from worker.checkpoints import STATE_FILE
from worker.ranks import run_ranks
from worker.step import Step, Stopped
from worker.steps import together
from worker.steps.base_model import check_type, fetch_base
from worker.steps.division import divided, most_ranks, tell_repeated
from worker.steps.environment import environment_of
from worker.steps.memory_ladder import announce
from worker.steps.methods import METHODS
from worker.steps.parallel import rank_environment, see_that_it_can_go_on, settle_parallel
from worker.steps.ray_train.drive import train_on_cluster
from worker.steps.resuming import as_seen_here, take_also, take_newest
from worker.steps.row_encoding import as_dataset, encode_rows, padding_tokenizer, row_lengths
from worker.steps.runtime import memory_errors_explained, peak_memory_bytes, prepare_runtime, require_disk
from worker.steps.speed_choices import settle_compile, settle_output_layer, settle_speed
from worker.steps.trainer_arguments import (
    refusals_explained,
    reschedule,
    see_that_it_can_begin,
    training_arguments,
)
from worker.steps.training_card import leave_card
from worker.steps.training_results import (
    checkpoint_metrics,
    last_loss,
    mean_loss,
    rewarded,
    tell_if_it_diverged,
    write_results,
)
from worker.steps.tunings import TUNINGS

# Of jobs that were prepared before there was a choice.
EARLIER = {
    "method": "supervised",
    "tuning": "lora",
    "use_rslora": False,
    "use_dora": False,
    "training_args": {},
}


def run(step: Step) -> dict[str, Any]:
    """Train; leaves `adapter/`, or of all weights `model/`, `checkpoints/`, and the card of it."""
    prepare_runtime(step.input.settings.threads)
    folder = fetch_base(step.input.require_base(), step, quantized_too=True)
    chosen = {**EARLIER, **step.input.results["prepare"]["hyperparameters"], **step.input.adjustments}
    least = LEAST_BATCHES.get(chosen["method"], 1)
    division = divided(step, chosen, most_ranks(step), least=least)
    division = settle_parallel(step, folder, chosen, division)
    work = {"base": str(folder), "chosen": chosen, "division": asdict(division)}
    work["advice"] = announce(step, chosen, division)
    if step.input.cluster is not None:
        result = train_on_cluster(step, folder, work, division.ranks)
    elif division.ranks == 1:
        result = run_rank(step, work)
    else:
        with rank_environment(step, division) as environment:
            result = run_ranks(step, division.ranks, __name__, work, environment)
    leave_card(step, result)
    return result


def run_rank(step: Step, work: dict[str, Any]) -> dict[str, Any]:
    """Train as one of several processes, or as the only one; what the first of them returns is the result."""
    with memory_errors_explained(work["advice"]):
        return _train(step, Path(work["base"]), work["chosen"], Division(**work["division"]))


def _train(step: Step, base_folder: Path, chosen: dict[str, Any], division: Division) -> dict[str, Any]:
    import torch

    from worker.steps.quantized_base import compute_dtype, device_name
    from worker.steps.training_progress import BestByEvalLoss, ProgressReporter

    began = time.monotonic()
    torch.set_num_threads(step.input.settings.threads)
    tokenizer = ChatTokenizer(step.input.step_folders["prepare"] / "tokenizer")
    device = device_name(step)
    chosen["compute_dtype"] = str(compute_dtype(chosen["compute_dtype"])).removeprefix("torch.")
    torch.manual_seed(_seed(step))
    check_type(base_folder, step.input.base.name if step.input.base else "")
    progress = ProgressReporter(step)
    best = BestByEvalLoss(step, chosen["early_stopping_patience"], by=METHODS[chosen["method"]].judged_by)
    trainer, division = _build_trainer(
        step, base_folder, chosen, division, tokenizer, progress=progress, best=best
    )
    with memory_errors_explained(announce(step, chosen, division)):  # packed or not, it knows more now
        _fit(step, trainer, division, progress, best)
    if trainer.eval_dataset is not None and best.last_step != trainer.state.global_step:
        trainer.evaluate()  # eval_steps need not divide the steps; the last weights are judged too
    if best.best_loss is not None and best.best_step != trainer.state.global_step:
        best_folder = step.input.folder / "checkpoints" / f"checkpoint-{best.best_step}"
        if together.is_first() or best_folder.exists():  # others may be on machines that do not see it
            trainer.load_weights(best_folder)
        step.event(f"Took the weights of step {best.best_step}, the best by evaluation {best.by}.")
    if together.is_first() or division.sharded:
        TUNINGS[chosen["tuning"]].save(step, trainer.model, tokenizer, base_folder)
    if not together.is_first():
        return {}
    write_results(step, trainer.state.log_history)
    tell_if_it_diverged(step, trainer, chosen)
    return {
        "hyperparameters": chosen,
        "train_loss": mean_loss(trainer),
        "final_loss": last_loss(trainer),
        **best.figures(),
        **rewarded(step, trainer),
        "trained_tokens": progress.tokens,
        "steps": trainer.state.global_step,
        "stopped_early": best.stopped_early,
        "device": device,
        "processes": division.ranks,
        "parallel": division.parallel,
        "tokens_per_second": progress.tokens_per_second,
        "peak_memory_bytes": peak_memory_bytes(torch),
        "seconds": round(time.monotonic() - began, 2),
        "environment": environment_of(step, device),
        "adjustments": step.input.adjustments,
        "best_checkpoint": f"checkpoints/checkpoint-{best.best_step or trainer.state.global_step}",
    }


def _seed(step: Step) -> int:
    return int(step.input.results["prepare"]["seed"])


def _build_trainer(
    step: Step,
    base: Path,
    chosen: dict[str, Any],
    division: Division,
    tokenizer: ChatTokenizer,
    *,
    progress: Any,
    best: Any,
) -> tuple[Any, Division]:
    """The method's trainer, with rows and model loaded, ready to begin, and the division as it has become.

    Raises:
        InvalidInput: what is asked cannot be trained so; the message names the field.
    """
    from transformers.trainer_callback import PrinterCallback

    from worker.steps.training_progress import SavesInTime

    method, tuning = METHODS[chosen["method"]], TUNINGS[chosen["tuning"]]
    prepared = step.input.step_folders["prepare"]
    rows = encode_rows(prepared / "train.jsonl", method, tokenizer, chosen, step)
    validation = encode_rows(prepared / "validation.jsonl", method, tokenizer, chosen, step, required=False)
    model = tuning.load(step, base, chosen, division.sharded)
    division = settle_speed(step, base, chosen, division, lengths=row_lengths(rows), model=model)
    with refusals_explained(chosen):
        arguments = training_arguments(step, method, chosen, division, _seed(step), evaluate=bool(validation))
    with refusals_explained(chosen):
        trainer: Any = method.trainer(
            model=model,
            processing_class=padding_tokenizer(tokenizer),
            args=arguments,
            peft_config=tuning.config(step, chosen),
            train_dataset=as_dataset(rows),
            eval_dataset=as_dataset(validation) if validation else None,
            callbacks=[progress, best, SavesInTime(step, step.input.params.get("save_minutes"))],
            keep=step.input.params.get("keep_checkpoints", 2),
            on_checkpoint=lambda number, folder: step.checkpoint(number, folder, checkpoint_metrics(trainer)),
            on_removed=step.checkpoint_removed,
            best_step=lambda: best.best_step,
            own_state=lambda: {
                **best.state(),
                "tokens": progress.tokens,
                "ranks": division.ranks,
                "parallel": division.parallel,
            },
            **method.besides(step, chosen, tokenizer),
        )
    trainer.remove_callback(PrinterCallback)
    if len(trainer.train_dataset) != step.input.results["prepare"]["rows"]["train"]:
        reschedule(step, trainer, chosen)
    lengths = row_lengths(rows)
    tokens = chosen["total_steps"] * division.effective_batch * sum(lengths) / max(1, len(lengths))
    settle_output_layer(step, base, trainer, chosen, lengths)
    settle_compile(step, base, trainer, chosen, division, tokens=tokens)
    see_that_it_can_begin(trainer, chosen)
    _tell_size(step, trainer, len(rows), chosen, tuning.what)
    if chosen["method"] != GRPO:  # which fills its batches with whole prompts
        tell_repeated(step, len(trainer.train_dataset), division)
    return trainer, division


def _tell_size(step: Step, trainer: Any, rows: int, chosen: dict[str, Any], what: str) -> None:
    """Say how much learns from how much, and see that its checkpoints find room.

    Raises:
        Exhausted: they do not.
    """
    learning = trainer.model.num_parameters(only_trainable=True)
    # A checkpoint holds what learns and Adam's two moments of it, in float32; one is being written beside.
    kept = step.input.params.get("keep_checkpoints", 2) + 2
    require_disk(step.input.folder, 12 * kept * learning, "This training")
    step.event(
        f"{learning:,} {what} learn from {rows} rows in {chosen['total_steps']} steps.",
        trainable_parameters=learning,
    )


def _fit(step: Step, trainer: Any, division: Division, progress: Any, best: Any) -> None:
    """Train to the end, from the newest checkpoint of an earlier attempt if there is one.

    Raises:
        Stopped: asked to, and saved.
    """
    root = step.input.folder / "checkpoints"
    step.save_when_stopped()
    checkpoint = as_seen_here(step, together.from_first(lambda: take_newest(step, root)))
    if checkpoint is not None:
        state = read_json(checkpoint / STATE_FILE)
        see_that_it_can_go_on(step, state, division)
        progress.tokens = state["tokens"]
        if together.from_first(lambda: take_also(step, {state["best_step"]} - {0}, root)):
            best.restore(state)
        else:
            step.event("The best checkpoint so far is lost: what comes is compared anew.", level="warn")
        reached = int(checkpoint.name.removeprefix("checkpoint-"))
        if best.stopped_early or reached >= trainer_steps(trainer):
            trainer.take_weights(checkpoint)
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if step.stop_asked and not best.stopped_early and trainer.state.global_step < trainer.state.max_steps:
        step.event(f"Saved at step {trainer.state.global_step}, to go on from there.")
        raise Stopped


def trainer_steps(trainer: Any) -> int:
    """How many optimiser steps the trainer will make in all."""
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return int(values[-1])
