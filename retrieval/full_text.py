"""Search by words: which chunks hold words of a query, those with more, rarer and repeated ones first.

A query is parsed as each text search configuration that the scope holds, since each has other stems. What a
word counts for falls with the number of passages that have it, as in BM25 (Robertson and Zaragoza 2009); a
passage's score is the sum over the query's words, one that is repeated counting ever less more. `ts_rank`
does the latter, and takes four weights, which four classes of words share.

Only so many passages are ranked, since each costs some 10 µs: all with any of the query's words while those
are few enough. Else all with one of its rarer words, and of the others those with all of its common words,
and those with the rarest of these together with another one.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    REAL,
    ColumnElement,
    Select,
    TableValuedAlias,
    Text,
    and_,
    cast,
    func,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, aggregate_order_by
from sqlalchemy.orm import Session

from db.languages import is_unspaced
from db.models import Chunk, Collection, Document

# What to tune.
RANKED_MOST = 2_000  # passages, of each of the three kinds
QUERY_WORDS_MOST = 32
LENGTH_NORMALIZATION = 1  # of ts_rank: by 1 + the logarithm of the passage's length

CLASSES = "ABCD"  # of words, the rarest first
# What Postgres's statistics know of words that many passages have; others are counted.
COMMON_WORDS = text(
    """
    SELECT word, share
    FROM pg_stats, unnest(
        most_common_elems::text::text[],
        most_common_elem_freqs[1:cardinality(most_common_elems::text::text[])]
    ) AS common (word, share)
    WHERE schemaname = current_schema() AND tablename = 'chunks' AND attname = 'words' AND word = ANY (:words)
    """
)


@dataclass(frozen=True)
class Word:
    """A stemmed word of a query, the number of passages that have it, and what it counts for."""

    text: str
    is_prefix: bool
    passages: int = 0
    weight: float = 0.0

    @property
    def query(self) -> str:
        """As a tsquery is written."""
        quoted = self.text.replace("\\", "\\\\").replace("'", "''")
        return f"'{quoted}'" + (":*" if self.is_prefix else "")


class FullText:
    """Search by words in collections, as if they were one.

    Args:
        where: on `Document`, of the documents that are searched.
        most: how many passages a query may find.
    """

    def __init__(
        self,
        session: Session,
        *,
        project_id: str,
        collections: Sequence[Collection],
        where: ColumnElement[bool] | None,
        most: int,
        ranked_most: int = RANKED_MOST,
    ) -> None:
        self._session = session
        self._most = most
        self._ranked_most = ranked_most
        ids = [collection.id for collection in collections]
        self._documents = and_(Document.collection_id.in_(ids), Document.project_id == project_id)
        self._chunks = select(Chunk.id, Chunk.words).where(
            Chunk.collection_id.in_(ids), Chunk.project_id == project_id
        )
        if where is not None:
            self._documents = and_(self._documents, where)
            documents = select(Document.id).where(self._documents)
            fitting = documents.cte("fitting").prefix_with("MATERIALIZED", dialect="postgresql")
            self._chunks = self._chunks.join(fitting, fitting.c.id == Chunk.document_id)
        self.is_bounded = False  # whether a query had words that too many passages have

    def matching(self, query: str) -> list[int]:
        """Chunks with any of the query's words, the best first."""
        scored: list[tuple[float, int]] = []
        for configuration, words in self._words(query):
            scored += self._ranked(configuration, words)
        scored.sort(key=lambda row: (-row[0], row[1]))
        return [chunk_id for _, chunk_id in scored[: self._most]]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """How many chunks there are of each configuration."""
        query = select(Document.configuration, func.sum(Document.chunk_count)).where(self._documents)
        rows = self._session.execute(query.group_by(Document.configuration))
        return {configuration: int(size) for configuration, size in rows}

    def _of(self, configuration: ColumnElement[str] | str) -> Select[Any]:
        return self._chunks.where(Chunk.configuration == configuration)

    def _words(self, query: str) -> Iterator[tuple[str, list[Word]]]:
        """For each configuration the words of the query that it has passages of, the rarest first."""
        if not self._sizes:
            return
        names = _each(self._sizes)
        parsed = func.unnest(func.chunk_words(names.c.value, query))
        lexeme = parsed.table_valued("lexeme", "positions", "weights").lateral()
        in_order = func.array_agg(aggregate_order_by(lexeme.c.lexeme, lexeme.c.positions))
        joined = select(names.c.value, in_order).join_from(names, lexeme, literal(True))
        for name, lexemes in self._session.execute(joined.group_by(names.c.value)):
            words = list(query_words(lexemes))
            if len(words) > QUERY_WORDS_MOST:
                self.is_bounded = True
            counted = self._counted(name, words[:QUERY_WORDS_MOST])
            yield name, sorted((word for word in counted if word.passages), key=lambda word: word.passages)

    def _counted(self, configuration: str, words: Sequence[Word]) -> list[Word]:
        size = self._sizes[configuration]
        known: dict[str, int] = {}
        if size > self._ranked_most:
            rows = self._session.execute(COMMON_WORDS, {"words": [word.text for word in words]})
            known = {word: max(1, round(share * size)) for word, share in rows}
        unknown = [word for word in words if word.is_prefix or word.text not in known]
        queries = _each([word.query for word in unknown])
        having = self._of(configuration).where(Chunk.words.op("@@")(cast(queries.c.value, TSQUERY)))
        some = having.with_only_columns(literal(1)).limit(self._ranked_most + 1).correlate(queries)
        counted = select(func.count()).select_from(some.subquery()).scalar_subquery()
        counts = dict(self._session.execute(select(queries.c.value, counted)).all())
        return [_weighted(word, counts.get(word.query) or known.get(word.text, 0), size) for word in words]

    def _ranked(self, configuration: str, words: Sequence[Word]) -> list[tuple[float, int]]:
        if not words:
            return []
        conditions, is_bounded = _conditions(words, self._ranked_most)
        self.is_bounded |= is_bounded
        candidates = union_all(
            *(
                self._of(configuration)
                .with_only_columns(Chunk.id, Chunk.words)
                .where(Chunk.words.op("@@")(cast(condition, TSQUERY)))
                .limit(self._ranked_most)
                .subquery()
                .select()
                for condition in conditions
            )
        ).subquery()
        score = _score(candidates.c.words, words)
        query = select(score, candidates.c.id).order_by(score.desc(), candidates.c.id).limit(self._most)
        # ts_rank divides by the number of words, and `_score` by the greatest weight.
        scale = len(words) * max(word.weight for word in words)
        return [(rank * scale, chunk_id) for rank, chunk_id in self._session.execute(query)]


