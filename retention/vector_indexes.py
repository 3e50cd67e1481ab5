"""Vector indexes that no collection has: those of deleted ones, and what a killed builder left."""

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from retention.rule import Batch, Expired, House, Removal, Rule
from retrieval.vector_index import BUILD_LOCK, LEFT_BEHIND, PREFIX, IndexBuilder

SIZE = text("SELECT pg_relation_size(to_regclass(:name))")


class VectorIndexes:
    kind = "vector index"
    why = "no collection has it"

    def find(self, session: Session, house: House, cursor: None, limit: int) -> Batch:
        # Of what is being built nobody can tell yet whose it will be.
        if not session.scalars(select(func.pg_try_advisory_xact_lock(BUILD_LOCK))).one():
            return Batch()
        names = session.scalars(LEFT_BEHIND, {"prefix": PREFIX}).all()[:limit]
        sizes = [session.scalars(SIZE, {"name": name}).one() or 0 for name in names]
        return Batch(
            [Expired(self.kind, name, self.why, size) for name, size in zip(names, sizes, strict=True)]
        )

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        """Not in the caller's transaction, which Postgres does not allow: in one that nobody waits for."""
        engine = session.connection().engine
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()
            return Removal.DONE if IndexBuilder(connection).drop_if_left(item.id) else Removal.KEPT


VECTOR_INDEXES: tuple[Rule, ...] = (VectorIndexes(),)
