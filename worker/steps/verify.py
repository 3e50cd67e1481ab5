"""Hold every file that will be served against the trained weights, before anybody can ask it.

The file is served by a llama-server of the step's own, as it will be later. Checked are: what comes next
at each token of known answers (`teacher_forcing`), the golden prompts' token ids against the training's
(`prompt_check`), that answers end, and whose weights the file holds (`gguf_check`). Beyond the bounds the
step fails, with the figures and with what is wrong. What the file answers to some golden prompts is kept,
for the server that is to answer with it must say the same (`publish`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.errors import InvalidInput, StepFailed
from serving.llama_cpp import Tools, require_tools
from serving.openai_compatible import LlamaServer
from training_data.json_files import read_json
from training_data.tokens import ChatTokenizer
from worker.step import BaseWeights, Step
from worker.steps.auto_quantization import Choice, is_choice, measure_asked
from worker.steps.base_cost import BaseCost
from worker.steps.base_files import keep_as_base, weights_hash
from worker.steps.base_model import fetch_base
from worker.steps.evaluation_of_fine_tune import evaluation_of
from worker.steps.export import is_adapter, is_whole, trained_folder
from worker.steps.gguf_check import Findings, GGUFCheck
from worker.steps.golden_answers import GoldenAnswers, answer_golden, write_golden
from worker.steps.golden_prompts import GoldenPrompt, golden_prompts
from worker.steps.merging import sixteen_bit_dtype
from worker.steps.own_answers import answer_prompts
from worker.steps.programs import ServedFile, model_server
from worker.steps.prompt_check import PromptCheck
from worker.steps.runtime import memory_errors_explained, prepare_runtime
from worker.steps.served_files import publishes_adapter, served_file
from worker.steps.teacher_forcing import (
    KL_FLOOR,
    SLOTS,
    Difference,
    ForcedRow,
    Reference,
    ask_all,
    held_against,
    reference_of,
)
from worker.steps.trained_weights import sample_matrices, trained_weights
from worker.steps.trainer_answers import (
    Trainer,
    beside_trainer,
    judge_beside_trainer,
    trainer_cost,
    trainer_of,
)
from worker.steps.verify_rows import choose_rows, end_of_answers

ROWS_FOR_STOPS = 8
# An answer known by heart may be put in other words by a quantised model, but not be endless.
LONGEST_ANSWER = 256
PROBLEMS_TOLD = 3
MEMORY_ADVICE = "Verifying holds the base and its adapter once more in memory: use a machine with more."


@dataclass(frozen=True)
class Bench:
    """What every file is held against."""

    split: str
    rows: list[ForcedRow]
    reference: Reference
    golden: list[GoldenPrompt]
    prompts: PromptCheck
    end: int  # the token that ended each answer of the training
    inside: GGUFCheck
    context: int  # tokens of a slot
    trainer: Trainer | None  # where other weights were trained on than the files are made from


@dataclass(frozen=True)
class Measured:
    """One file: its figures, and what was found wrong with it beside them."""

    figures: dict[str, Any]
    problems: list[str]
    likely: list[str]  # what explains other problems
    answers: GoldenAnswers


def run(step: Step) -> dict[str, Any]:
    """Measure each exported file; returns the figures, per quantization."""
    prepare_runtime(step.input.settings.threads)
    tools = require_tools(step.input.settings)
    exported, folder = step.input.results["export"], step.input.step_folders["export"]
    with memory_errors_explained(MEMORY_ADVICE):
        bench = _prepare(step, int(exported["context_length"]))
        if is_whole(step.input) or step.input.base is None:
            choice = _verify_conversion(step, tools, bench, exported, folder)
        else:
            base = fetch_base(step.input.sixteen_bit_base or step.input.base, step)
            cost = BaseCost(step, tools, base, rows=bench.rows, context=bench.context)
            trainers = trainer_cost(step, tools, base, bench.trainer, rows=bench.rows, context=bench.context)

            def measured(row: dict[str, Any]) -> Measured:
                name = row["quantization"]
                file = _measure(step, tools, bench, served_file(step, tools, row, folder), name)
                return _judge(step, file, cost.of(name), trainers.of(name) if trainers else None)

            choice = measure_asked(step, exported["files"], measured)
    answers = {each.figures["quantization"]: each.answers for each in choice.measured}
    write_golden(step.input.folder, bench.golden, answers)
    return {
        "files": [each.figures for each in choice.measured],
        "published": choice.published,
        "split": bench.split,
        **evaluation_of(step, tools, choice.published),
    }


def _see_that_it_is_the_same(step: Step, base: BaseWeights, folder: Path) -> None:
    """Of a base in a folder, which its owner may have changed since.

    Raises:
        InvalidInput: it is another one than the training began with.
    """
    source = step.input.results["export"].get("source") or {}
    trained_on = step.input.results.get("prepare", source).get("base_weights")
    if trained_on is not None and trained_on != (found := weights_hash(folder)):
        raise InvalidInput(
            f"The base {base.name} is not the one that the training began with: its files had the hash "
            f"{trained_on}, and now have {found}. Put the former ones back, or train again.",
            param="base_model",
            code="base_has_changed",
        )


def _prepare(step: Step, context_length: int) -> Bench:
    trained = trained_folder(step.input)
    base = step.input.sixteen_bit_base if is_adapter(trained) else None
    model_folder = trained if base is None else fetch_base(base, step)
    if base is not None and step.input.base is not None:
        trained_on = fetch_base(step.input.base, step, quantized_too=True)
        _see_that_it_is_the_same(step, step.input.base, trained_on)
    tokenizer = ChatTokenizer(trained)
    split, rows = choose_rows(step.input, tokenizer, context_length)
    with trained_weights(model_folder, None if base is None else trained) as model:
        if not rows:
            split, rows = answer_prompts(step, model, tokenizer, context_length)
        if not rows:
            raise InvalidInput(
                f"No row with an answer fits the model's {context_length} tokens: nothing to verify it with.",
                code="verification_failed",
            )
        reference = reference_of(step, model, rows)
        samples = sample_matrices(model, sixteen_bit_dtype(model_folder))
    if split == "train":
        step.event("There are no held-out rows: the file is verified on training rows.", split=split)
    longest = max(len(row.ids) for row in rows)
    golden, refused = golden_prompts(trained, rows)
    if refused:
        step.event(f"The chat template takes no such conversations: {', '.join(refused)}.", refused=refused)
    described = read_json(trained / "tokenizer.json")["model"]
    inside = GGUFCheck(
        model_folder,
        "the training" if base is None else base.name,
        samples,
        vocabulary=tokenizer.tokenizer.get_vocab_size(with_added_tokens=True),
        merges=len(described["merges"]) if described.get("type") == "BPE" else None,
        beside=publishes_adapter(step),
    )
    return Bench(
        split, rows, reference, golden, PromptCheck(tokenizer), end_of_answers(rows, tokenizer), inside,
        context=min(context_length, longest + LONGEST_ANSWER),
        trainer=trainer_of(step, trained, rows, reference) if base is not None else None,
    )  # fmt: skip


def _judge(step: Step, file: Measured, base: Difference, trainers: Difference | None) -> Measured:
    """Hold one quantised file of a fine-tune to its bounds.

    Args:
        base: what quantising costs the base.
        trainers: what it costs beside the weights that were trained on, where these are others.
    """
    settings, figures = step.input.settings, file.figures
    limit = max(KL_FLOOR, settings.max_kl_ratio * base.kl)
    figures |= {"kl_base": base.kl, "top1_agreement_base": base.top1_agreement, "kl_limit": limit}
    problems = list(file.problems)
    if figures["top1_agreement"] < settings.min_top1_agreement:
        problems.append(
            f"top-1 agreement is {figures['top1_agreement']:.4f}, at least "
            f"{settings.min_top1_agreement} is needed"
        )
    if figures["kl"] > limit:
        problems.append(
            f"KL divergence is {figures['kl']:.5f} nats, at most {limit:.5f} is allowed "
            f"(the same quantisation costs the base {base.kl:.5f})"
        )
    if trainers is not None:
        problems += judge_beside_trainer(
            figures["trainer"],
            trainers,
            min_top1_agreement=settings.min_top1_agreement,
            max_kl_ratio=settings.max_kl_ratio,
        )
    return _judged(step, file, problems)


def _verify_conversion(
    step: Step, tools: Tools, bench: Bench, exported: dict[str, Any], folder: Path
) -> Choice[Measured]:
    """A model from scratch has no base to be held against: judge its 16-bit file, and tell the others."""
    minimum = step.input.settings.min_top1_agreement
    full = _measure(step, tools, bench, ServedFile(folder / exported["full"]), "16-bit")
    problems = list(full.problems)
    if full.figures["top1_agreement"] < minimum:
        problems.append(
            f"top-1 agreement is {full.figures['top1_agreement']:.4f}, at least {minimum} is needed"
        )
    _judged(step, full, problems)

    def measured(row: dict[str, Any]) -> Measured:
        file = _measure(step, tools, bench, ServedFile(folder / row["path"]), row["quantization"])
        file.figures["top1_agreement_16_bit"] = full.figures["top1_agreement"]
        return _judged(step, file, file.problems)

    choice = measure_asked(step, exported["files"], measured)
    if step.input.kind == "pretrain":
        paths = {row["quantization"]: folder / row["path"] for row in exported["files"]}
        keep_as_base(step, trained_folder(step.input), paths)
    return choice


def _measure(step: Step, tools: Tools, bench: Bench, file: ServedFile, quantization: str) -> Measured:
    """Look into one file, and ask it.

    Raises:
        InvalidInput: llama.cpp cannot load it, and it can be told why.
    """
    log = step.input.folder / f"{quantization}.log"
    found = bench.inside.look(file.model)
    try:
        with model_server(step, tools, file, context=bench.context, slots=SLOTS, log=log) as server:
            return _asked(step, server, bench, quantization, found)
    except StepFailed as error:
        reasons = [*found.certain, *found.likely]
        if not reasons:
            raise
        raise _refusal(quantization, [f"llama.cpp cannot load it ({error.message})"], reasons) from error


def _asked(step: Step, server: LlamaServer, bench: Bench, quantization: str, found: Findings) -> Measured:
    told = ask_all(step, server, bench.rows)
    difference = held_against(bench.reference, told)
    prompts, prompt_problems = _prompts(step, server, bench, quantization)
    ends, end_problems = _ends(server, bench)
    figures = {
        "quantization": quantization,
        "top1_agreement": difference.top1_agreement,
        "top1_agreement_all": difference.top1_agreement_all,
        "kl": difference.kl,
        "tokens_compared": difference.tokens,
        "tokens_decided": difference.decided,
        "perplexity": difference.perplexity,
        "perplexity_weights": difference.perplexity_weights,
        "rows": len(bench.rows),
        "split": bench.split,
        "adapter_merged": found.adapter_merged,
        **beside_trainer(bench.trainer, told),
        **prompts,
        **ends,
    }
    problems = [*found.certain, *prompt_problems, *end_problems]
    answers = answer_golden(server, bench.golden, bench.context)
    return Measured(figures, problems, found.likely, answers)


def _prompts(
    step: Step, server: LlamaServer, bench: Bench, quantization: str
) -> tuple[dict[str, Any], list[str]]:
    """Ask for the golden prompts; what differs with tools alone is told, and refuses nothing."""
    found = [(golden, bench.prompts.ask(server, golden)) for golden in bench.golden]
    wrong = [problem for golden, problem in found if problem is not None and golden.learnt]
    tools = [problem for golden, problem in found if not golden.learnt]
    for problem in filter(None, tools):
        step.event(
            f"{quantization}: with tools, which no row of the training had, {problem}",
            level="warn",
            quantization=quantization,
        )
    figures = {
        "template_equal": not wrong,
        "golden_prompts": len(found) - len(tools),
        "tools_equal": not any(tools) if tools else None,
    }
    first_of_each = {problem.what: str(problem) for problem in reversed(wrong)}
    return figures, list(first_of_each.values())[::-1][:PROBLEMS_TOLD]


def _ends(server: LlamaServer, bench: Bench) -> tuple[dict[str, Any], list[str]]:
    """See that the token that ended the training's answers ends the file's, and that it comes."""
    problems = []
    first = bench.rows[0]
    ends = server.ends_with(first.ids[: first.prompt_length], bench.end)
    if not ends:
        problems.append(
            f"the file ends no answer at token {bench.end}, which ended every answer of the training: its "
            "tokenizer.ggml.eos_token_id is another one. Export again with that token as eos_token in "
            "tokenizer_config.json"
        )
    stops = _stops(server, bench)
    if not stops["stops"]:
        problems.append("answers that the weights know by heart do not end")
    return {"end_token_ends": ends, **stops}, problems


def _stops(server: LlamaServer, bench: Bench) -> dict[str, Any]:
    """Let it answer. Rows that the weights know by heart must come to their end; others may not know."""
    stopped, must, failed, tokens, seconds = 0, 0, 0, 0, 0.0
    chosen = list(zip(bench.rows, bench.reference.by_heart, strict=True))[:ROWS_FOR_STOPS]
    for row, by_heart in chosen:
        room = bench.context - row.prompt_length
        wanted = 2 * (len(row.ids) - row.prompt_length) + 16
        answer = server.complete(row.ids[: row.prompt_length], max_tokens=min(room, wanted, LONGEST_ANSWER))
        tokens, seconds = tokens + len(answer.tokens), seconds + answer.seconds
        stopped += answer.stopped_by_itself
        must += by_heart
        failed += by_heart and not answer.stopped_by_itself
    return {
        "stops": failed == 0,
        "answers": len(chosen),
        "answers_ended": stopped,
        "answers_by_heart": must,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _judged(step: Step, file: Measured, problems: list[str]) -> Measured:
    """Tell the figures; fail with them when there are problems.

    Raises:
        InvalidInput: code `verification_failed`; the same weights would fail again, so no retry helps.
    """
    figures = file.figures
    name = figures["quantization"]
    step.event(
        f"{name}: top-1 agreement {figures['top1_agreement']:.4f}, KL {figures['kl']:.5f} nats, perplexity "
        f"{figures['perplexity']:.4g} ({figures['perplexity_weights']:.4g} to the weights) over "
        f"{figures['tokens_compared']} tokens of {figures['rows']} rows ({figures['split']}), "
        f"{figures['golden_prompts']} golden prompts; {figures['tokens_per_second'] or 0:.0f} tokens/s.",
        level=("warn" if is_choice(step, name) else "error") if problems else "info",
        **figures,
    )
    if problems:
        raise _refusal(name, problems, file.likely)
    return file


def _refusal(name: str, problems: list[str], reasons: list[str]) -> InvalidInput:
    why = f" The reason: {'; '.join(reasons)}." if reasons else ""
    listed = "; ".join(problem.removesuffix(".") for problem in problems)
    return InvalidInput(
        f"The {name} file does not answer as the trained weights do: {listed}.{why}",
        code="verification_failed",
    )
