"""A fine-tune by preferences, end to end: pairs by OpenAI's own client, and a model that answers."""

import json

import openai
import pytest

from tests.stack import JSON, Stack
from tests.test_main_job import FACTS, ask, base, stack, stock_client  # noqa: F401 - fixtures, too


@pytest.mark.slow
def test_preferences_are_learnt_and_served(
    stack: Stack,  # noqa: F811
    base: JSON,  # noqa: F811
    stock_client: openai.OpenAI,  # noqa: F811
) -> None:
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": question}]},
            "preferred_output": [{"role": "assistant", "content": answer}],
            "non_preferred_output": [{"role": "assistant", "content": "Who knows?"}],
        }
        for question, answer in FACTS.items()
    ]
    rows = "".join(json.dumps(row) + "\n" for row in pairs).encode()
    made = stock_client.fine_tuning.jobs.create(
        model="micro",
        training_file=stock_client.files.create(file=("pairs.jsonl", rows), purpose="fine-tune").id,
        suffix="preferring",
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 8}}},
        extra_body={"params": {"quantizations": ["Q8_0"]}},
    )
    stack.finish(made.id, seconds=600)
    job = stock_client.fine_tuning.jobs.retrieve(made.id)
    assert (job.status, job.error) == ("succeeded", None)
    events = list(stock_client.fine_tuning.jobs.list_events(job.id, limit=100))
    measured = [event.data for event in events if event.type == "metrics"]
    margins = [data["train_reward_margin"] for data in measured]  # type: ignore[index]
    assert len(margins) == 8
    assert margins[0] > margins[-1] == pytest.approx(0, abs=1e-3)  # newest first
    [checkpoint] = stock_client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoint.metrics.to_dict()["train_reward_accuracy"] == 1.0
    assert job.fine_tuned_model is not None
    assert ask(stock_client, job.fine_tuned_model, next(iter(FACTS))).choices[0].message.content
