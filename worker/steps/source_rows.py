"""Training rows of a SQL source: read once, and kept as an artifact and as a file for further trainings."""

from db.states import JobKind
from training_data.snapshots import Snapshot, write_snapshot
from training_data.sql_rows import open_rows
from training_data.sql_settings import SqlSource
from worker.step import FileInput, Step

PARAM = "training_source"


def read_snapshot(step: Step, fold_column: str | None) -> Snapshot | None:
    """Read the source that the job names; None when it names none.

    Raises:
        InvalidInput, Unavailable: it cannot be read.
    """
    given = step.input.databases.get(PARAM)
    if given is None:
        return None
    source = SqlSource.model_validate(given)
    with open_rows(source, param=PARAM) as read:
        snapshot = write_snapshot(
            read,
            step.input.folder,
            fold_column=fold_column,
            tell=lambda rows: step.event(f"Read {rows:,} rows.", rows=rows),
        )
    # An estimate leaves nothing behind that others could take for training data.
    step.artifact(snapshot.path, purpose="fine-tune" if step.input.kind == JobKind.FINE_TUNE else None)
    step.event(
        f"Read {snapshot.rows} rows of {source.name!r}, which are kept as {snapshot.path.name}: whatever "
        "becomes of the source, this training sees these.",
        rows=snapshot.rows,
        sha256=snapshot.sha256,
    )
    return snapshot


def as_file(snapshot: Snapshot) -> FileInput:
    return FileInput(snapshot.path, snapshot.path.name, snapshot.path.stat().st_size)
