"""Training rows from a database: read once, kept, and split by a column of theirs."""

import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.conftest import PostgresServer
from worker.steps import prepare

ROWS = """
CREATE TABLE faq (question text, answer text, fold int, price numeric);
INSERT INTO faq SELECT 'Where is pot ' || n || '?', 'Pot ' || n || ' is in the kiln.', n % 5, n
FROM generate_series(1, 20) AS n;
CREATE ROLE faq_reader LOGIN PASSWORD 'reads';
GRANT SELECT ON faq TO faq_reader;
"""
PARAMS = {"base_model": "micro", "training_source": "faq", "name": "x"}


@pytest.fixture(scope="module")
def shop(postgres_server: PostgresServer) -> Iterator[tuple[Engine, dict[str, Any]]]:
    name = f"faq_{secrets.token_hex(4)}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    engine = create_engine(postgres_server.url(name))
    with engine.begin() as connection:
        connection.execute(text(ROWS))
    url = f"postgresql://faq_reader:reads@127.0.0.1:{postgres_server.port}/{name}"
    yield engine, {"name": "faq", "url": url, "table": "faq"}
    with engine.begin() as connection:
        connection.execute(text("DROP OWNED BY faq_reader; DROP ROLE faq_reader"))
    engine.dispose()


@pytest.fixture
def prepared(steps, micro_model, shop):
    def run(**params: Any):
        return steps.run(
            prepare.run, "fine_tune", "prepare", params={**PARAMS, **params}, base=micro_model,
            databases={"training_source": shop[1]},
        )  # fmt: skip

    return run


def questions(ran: Any, split: str) -> list[str]:
    lines = (ran.folder / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


class TestFolds:
    def test_holds_out_the_rows_of_the_folds_that_are_named(self, prepared) -> None:
        ran = prepared(fold_column="fold", validation_folds=["3"], test_folds=["0", "4"])
        assert ran.result["rows"] == {"train": 8, "validation": 4, "test": 8}
        assert questions(ran, "validation") == [f"Where is pot {n}?" for n in (3, 8, 13, 18)]
        assert questions(ran, "test")[:3] == ["Where is pot 4?", "Where is pot 5?", "Where is pot 9?"]

    @pytest.mark.parametrize(
        ("params", "param"),
        [
            ({"fold_column": "nothing", "test_folds": ["1"]}, "fold_column"),
            ({"fold_column": "fold", "test_folds": ["9"]}, "test_folds"),
            ({"fold_column": "fold", "validation_folds": ["0", "1", "2", "3", "4"]}, "validation_folds"),
        ],
    )
    def test_refuses_what_the_rows_have_not(self, prepared, params: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidInput) as refused:
            prepared(**params)
        assert refused.value.param == param

    @pytest.mark.parametrize(
        "params",
        [
            {"training_source": None},
            {"training_file": "file-1"},
            {"test_folds": ["1"]},
            {"fold_column": "fold"},
            {"fold_column": "fold", "test_folds": ["1"], "validation_folds": ["1"]},
            {"fold_column": "fold", "test_folds": ["1"], "train_size": 0.5},
        ],
    )
    def test_refuses_params_that_contradict_each_other(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"training_file|fold_column|validation_folds"):
            FineTuneParams.model_validate({**PARAMS, **params})


class TestSnapshot:
    def test_keeps_what_was_read_under_its_hash(self, prepared, shop) -> None:
        first = prepared()
        kept = first.result["dataset"]
        content = (first.folder / kept["name"]).read_bytes()
        assert kept["sha256"] == hashlib.sha256(content).hexdigest()
        assert kept["name"] == f"dataset-{kept['sha256'][:12]}.jsonl"
        assert kept["rows"] == first.result["rows"]["train"] == 20
        offered = [message for message in first.of_type("artifact") if message["name"] == kept["name"]]
        assert offered[0]["purpose"] == "fine-tune"
        assert prepared().result["dataset"] == kept
        with shop[0].begin() as connection:
            connection.execute(text("UPDATE faq SET answer = 'Broken.' WHERE fold = 1"))
        assert prepared().result["dataset"] != kept
        assert (first.folder / kept["name"]).read_bytes() == content

    def test_trains_on_the_snapshot_as_on_a_file(self, prepared, steps, micro_model) -> None:
        from_source = prepared(seed=3, train_size=0.5)
        dataset = from_source.folder / from_source.result["dataset"]["name"]
        from_file = steps.run(
            prepare.run, "fine_tune", "prepare", base=micro_model, files={"file-1": dataset},
            params={
                "base_model": "micro", "training_file": "file-1", "name": "x", "seed": 3, "train_size": 0.5,
            },
        )  # fmt: skip
        assert questions(from_file, "train") == questions(from_source, "train")

    def test_reads_as_a_role_that_only_reads(self, steps, micro_model, shop, postgres_server) -> None:
        owner = postgres_server.url(shop[0].url.database or "").replace("+psycopg2", "")
        with pytest.raises(InvalidInput, match="may do anything"):
            steps.run(
                prepare.run, "fine_tune", "prepare", params=PARAMS, base=micro_model,
                databases={"training_source": {**shop[1], "url": owner}},
            )  # fmt: skip