def _each(values: Iterable[str]) -> TableValuedAlias:
    return func.unnest(cast(list(values), ARRAY(Text))).table_valued("value").render_derived()


def query_words(lexemes: Sequence[str]) -> Iterator[Word]:
    """What to look for.

    A character that ends a run of those that are written without spaces is part of the pair before it; alone
    it is the beginning of a pair, wherever it stands. Punctuation, a letter in some locales, is no word.
    """
    ends = {lexeme[1] for lexeme in lexemes if len(lexeme) == 2 and is_unspaced(lexeme[0])}
    for lexeme in lexemes:
        is_single = len(lexeme) == 1 and is_unspaced(lexeme)
        if any(map(str.isalnum, lexeme)) and not (is_single and lexeme in ends):
            yield Word(lexeme, is_single)


def _weighted(word: Word, passages: int, size: int) -> Word:
    size = max(size, passages)
    weight = math.log(1 + (size - passages + 0.5) / (passages + 0.5))
    return Word(word.text, word.is_prefix, passages, weight)


def _conditions(words: Sequence[Word], ranked_most: int) -> tuple[list[str], bool]:
    """What the passages that are ranked have to fit, and whether others with a word of the query do not."""
    rare: list[Word] = []
    common: list[Word] = []
    total = 0
    for word in words:
        total += word.passages
        (rare if total <= ranked_most else common).append(word)
    if not common:
        return [_any_of(rare)], False
    all_of_them = " & ".join(word.query for word in common)
    conditions = [all_of_them]
    if len(common) > 2:
        conditions.append(f"{common[0].query} & ({_any_of(common[1:])}) & !({all_of_them})")
    if rare:
        conditions = [_any_of(rare), *(f"{condition} & !({_any_of(rare)})" for condition in conditions)]
    return conditions, True


def _any_of(words: Sequence[Word]) -> str:
    return " | ".join(word.query for word in words)


def _score(passage: ColumnElement[Any], words: Sequence[Word]) -> ColumnElement[float]:
    """The sum of the words' weights, each class of words having the mean of its own."""
    classes: dict[str, list[Word]] = {name: [] for name in CLASSES}
    for position, word in enumerate(words):
        # Which words of the passage a prefix finds is not known: they keep the last class, the default.
        number = (
            len(CLASSES) - 1 if word.is_prefix else position * len(CLASSES) // max(len(words), len(CLASSES))
        )
        classes[CLASSES[number]].append(word)
    for name in CLASSES[:-1]:
        if members := [word.text for word in classes[name]]:
            passage = func.setweight(passage, name, cast(members, ARRAY(Text)))
    greatest = max(word.weight for word in words)
    weights = [
        sum(word.weight for word in members) / len(members) / greatest if members else 0.0
        for members in reversed(classes.values())
    ]
    query = cast(_any_of(words), TSQUERY)
    return func.ts_rank(cast(weights, ARRAY(REAL)), passage, query, LENGTH_NORMALIZATION)
