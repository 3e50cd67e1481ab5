"""Who lives is who was seen lately."""

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.models import Device, Worker
from db.queries.workers import live_queues, sign_in, sign_out, training_machines
from training_data.machines import read_machines


def test_a_worker_lives_while_it_is_seen(session: Session) -> None:
    sign_in(session, name="one", host="here", pid=1, slots={"cpu": 1, "train": 1})
    sign_in(session, name="two", host="here", pid=2, slots={"cpu": 2})
    assert live_queues(session, within_seconds=15) == {"cpu", "train"}
    session.execute(text("UPDATE workers SET seen_at = seen_at - interval '20s' WHERE name = 'one'"))
    assert live_queues(session, within_seconds=15) == {"cpu"}
    sign_in(session, name="one", host="here", pid=1, slots={"cpu": 1, "train": 1})
    sign_out(session, "two")
    assert live_queues(session, within_seconds=15) == {"cpu", "train"}


def test_a_worker_that_bears_the_name_of_the_one_before_is_known_by_what_it_has(session: Session) -> None:
    sign_in(session, name="worker-1@here", host="here", pid=1, slots={"train": 1}, device_ids=["GPU-1"])
    sign_in(session, name="worker-1@here", host="here", pid=1, slots={"gpu": 1}, device_ids=["GPU-2"])
    [worker] = session.scalars(select(Worker))
    assert (worker.slots, worker.device_ids) == ({"gpu": 1}, ["GPU-2"])


def test_the_machines_that_train_are_told_once_each_with_their_memory(session: Session) -> None:
    gpu = {"host": "large", "name": "H200", "serves": None, "shares": True}
    for index, memory_bytes in enumerate((150, 140, 160)):
        session.add(Device(id=f"GPU-{index}", index=index, memory_bytes=memory_bytes, **gpu))
    session.flush()
    sign_in(session, name="a", host="here", pid=1, slots={"train": 1}, memory_bytes=2**35)
    sign_in(session, name="b", host="here", pid=2, slots={"train": 1, "cpu": 1}, memory_bytes=2**35)
    sign_in(
        session, name="c", host="large", pid=1, slots={"train": 1}, device_ids=["GPU-2"], memory_bytes=2**40
    )
    both = ["GPU-0", "GPU-1"]
    sign_in(session, name="e", host="large", pid=2, slots={"train": 1}, device_ids=both, memory_bytes=2**40)
    sign_in(session, name="d", host="other", pid=1, slots={"cpu": 1}, memory_bytes=2**30)
    nothing = {"device": None, "device_bytes": None, "devices": 0, "shares": False}
    here = {"host": "here", "ram_bytes": 2**35, **nothing}
    held = {"device": "H200", "device_bytes": 160, "devices": 1, "shares": True}
    one = {"host": "large", "ram_bytes": 2**40, **held}
    two = {**one, "device_bytes": 140, "devices": 2}  # of the smaller one
    found = training_machines(session, within_seconds=15)
    assert found == [here, one, two]
    assert str(read_machines(found)[2]) == "2 × H200 on large"
    session.execute(text("UPDATE workers SET seen_at = seen_at - interval '20s' WHERE host = 'here'"))
    assert training_machines(session, within_seconds=15) == [one, two]
