"""Search over real rows, loaded as a worker loads them."""

import random
import struct
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.languages import SIMPLE
from db.models import Collection, Document, Project
from db.queries.collections import create_collection
from db.queries.documents import add_documents
from retrieval.chunking import Chunk
from retrieval.copy_rows import COLUMNS, write_rows
from retrieval.filters import condition
from retrieval.search import Query, Ranking, Weights, search
from tests.embedding_server import DIMENSIONS, embed
from tests.rows import add_file

COPY = f"COPY chunks ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)"


def packed(vector: list[float]) -> bytes:
    return struct.pack(f"<{len(vector)}f", *vector)


def load(
    session: Session,
    folder: Path,
    collection: Collection,
    name: str,
    passages: list[str],
    *,
    attributes: dict[str, object] | None = None,
    vectors: list[list[float]] | None = None,
    configuration: str = SIMPLE,
) -> Document:
    """A document with these passages, one a page."""
    file = add_file(session, f"{name}.txt", id=f"file-{name}", project_id=collection.project_id, sha256=name)
    [document] = add_documents(
        session, collection, [file], attributes=[attributes or {}],
        chunking=[{"max_tokens": 64, "overlap_tokens": 0}], passwords=[None],
    )  # fmt: skip
    chunks = [Chunk(text, 0, len(text), 1, page, page, None) for page, text in enumerate(passages, 1)]
    rows = folder / f"{name}.copy"
    embedded = map(packed, vectors or [embed(text) for text in passages])
    write_rows(rows, (collection.project_id, collection.id, document.id), chunks, embedded, configuration)
    cursor = session.connection().connection.cursor()
    with rows.open("rb") as file_of_rows:
        cursor.copy_expert(COPY, file_of_rows)
    assert cursor.rowcount == len(passages)
    return document


@pytest.fixture
def collection(session: Session) -> Collection:
    return create_collection(session, project_id="default", name="c")


def ask(text: str) -> Query:
    return Query(text, embed(text))


