"""How well search finds what was asked for:
`python -m bench.retrieval [--quick] [--seed N] [--json] [--rewrite-with GGUF]`.

Some 260 questions about 64 real texts (`retrieval_texts`), half of them for tuning, half held out, by text.
The texts are read, cut, embedded by a llama-server and loaded into a Postgres by the product's own functions,
and searched by its own search. Each figure has its interval; a missed goal is exit status 1.
Multi-query searches with rewrites of the project's engineers', written from the questions alone, or with
those of a model of yours; and with nonsense, to see what a bad rewriter costs.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

import migrations
from bench.retrieval_collection import Embedder, cut_texts, embed_texts, load, read_texts
from bench.retrieval_labels import HALVES, KINDS, UNANSWERABLE, Question, find_quote, load_questions, ranks_of
from bench.retrieval_report import report
from bench.retrieval_scores import DEPTH, MEASURES, Outcome, interval, mean
from bench.retrieval_servers import ModelServers
from bench.retrieval_texts import SourceText, find_texts
from bench.retrieval_variants import load_rewrites, nonsense_for, variants_of
from bench.stack import Stack
from db.models import Collection
from db.session import make_engine
from retrieval.chunking import Chunking
from retrieval.content import Content
from retrieval.language import detect
from retrieval.search import Found, Query, Ranking, Weights, search
from retrieval.variants import like_the_question

QUICK_BYTES = 12_000
MULTI_QUERY = "hybrid + multi-query"
NONSENSE = "with nonsense"
UNGUARDED = " unguarded"  # every variant is searched with, all together counting as the question does
MODES = {
    "vector": Ranking(weights=Weights(words=0.0)),
    "full text": Ranking(weights=Weights(vector=0.0)),
    "hybrid": Ranking(),
    "hybrid + MMR (0.2)": Ranking(diversity=0.2),
    MULTI_QUERY: Ranking(),
    MULTI_QUERY + UNGUARDED: Ranking(),
    NONSENSE: Ranking(),
    NONSENSE + UNGUARDED: Ranking(),
}
Variants = dict[str, dict[str, list[str]]]  # of a mode, of a question
GOAL_MEASURES = ("recall@5", "MRR@10")
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)

Search = Callable[[Question, str], Found]


@dataclass(frozen=True)
class Labelled:
    """A question whose quotes are in the texts of this machine, each at one or more places."""

    question: Question
    places: list[list[tuple[int, int]]]


def label(questions: Sequence[Question], contents: dict[str, Content]) -> tuple[list[Labelled], list[str]]:
    """Returns:
    the questions that can be judged here, and what is left out and why.
    """
    labelled, left_out = [], []
    for question in questions:
        if question.text is None:
            continue
        content = contents.get(question.text)
        places = [find_quote(quote, content.text) for quote in question.quotes] if content else []
        if places and all(places):
            labelled.append(Labelled(question, places))
        else:
            why = "the quote is not in it" if content else "the text is not here"
            left_out.append(f"{question.text}: {question.question!r}: {why}")
    return labelled, left_out


def judge(labelled: Labelled, found: Found) -> Outcome:
    question = labelled.question
    passages = [
        (hit.chunk.start_char, hit.chunk.end_char) if hit.document.filename == question.text else (0, 0)
        for hit in found.hits
    ]
    assert question.text is not None
    return Outcome(question.text, question.kind, ranks_of(labelled.places, passages))


def figures(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Of a mode's outcomes: each measure with its interval, and two of them for each kind of question."""
    told: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        low, high = interval(outcomes, measure, seed)
        told[name] = {
            "value": round(mean(outcomes, measure), 3),
            "low": round(low, 3),
            "high": round(high, 3),
        }
    told["kinds"] = {
        kind: {name: round(mean(own, MEASURES[name]), 3) for name in GOAL_MEASURES} | {"questions": len(own)}
        for kind in KINDS
        if (own := [outcome for outcome in outcomes if outcome.kind == kind])
    }
    return told


def refusals(ask: Search, questions: Sequence[Question]) -> list[dict[str, float]]:
    """For thresholds of similarity: the share of questions of which nothing is left, by kind."""
    best: dict[bool, list[float]] = {True: [], False: []}
    for question in questions:
        found = ask(question, "vector")
        best[question.kind == UNANSWERABLE].append(found.hits[0].similarity if found.hits else 0.0)
    return [
        {
            "min_similarity": threshold,
            "answerable_refused": _share_below(best[False], threshold),
            "unanswerable_refused": _share_below(best[True], threshold),
        }
        for threshold in THRESHOLDS
    ]


def _share_below(values: Sequence[float], threshold: float) -> float:
    return round(sum(value < threshold for value in values) / len(values), 3) if values else 0.0


