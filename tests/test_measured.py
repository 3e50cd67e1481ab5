"""What comes after a fine-tune, end to end: evaluated by a worker, run again to the last bit, and swept."""

import csv
import io
import json
from collections.abc import Iterator

import pytest

from tests.stack import JSON, Stack

pytestmark = pytest.mark.slow
FACTS = {f"Where is pot {n}?": f"Pot {n} stands on shelf {n % 3}." for n in range(10)}
SECONDS = 600
FLAGS = (
    "--base", "micro", "--train-size", "0.8", "--max-steps", "12", "--batch-size", "4",
    "--quantization", "Q8_0",
)  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("measured"))
    try:
        started = stack.lathe("up", "--detach")
        assert started.returncode == 0, started.stdout + started.stderr
        yield stack
    finally:
        stack.client.close()
        stack.lathe("down")


@pytest.fixture(scope="module")
def data(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the rows, and a base that knows nothing."""
    params = {"name": "micro", "vocab_size": 400, "layers": 2, "steps": 12, "batch_size": 8}
    job = stack.finish(stack.submit("pretrain", {**params, "quantizations": ["Q8_0"]})["id"], seconds=SECONDS)
    assert job["status"] == "succeeded", job["error"]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["question", "answer"])
    writer.writerows(FACTS.items())
    return stack.upload("pots.csv", table.getvalue().encode())


@pytest.fixture(scope="module")
def fine_tuned(stack: Stack, data: str) -> JSON:
    ran = stack.lathe("fine-tune", "--data", data, "--name", "pots", *FLAGS, "--watch", seconds=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [job] = stack.client.get("/v1/jobs?kind=fine_tune").json()["data"]
    return dict(job)


def lathe(stack: Stack, *arguments: str) -> JSON:
    ran = stack.lathe(*arguments, "--json", seconds=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def _eval_loss(stack: Stack, model: str) -> float:
    """As the training itself has reported it."""
    version = stack.client.get(f"/v1/models/{model}").json()["versions"][-1]
    return float(version["details"]["train"]["eval_loss"])


class TestAfterAFineTune:
    def test_it_leaves_its_card(self, stack: Stack, fine_tuned: JSON) -> None:
        page = stack.client.get(f"/v1/jobs/{fine_tuned['id']}/artifacts").json()
        assert {"README.md", "recipe.json", "curves.png"} <= {row["name"] for row in page["data"]}

    def test_it_is_evaluated_on_what_it_held_out(self, stack: Stack, fine_tuned: JSON) -> None:
        ran = stack.lathe("evaluate", "pots", "--max-tokens", "20", "--watch", seconds=SECONDS)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "Perplexity" in ran.stdout
        [job] = stack.client.get("/v1/jobs?kind=evaluate").json()["data"]
        base, tuned, served = job["result"]["table"]
        assert tuned["loss"] < base["loss"]
        assert served["loss"] == pytest.approx(tuned["loss"], abs=0.05)
        assert job["result"]["data"]["split"] == "test"

    def test_it_is_the_same_again_to_the_last_bit(self, stack: Stack, fine_tuned: JSON) -> None:
        found = lathe(stack, "reproduce", "pots")
        assert found["identical"], found
        assert found["differs"] == []
        assert {each["difference"] for each in found["losses"].values()} == {0}

    def test_a_sweep_finds_the_better_of_two(self, stack: Stack, data: str, fine_tuned: JSON) -> None:
        swept = ("sweep", "--data", data, "--name", "swept", *FLAGS, "--learning-rate", "1e-3,1e-2")
        found = lathe(stack, *swept, "--watch")
        assert found["by"] == "eval_loss"
        trained = {row["id"]: _eval_loss(stack, row["model"]) for row in found["jobs"]}
        assert len(set(trained.values())) == 2
        assert found["best"] == min(trained, key=lambda job_id: trained[job_id])
        assert {row["id"]: row["eval_loss"] for row in found["jobs"]} == pytest.approx(trained)
        assert {row["values"]["learning_rate"] for row in found["jobs"]} == {"0.001", "0.01"}
        assert lathe(stack, "sweep", "show", found["id"]) == found
