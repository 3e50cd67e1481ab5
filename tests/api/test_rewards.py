"""Which rewards a training by GRPO may name: only those that the operator lets the project have."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.errors import InvalidInput
from db.settings import Settings
from tests.api.conftest import error_of, upload
from tests.api.serving import serving
from training_data.reward_settings import BUILT_IN, read_rewards

PROMPTS = b'{"prompt": "What is two and two?", "answer": "4"}\n'
FILE = """
[reward.polite]
function = "house_rewards:polite"

[reward.theirs]
function = "house_rewards:polite"
projects = ["another"]
"""


@pytest.fixture(scope="module")
def client(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from api.app import create_app

    path = tmp_path_factory.mktemp("rewards") / "rewards.toml"
    path.write_text(FILE)
    changed = Settings.model_validate({**settings.model_dump(), "rewards": path})
    with (
        serving(create_app(changed)) as url,
        httpx.Client(base_url=url, timeout=20, trust_env=False) as client,
    ):
        yield client


def submit(client: httpx.Client, **params: Any) -> httpx.Response:
    given = {"base_model": "org/base", "training_file": upload(client, PROMPTS, "prompts.jsonl"), "name": "x"}
    return client.post(
        "/v1/jobs", json={"kind": "fine_tune", "params": {**given, "method": "grpo", **params}}
    )


class TestSubmit:
    def test_takes_the_operators_and_the_built_in(self, client: httpx.Client) -> None:
        made = submit(client, rewards=["polite", "exact_match"], reward_weights=[1, 0.5])
        assert made.status_code == 202, made.text
        assert made.json()["params"]["rewards"] == ["polite", "exact_match"]

    @pytest.mark.parametrize("name", ["theirs", "os.path"])
    def test_refuses_what_the_project_has_not(self, client: httpx.Client, name: str) -> None:
        answer = submit(client, rewards=[name])
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (400, "rewards", "reward_not_found")
        assert "There are: exact_match, contains_answer, brevity, polite." in error["message"]

    @pytest.mark.parametrize(
        ("params", "param", "says"),
        [
            ({"rewards": ["os.path:join"]}, "rewards[0]", "lower-case letters"),
            ({"rewards": []}, "rewards", "rewards is missing"),
            (
                {"rewards": ["polite"], "num_generations": 8, "effective_batch_size": 12},
                "effective_batch_size",
                "not divisible by num_generations 8",
            ),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, client: httpx.Client, params: dict[str, Any], param: str, says: str
    ) -> None:
        answer = submit(client, **params)
        error = error_of(answer)
        assert (answer.status_code, error["param"]) == (400, param)
        assert says in error["message"]


class TestFile:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[reward.a]\n", "reward.a.function is missing"),
            ('[reward.a]\nfunction = "a"\n', "reward.a.function is not of the form module:function"),
            ('[reward.exact_match]\nfunction = "a:b"\n', "a built-in reward is called that"),
            ('[rewards.a]\nfunction = "a:b"\n', r"rewards: tables are \[reward.NAME\]"),
            ('[reward."A b"]\nfunction = "a:b"\n', "reward.A b.name"),
            ("[reward", "is no TOML"),
        ],
    )
    def test_that_is_wrong_is_told_at_the_start(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "rewards.toml"
        path.write_text(text)
        with pytest.raises(InvalidInput, match=says) as caught:
            read_rewards(path)
        assert caught.value.param == "LATHE_REWARDS"

    def test_is_none_without_a_setting(self) -> None:
        assert read_rewards(None).keys() == BUILT_IN.keys()
