"""What Lathe's submit is measured against: the two ways in which people hand a task to Celery over HTTP."""

import os
from typing import Any

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import JSON, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from db.ids import new_id

celery = Celery("peer", broker=os.environ["PEER_REDIS_URL"])
celery.conf.task_ignore_result = True
engine = create_engine(os.environ["PEER_DATABASE_URL"], pool_size=20, max_overflow=20)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "peer_jobs"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    params: Mapped[dict[str, Any]] = mapped_column(JSON)


class Body(BaseModel):
    kind: str
    params: dict[str, Any]


Base.metadata.create_all(engine)
with_row = FastAPI()
bare = FastAPI()


@celery.task
def work(job_id: str) -> None:
    """Never run here: only the sending is measured."""


@with_row.post("/v1/jobs", status_code=202)
def submit_with_row(body: Body) -> dict[str, Any]:
    job = {"id": new_id("job"), "kind": body.kind, "status": "queued", "params": body.params}
    with Session(engine) as session, session.begin():
        session.add(Row(**job))
    work.delay(job["id"])
    return job


@bare.post("/v1/jobs", status_code=202)
def submit_bare(body: Body) -> dict[str, Any]:
    job_id = new_id("job")
    work.delay(job_id)
    return {"id": job_id, "kind": body.kind, "status": "queued", "params": body.params}
