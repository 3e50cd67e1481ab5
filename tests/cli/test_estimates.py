"""`lathe fine-tune --dry-run`, with a hand in place of the worker that estimates."""

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.states import JobKind
from tests.cli.conftest import Hand, Run

ESTIMATES = (JobKind.ESTIMATE, JobKind.ESTIMATE_QUANTIZE)
REFUSAL = {
    "code": "does_not_fit",
    "message": "This training needs about 9.0 GB, and vm's has 4.0 GB. It would fit with batch_size 2.",
    "param": "batch_size",
    "changes": [{"batch_size": 2, "gradient_accumulation_steps": 8}],
}


def told(**changes: Any) -> dict[str, Any]:
    """An estimate as its step leaves it."""
    how = dict.fromkeys(("trainable_parameters", "tokens", "steps", "memory", "disk", "time"), "so")
    return {
        "fits": True,
        "refusal": None,
        "model": {"parameters": 27_000_000, "trainable_parameters": 4_980_736},
        "data": {"rows": 64, "tokens_an_epoch": 16_674, "longest": 547, "counted_every": 1},
        "steps": 48,
        "hyperparameters": {"learning_rate": 0.0002, "lora_rank": 16, "bits": 4, "packing": False},
        "machine": {"host": "vm", "device": None, "device_bytes": None, "ram_bytes": 4_000_000_000},
        "memory": {"device": None, "ram": {"bytes": 2_400_000_000, "parts": {}}},
        "disk": {"bytes": 400_000_000, "free_bytes": 50_000_000_000, "parts": {}},
        "time": {"seconds": 3_725.0, "steps": {}, "jobs": 3},
        "how": how,
        "own_error": {"jobs": 3, "text": "The last 3 jobs took 0.9–1.3 times what was estimated."},
        **changes,
    }


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "faq.csv"
    path.write_bytes(b"question,answer\nWhat is Lathe?,A service.\n")
    return path


@pytest.fixture
def ending(hand: Hand, api_url: str) -> Any:
    """End the next estimate, on a thread beside the command."""

    def end(warning: str = "", **result: Any) -> None:
        while not (jobs := [job for job in hand.jobs() if job.kind in ESTIMATES]):
            time.sleep(0.02)
        hand.finish(jobs[0].id, "estimate")
        if warning:
            hand.warn(jobs[0].id, "estimate", warning)
        hand.succeed(jobs[0].id, **result)

    threads: list[threading.Thread] = []

    def begin(**result: Any) -> None:
        threads.append(threading.Thread(target=end, kwargs=result))
        threads[0].start()

    yield begin
    threads[0].join()


def test_shows_each_figure_and_how_it_was_reckoned(run: Run, hand: Hand, csv: Path, ending: Any) -> None:
    ending(**told())
    ran = run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    for figure in (
        "4,980,736",
        "16,674 in 64 rows",
        "48",
        "2.4 GB of 4.0 GB",
        "1 h 2 min",
        "0.9–1.3 times",
        "learning_rate 0.0002",
        "lora_rank 16",
    ):
        assert figure in ran.out
    assert [job.kind for job in hand.jobs()] == ["estimate"]


def test_tells_what_the_rows_warn_of(run: Run, csv: Path, ending: Any) -> None:
    ending(warning="3 rows are longer than max_length 64 and will be cut.", **told())
    ran = run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run")
    assert "3 rows are longer than max_length 64" in ran.out


def test_leaves_no_upload_behind(run: Run, csv: Path, ending: Any, api_url: str) -> None:
    ending(**told())
    run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run")
    assert httpx.get(f"{api_url}/v1/files").json()["data"] == []


def test_fails_with_the_flags_that_would_make_it_fit(run: Run, csv: Path, ending: Any) -> None:
    ending(**told(fits=False, refusal=REFUSAL))
    ran = run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run")
    assert ran.status == 1
    assert REFUSAL["message"] in ran.err
    assert "--batch-size 2" in ran.err


def test_of_several_gpus_shows_what_each_takes(run: Run, csv: Path, ending: Any) -> None:
    machine = {"host": "vm", "device": "H200", "device_bytes": 150_000_000_000, "ram_bytes": None}
    memory = {**told()["memory"], "device": {"bytes": 90_000_000_000, "parts": {}}}
    ending(**told(machine=machine, memory=memory, placement={"devices": 4, "ranks": 4}))
    ran = run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run")
    assert "GPU memory, at most, each of 4" in ran.out


def test_of_quantising_shows_what_there_is(run: Run, hand: Hand, ending: Any) -> None:
    of_fine_tunes = {"steps", "data", "how"}
    given = {name: value for name, value in told().items() if name not in of_fine_tunes}
    how = dict.fromkeys(("data", "memory", "disk", "time"), "so")
    ending(**given, data={"rows": 230, "tokens": 40_320}, how=how)
    ran = run("quantize", "--base", "tiny", "--name", "tiny-gptq", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    for figure in ("40,320 tokens in 230 rows", "2.4 GB of 4.0 GB", "1 h 2 min"):
        assert figure in ran.out
    assert "estimate_quantize" in [job.kind for job in hand.jobs()]


def test_prints_the_estimate_alone_as_json(run: Run, csv: Path, ending: Any) -> None:
    ending(**told(fits=False, refusal=REFUSAL))
    ran = run("fine-tune", "--base", "org/base", "--data", str(csv), "--name", "faq", "--dry-run", "--json")
    assert ran.status == 1
    assert ran.json() == told(fits=False, refusal=REFUSAL)
