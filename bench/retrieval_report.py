"""What `bench.retrieval` found, as tables for people."""

from collections.abc import Iterator
from typing import Any

from bench.retrieval_scores import MEASURES

NAME, CELL = 32, 22


def report(result: dict[str, Any]) -> str:
    return "\n".join(_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['texts']} texts, {result['characters']:,} characters, {result['chunks']} chunks of "
        f"{result['chunk_tokens']} tokens; {result['embedding_model']}"
    )
    yield from (f"not on this machine: {name}" for name in result["missing_texts"])
    yield from (f"another version than was labelled: {name}" for name in result["other_versions"])
    yield from (f"left out: {what}" for what in result["left_out"])
    yield f"{result['rewritten']} questions in other words by {result['rewritten_by']}"
    for half, told in result["halves"].items():
        yield f"\n{half}: {told['questions']} questions"
        yield from _modes(told["modes"])
        yield from _kinds(told["modes"])
        yield from map(_refusal, told["refusals"])
    yield "\ngoal, held out: hybrid finds what the better of its two parts finds, in recall@5 and MRR"
    yield from (f"missed: {missed}" for missed in result["missed_goals"])


def _modes(modes: dict[str, Any]) -> Iterator[str]:
    yield " " * NAME + "".join(f"{name:>{CELL}}" for name in MEASURES)
    for mode, measures in modes.items():
        cells = [measures[name] for name in MEASURES]
        texts = (f"{cell['value']:.3f} ({cell['low']:.2f}-{cell['high']:.2f})" for cell in cells)
        yield f"{mode:{NAME}}" + "".join(f"{cell:>{CELL}}" for cell in texts)


def _kinds(modes: dict[str, Any]) -> Iterator[str]:
    yield f"{'recall@5 and MRR of':{NAME}}" + "".join(f"{mode:>{CELL}}" for mode in modes)
    for kind, first in next(iter(modes.values()))["kinds"].items():
        own = [measures["kinds"][kind] for measures in modes.values()]
        cells = (f"{each['recall@5']:.2f} {each['MRR@10']:.2f}" for each in own)
        title = f"{kind} ({first['questions']})"
        yield f"{title:{NAME}}" + "".join(f"{cell:>{CELL}}" for cell in cells)


def _refusal(row: dict[str, float]) -> str:
    return (
        f"min_similarity {row['min_similarity']:.2f} leaves nothing for {row['answerable_refused']:.1%} of "
        f"the answerable questions, and for {row['unanswerable_refused']:.1%} of the unanswerable ones"
    )
