"""`cluster` of a fine-tune: a name of the operator's, and nothing else."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from db.errors import InvalidInput
from db.settings import Settings
from tests.api.conftest import error_of, upload


def submit(api: httpx.Client, kind: str = "fine_tune", **params: Any) -> httpx.Response:
    given = {"base_model": "tiny", "training_file": upload(api), "name": "far", **params}
    route = "/v1/jobs" if kind == "fine_tune" else "/v1/jobs/estimate"
    return api.post(route, json={"kind": "fine_tune", "params": given})


def test_is_stored_with_the_job(api: httpx.Client) -> None:
    made = submit(api, cluster="lab")
    assert made.status_code == 202, made.text
    assert made.json()["params"]["cluster"] == "lab"


@pytest.mark.parametrize("name", ["nobody", "theirs"])
@pytest.mark.parametrize("kind", ["fine_tune", "estimate"])
def test_another_is_refused_with_those_that_there_are(api: httpx.Client, kind: str, name: str) -> None:
    refused = submit(api, kind, cluster=name)
    error = error_of(refused)
    assert (refused.status_code, error["param"], error["code"]) == (400, "cluster", "cluster_not_found")
    assert error["message"] == f"cluster: there is no cluster '{name}'. There are: lab."


@pytest.mark.parametrize("name", ["10.0.0.5:6379", "ray://head", "../lab"])
def test_no_address_or_path_is_taken(api: httpx.Client, name: str) -> None:
    refused = submit(api, cluster=name)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "cluster")


def test_goes_with_rewards(api: httpx.Client) -> None:
    made = submit(api, cluster="lab", method="grpo", rewards=["brevity"])
    assert made.status_code == 202, made.text


def test_a_file_that_is_wrong_keeps_the_api_from_starting(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "clusters.toml"
    path.write_text("[lab]\nnum_workers = 4")
    with pytest.raises(InvalidInput, match=r"LATHE_RAY_CLUSTERS: lab\.address: Field required"):
        create_app(settings.model_copy(update={"ray_clusters": path}))