def missed_goals(modes: dict[str, dict[str, Any]]) -> list[str]:
    """Hybrid search is to find at least as much as the better of its two parts."""
    missed = []
    for name in GOAL_MEASURES:
        for part in ("vector", "full text"):
            ours, theirs = modes["hybrid"][name]["value"], modes[part][name]["value"]
            if ours < theirs:
                missed.append(f"{name} of hybrid is {ours}, that of {part} {theirs}")
    return missed


def measure(
    ask: Search,
    modes: Sequence[str],
    labelled: Sequence[Labelled],
    questions: Sequence[Question],
    seed: int,
) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for half in HALVES:
        own = [each for each in labelled if each.question.half == half]
        if not own:
            continue
        told_of_modes = {
            mode: figures([judge(each, ask(each.question, mode)) for each in own], seed) for mode in modes
        }
        of_half = [question for question in questions if question.half == half]
        told[half] = {"questions": len(own), "modes": told_of_modes, "refusals": refusals(ask, of_half)}
    return told


def chosen_texts(is_quick: bool) -> tuple[list[SourceText], list[str]]:
    texts, missing = find_texts()
    if is_quick:
        texts = [each for each in texts if len(each.data) <= QUICK_BYTES]
        missing = []
    return texts, missing


class Searches:
    """The product's search in the loaded collection, in each of the modes."""

    def __init__(
        self, session: Session, collection: Collection, embedder: Embedder, variants: Variants
    ) -> None:
        self._session = session
        self._collection = collection
        self._embedder = embedder
        self._variants = variants

    def ask(self, question: Question, mode: str) -> Found:
        asked = self._queries([question.question])
        variants = self._variants.get(mode.removesuffix(UNGUARDED), {}).get(question.question, [])
        queries = self._queries(variants)
        if mode.endswith(UNGUARDED):
            kept = [replace(query, weight=1 / len(queries)) for query in queries]
        else:
            kept, _ = like_the_question(asked, queries)
        return search(
            self._session,
            project_id=self._collection.project_id,
            collections=[self._collection],
            queries=[*asked, *kept],
            limit=DEPTH,
            ranking=MODES[mode],
        )

    def _queries(self, texts: Sequence[str]) -> list[Query]:
        return [Query(*each) for each in zip(texts, self._embedder.query_vectors(texts), strict=True)]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    texts, missing = chosen_texts(arguments.quick)
    contents = read_texts(texts)
    questions = [
        each for each in load_questions() if each.text is None or not arguments.quick or each.text in contents
    ]
    labelled, left_out = label(questions, contents)
    chunks = cut_texts(contents, Chunking())
    languages = {name: detect(content.text) for name, content in contents.items()}
    with (
        tempfile.TemporaryDirectory(prefix="lathe-bench-") as folder,
        contextlib.ExitStack() as ending,
    ):
        stack = Stack(Path(folder), ending)
        url = stack.database("bench_retrieval")
        migrations.upgrade(url)
        servers = ModelServers(stack)
        embedder = ending.enter_context(servers.embedder())
        started = time.monotonic()
        passages = embed_texts(texts, chunks, embedder)
        embedding_seconds = time.monotonic() - started
        asked = [question.question for question in questions]
        chat = arguments.rewrite_with and servers.chat(arguments.rewrite_with)
        rewrites = load_rewrites()
        variants = {
            MULTI_QUERY: variants_of(chat, asked) if chat else rewrites,
            NONSENSE: nonsense_for(questions, rewrites, arguments.seed),
        }
        # All of them before the database is asked: it ends a transaction that waits.
        written = [of_mode[question] for of_mode in variants.values() for question in asked]
        embedder.vectors([*asked, *itertools.chain(*written)])
        engine = make_engine(url)
        ending.callback(engine.dispose)
        with Session(engine, expire_on_commit=False) as session:
            collection = load(session, texts, passages, languages, embedder.model)
            session.commit()
            session.execute(text("ANALYZE"))
            session.commit()
            searches = Searches(session, collection, embedder, variants)
            halves = measure(searches.ask, list(MODES), labelled, questions, arguments.seed)
    return {
        "texts": len(texts),
        "characters": sum(len(content.text) for content in contents.values()),
        "chunks": sum(map(len, chunks.values())),
        "chunk_tokens": Chunking().max_tokens,
        "embedding_model": f"{embedder.model.name} ({embedder.model.revision})",
        "embedding_seconds": round(embedding_seconds, 1),
        "rewritten_by": arguments.rewrite_with.name if chat else "the project's engineers",
        "rewritten": sum(bool(variants[MULTI_QUERY][question]) for question in asked),
        "missing_texts": missing,
        "other_versions": [each.name for each in texts if not each.is_the_labelled_one],
        "left_out": left_out,
        "halves": halves,
        "missed_goals": missed_goals(halves["held-out"]["modes"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the short texts, and their questions")
    parser.add_argument(
        "--rewrite-with",
        type=Path,
        metavar="GGUF",
        help="a chat model that writes variants for multi-query, in place of the engineers' rewrites",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print(report(result))
    return 1 if result["missed_goals"] else 0


if __name__ == "__main__":
    sys.exit(main())
