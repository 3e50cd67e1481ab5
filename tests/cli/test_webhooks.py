"""`lathe webhooks` against the API and a receiver on loopback."""

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from standardwebhooks import Webhook

from db.settings import Settings
from tests.cli.conftest import Run
from tests.receiver import Receiver, receiving


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allowed_networks": [ip_network("127.0.0.0/8")]})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class TestEndpoints:
    def test_one_is_made_tried_listed_and_deleted(self, run: Run, api_url: str, receiver: Receiver) -> None:
        assert "no endpoints yet" in run("webhooks").out
        made = run("webhooks", "create", f"{receiver.url}/ok", "--event", "job.failed")
        endpoint, secret = made.out.split()
        assert (
            run("webhooks", "test", endpoint, "--event", "job.failed").out == "job.failed was taken: 200.\n"
        )
        [message] = receiver.at("/ok")
        assert Webhook(secret).verify(message.body, message.headers)["type"] == "job.failed"

        [row] = run("webhooks", "--json").json()
        assert (row["id"], row["event_types"]) == (endpoint, ["job.failed"])
        listed = run("webhooks").out
        assert endpoint in listed
        assert secret not in listed
        assert "200" in run("webhooks", "deliveries", endpoint).out.splitlines()[-1]
        assert run("webhooks", "delete", endpoint).status == 0
        assert run("webhooks", "test", endpoint).status == 4

    def test_says_what_is_wrong(self, run: Run, api_url: str) -> None:
        refused = run("webhooks", "create", "ftp://example.com")
        assert (refused.status, "http" in refused.err) == (2, True)


def test_the_secret_of_jobs_is_shown_once(run: Run, api_url: str) -> None:
    shown = run("webhooks", "secret").out.strip()
    assert shown.startswith("whsec_")
    again = run("webhooks", "secret")
    assert (again.status, again.out) == (1, "")
    assert run("webhooks", "secret", "--rotate").out.strip() not in ("", shown)