class TestSearch:
    def test_finds_by_vectors_exactly_what_comparing_all_finds(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        chance = random.Random(3)  # noqa: S311 - the same at every run
        vectors = [[chance.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(500)]
        names = [f"passage {number}" for number in range(500)]
        for part in range(5):
            own = names[part * 100 : part * 100 + 100]
            load(
                session, tmp_path, collection, f"d{part}", own, vectors=vectors[part * 100 : part * 100 + 100]
            )
        asked = [chance.gauss(0, 1) for _ in range(DIMENSIONS)]

        def cosine(vector: list[float]) -> float:
            dot = sum(a * b for a, b in zip(vector, asked, strict=True))
            return dot / (sum(a * a for a in vector) * sum(b * b for b in asked)) ** 0.5

        expected = sorted(range(500), key=lambda number: -cosine(vectors[number]))[:10]
        found = search(
            session, project_id="default", collections=[collection], queries=[Query("none", asked)],
            limit=10, ranking=Ranking(Weights(words=0.0)),
        )  # fmt: skip
        assert [hit.chunk.text for hit in found.hits] == [names[number] for number in expected]
        for hit, number in zip(found.hits, expected, strict=True):
            # Half precision keeps eleven bits of each number.
            assert hit.similarity == pytest.approx(cosine(vectors[number]), abs=2e-3)
        assert found.used == ["vector_exact"]

    def test_words_find_what_vectors_do_not(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        unlike = [0.0] * (DIMENSIONS - 1) + [1.0]
        texts = ["The part number is XK-4711.", "Something else entirely.", "Another thing."]
        load(session, tmp_path, collection, "d", texts, vectors=[unlike, embed("xk"), embed("number")])
        found = search(
            session, project_id="default", collections=[collection],
            queries=[Query("Where is XK-4711 installed?", embed("nothing"))], limit=1,
        )  # fmt: skip
        assert found.hits[0].chunk.text == texts[0]
        assert found.used == ["vector_exact", "full_text", "rrf"]

    def test_words_alone_are_ordered_by_words(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        texts = ["A fox, and much else that is of no use here.", "The fox of a fox is a fox."]
        load(session, tmp_path, collection, "d", texts, vectors=[embed("fox"), embed("tax")])
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("fox")],
            limit=10, ranking=Ranking(weights=Weights(vector=0.0)),
        )  # fmt: skip
        assert [hit.chunk.text for hit in found.hits] == texts[::-1]
        assert found.hits[0].score == 1.0
        assert found.used == ["full_text"]

    def test_a_threshold_is_of_the_similarity(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        load(session, tmp_path, collection, "d", ["red fox", "red fox hunts", "tax"])
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("red fox")],
            limit=10, ranking=Ranking(min_similarity=0.75),
        )  # fmt: skip
        assert [hit.chunk.text for hit in found.hits] == ["red fox", "red fox hunts"]

    def test_words_alone_go_on_beyond_what_a_threshold_leaves_out(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        texts = ["fox fox fox fox", "a fox"]
        load(session, tmp_path, collection, "d", texts, vectors=[embed("tax"), embed("fox")])
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("fox")], limit=1,
            ranking=Ranking(Weights(vector=0.0), min_similarity=0.5),
        )  # fmt: skip
        assert [hit.chunk.text for hit in found.hits] == ["a fox"]

    def test_vectors_alone_find_as_many_as_are_asked_for(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        load(session, tmp_path, collection, "d", [f"fox {number}" for number in range(150)])
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("fox")], limit=120,
            ranking=Ranking(Weights(words=0.0)),
        )  # fmt: skip
        assert len(found.hits) == 120

    def test_never_leaves_its_project_or_collections(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        session.add(Project(id="theirs"))
        session.flush()
        theirs = create_collection(session, project_id="theirs", name="c")
        other = create_collection(session, project_id="default", name="other")
        load(session, tmp_path, theirs, "secret", ["the secret recipe"])
        load(session, tmp_path, other, "other", ["the secret garden"])
        load(session, tmp_path, collection, "own", ["the open door"])
        for searched, expected in (
            ([collection], ["the open door"]),
            ([theirs], []),
            ([collection, other, theirs], ["the secret garden", "the open door"]),
        ):
            found = search(
                session, project_id="default", collections=searched,
                queries=[ask("the secret recipe")], limit=50,
            )  # fmt: skip
            assert [hit.chunk.text for hit in found.hits] == expected

    def test_a_filter_of_one_in_a_hundred_finds_all_of_it(
        self, session: Session, collection: Collection, tmp_path: Path
    ) -> None:
        for number in range(60):
            load(
                session,
                tmp_path,
                collection,
                f"d{number}",
                ["common words here"] * 5,
                attributes={"n": number},
            )
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("common words")],
            limit=10, where=condition({"type": "eq", "key": "n", "value": 37}),
        )  # fmt: skip
        assert [hit.document.attributes["n"] for hit in found.hits] == [37] * 5


class TestFilters:
    def test_nest_only_so_deep(self) -> None:
        given: dict[str, object] = {"type": "eq", "key": "a", "value": 1}
        for _ in range(20):
            given = {"type": "and", "filters": [given]}
        with pytest.raises(InvalidInput, match="deep"):
            condition(given)

    @pytest.mark.parametrize(
        ("kind", "value", "fitting"),
        [
            ("in", [1, "two"], ["number", "text"]),
            ("in", [1.0, True], ["flag", "number"]),
            ("in", [], []),
            ("nin", [1, "two"], ["flag", "none"]),
            ("nin", [], ["flag", "none", "number", "text"]),
        ],
    )
    def test_many_values_at_once(
        self, session: Session, kind: str, value: list[object], fitting: list[str], tmp_path: Path
    ) -> None:
        collection = create_collection(session, project_id="default", name="attributes")
        for name, attributes in (
            ("number", {"a": 1}), ("text", {"a": "two"}), ("flag", {"a": True}), ("none", {"b": 1})
        ):  # fmt: skip
            load(session, tmp_path, collection, name, ["words"], attributes=attributes)
        found = search(
            session, project_id="default", collections=[collection], queries=[ask("words")],
            limit=10, where=condition({"type": kind, "key": "a", "value": value}),
        )  # fmt: skip
        assert sorted(hit.document.filename.removesuffix(".txt") for hit in found.hits) == fitting
