"""Read, check, split and count the rows of a fine-tune, and settle what `auto` means for it.

Nothing is silent: what was ignored, merged, doubled or would be cut is told as an event and stands in
the result.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from training_data.hyperparameters import resolve
from training_data.json_files import write_json
from training_data.model_shape import ALL_LINEAR, ModelShape
from training_data.presets import told
from training_data.rows import read_prepared
from training_data.tokens import ChatTokenizer, read_template
from worker.step import Step
from worker.steps.base_files import weights_hash
from worker.steps.base_model import context_length, copy_tokenizer, fetch_base, shape_of
from worker.steps.beforehand import see_that_it_can_be_trained
from worker.steps.dataset import SystemTurns
from worker.steps.gptq import check_quantized_base, merge_base_revision
from worker.steps.parallel import require_deepspeed
from worker.steps.parts import LEFT_OUT, NAMES, Parts
from worker.steps.read_parts import files_read, read_parts, tell_cut
from worker.steps.reckoning import Counted, Estimate, reckon
from worker.steps.reckoning import tell as tell_estimate
from worker.steps.rewards import see_rewards
from worker.steps.runtime import prepare_runtime
from worker.steps.served_files import publishes_adapter
from worker.steps.stacking import with_its_adapter


def run(step: Step) -> dict[str, Any]:
    """Leave train.jsonl, validation.jsonl, test.jsonl, report.json and the base's tokenizer.

    Raises:
        InvalidInput: what was asked for cannot be trained, or cannot fit where it would be.
    """
    prepare_runtime(step.input.settings.threads)
    params = with_its_adapter(step, FineTuneParams.model_validate(step.input.params))
    require_deepspeed(step)
    if publishes_adapter(step):
        from worker.steps.adapter_export import check_server  # which brings the client of a server along

        check_server(step)
    base = fetch_base(step.input.require_base(), step, quantized_too=True)
    result, estimate = prepare_rows(step, params, base, shape_of(base))
    if step.input.rewards:
        result["reward_columns"] = see_rewards(step)
    estimate.require_fit()
    tell_estimate(step, estimate)
    return result


def prepare_rows(
    step: Step,
    params: FineTuneParams,
    base: Path,
    shape: ModelShape,
    *,
    downloaded: bool = True,
    every: int = 1,
) -> tuple[dict[str, Any], Estimate]:
    """Read, check, split, count and write the rows, and estimate what training on them takes.

    Args:
        base: the folder of the base; its weights need not be `downloaded`.
        every: take only every so manieth row; all else is reckoned with that many more.
    """
    named = step.input.require_base()
    stored = check_quantized_base(step, params, base)
    copy_tokenizer(base, step.input.folder / "tokenizer")
    _, template_source = read_template(base)
    tokenizer = ChatTokenizer(step.input.folder / "tokenizer")
    read = read_parts(
        step, params, tokenizer, method=params.method, assistant_only=params.assistant_only_loss, every=every
    )
    parts, snapshot = read.parts, read.snapshot
    parts.write(step.input.folder)

    chosen = resolve(
        params.model_dump(mode="json") | ({"bits": stored.bits} if stored is not None else {}),
        parameters=shape.parameters,
        rows=parts.counts()["train"] * every,
        longest=max(parts.dataset.longest),
        context_length=context_length(base),
        tokens=parts.train_tokens() * every,
        labels=_labels(step) if params.method == "kto" else None,
    )
    if stored is not None and chosen["lora_target_modules"] == ALL_LINEAR:
        # peft looks for torch's own linear layers, of which such a base has none.
        chosen["lora_target_modules"] = shape.linear_names()
    see_that_it_can_be_trained(
        step,
        params,
        chosen,
        base=base,
        tokenizer=tokenizer,
        shape=shape,
        evaluated=parts.counts()["validation"] > 0,
    )
    said = told(params.model_dump(mode="json"), chosen)
    if said is not None:
        step.event(said, preset=params.preset)
    estimate = reckon(step, params, chosen, shape, _counted(step, parts, every), downloaded=downloaded)
    chosen = estimate.chosen
    answer = chosen.get("max_completion_length", 0)
    cut = tell_cut(step, parts, chosen["max_length"], context_length(base), answer=answer)
    result = _result(
        parts=parts,
        chosen=chosen,
        system=read.system,
        seed=read.seed,
        cut=cut,
        template_source=template_source,
    )
    result["estimate"] = estimate.told
    if named.source == "hub":
        result["base_revision"] = base.name  # the client's cache names a snapshot by its commit
        step.event(f"{named.name} is taken at commit {base.name}.", revision=base.name)
    else:
        # A folder may hold another model by the time of the export.
        result["base_weights"] = weights_hash(base)
    merged = named.merge_base
    if merged is not None and merged.source == "hub":
        result["merge_base_revision"] = merge_base_revision(step, merged)
    if snapshot is not None:
        result["dataset"] = {"name": snapshot.path.name, "rows": snapshot.rows, "sha256": snapshot.sha256}
    write_json(step.input.folder / "report.json", {**result, "cut_lines": cut})
    step.artifact("report.json")
    _tell_summary(step, result)
    return result, estimate


def _counted(step: Step, parts: Parts, every: int) -> Counted:
    written = sum((step.input.folder / f"{name}.jsonl").stat().st_size for name in NAMES)
    return Counted(
        rows=parts.counts()["train"] * every,
        tokens=parts.train_tokens() * every,
        longest=max(parts.dataset.longest),
        every=every,
        row_bytes=written * every,
    )


def _labels(step: Step) -> Counter[bool]:
    """Count the good and the bad answers that are trained on, and tell.

    Raises:
        InvalidInput: there is one row alone, so that no other's answer can be given to its question.
    """
    labels = Counter(bool(row.label) for row in read_prepared(step.input.folder / "train.jsonl"))
    if labels.total() < 2:
        raise InvalidInput("kto needs at least two rows to train on: there is one.", param="training_file")
    if len(labels) < 2:
        step.event(
            f"All {labels.total()} answers are labelled {'good' if labels[True] else 'bad'}: nothing tells "
            "what is better than what.",
            level="warn",
        )
        return labels
    step.event(
        f"{labels[True]} answers are labelled good and {labels[False]} bad.",
        good=labels[True],
        bad=labels[False],
    )
    return labels


def _result(
    *,
    parts: Parts,
    chosen: dict[str, Any],
    system: SystemTurns,
    seed: int,
    cut: dict[str, dict[str, list[int]]],
    template_source: str,
) -> dict[str, Any]:
    rows, tokens, dataset = parts.counts(), parts.train_tokens(), parts.dataset
    cut_rows = [lines for files in cut.values() for lines in files.values()]
    return {
        "rows": rows,
        "left_out": parts.of.count(LEFT_OUT),
        "tokens": {
            "train": tokens,
            "mean": tokens / rows["train"],
            "longest": max(dataset.longest),
            "over_max_length": sum(map(len, cut_rows)),
        },
        "data_files": files_read(dataset),
        "max_length": chosen["max_length"],
        "has_system_prompt": system.supported,
        "system_merged": system.merged_rows > 0,
        "seed": seed,
        "chat_template_source": template_source,
        "hyperparameters": chosen,
    }


def _tell_summary(step: Step, result: dict[str, Any]) -> None:
    rows, tokens = result["rows"], result["tokens"]
    step.event(
        f"{rows['train']} rows to train on, {rows['validation']} to validate, {rows['test']} to test; "
        f"{tokens['train']:,} tokens, {tokens['longest']} in the longest row, max_length "
        f"{result['max_length']}.",
        rows=rows,
        tokens=tokens,
    )
    if result["chat_template_source"].startswith("lathe:"):
        step.event(
            "The base model brings no chat template: a plain one of questions and answers is used.",
            level="warn",
            chat_template_source=result["chat_template_source"],
        )
