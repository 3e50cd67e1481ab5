"""One message, one receiver, one answer in time."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.receiver import Receiver, receiving
from webhooks.sending import Answer, Message, send
from webhooks.signing import hint_of, new_secret, signed_headers

if TYPE_CHECKING:
    from tests.receiver import Received

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
BODY = (
    '{"id":"evt-1","object":"event","created_at":1,"type":"fine_tuning.job.succeeded","data":{"id":"job-1"}}'
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def sent(url: str, *secrets: str, seconds: float = 2) -> Answer:
    message = Message("evt-1", url, BODY, secrets or (new_secret(),))
    return asyncio.run(send(message, allowed=LOOPBACK, timeout_seconds=seconds))


def unwrapped(received: "Received", secret: str) -> object:
    client = OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1")
    event = client.webhooks.unwrap(received.body, received.headers, secret=secret)
    return event.type, event.data.id  # type: ignore[union-attr]


class TestSignature:
    def test_openais_client_accepts_it(self, receiver: Receiver) -> None:
        secret = new_secret()
        assert sent(f"{receiver.url}/ok", secret).succeeded
        assert unwrapped(receiver.at("/ok")[-1], secret) == ("fine_tuning.job.succeeded", "job-1")

    def test_either_secret_of_a_rotation_verifies_and_no_third(self, receiver: Receiver) -> None:
        new, old = new_secret(), new_secret()
        sent(f"{receiver.url}/rotated", new, old)
        received = receiver.at("/rotated")[-1]
        assert len(received.headers["webhook-signature"].split(" ")) == 2
        assert unwrapped(received, new) == unwrapped(received, old)
        with pytest.raises(InvalidWebhookSignatureError):
            unwrapped(received, new_secret())

    def test_a_secret_is_not_shown_by_its_hint_nor_by_a_message(self) -> None:
        secret = new_secret()
        assert len(hint_of(secret)) < 15
        assert secret not in repr(Message("evt-1", "http://x/", BODY, (secret,)))
        assert signed_headers("evt-1", BODY, [secret])["webhook-id"] == "evt-1"


class TestReceivers:
    def test_sees_the_name_that_it_was_called_by(self, receiver: Receiver) -> None:
        port = receiver.url.rpartition(":")[2]
        assert sent(f"http://localhost:{port}/named?x=1#y").succeeded
        received = receiver.at("/named?x=1")[-1]
        assert received.headers["host"] == f"localhost:{port}"
        assert received.headers["content-type"] == "application/json"

    def test_tls_asks_for_the_name_although_the_address_is_pinned(self) -> None:
        hello = bytearray()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def take() -> None:
                connection, _ = listener.accept()
                with connection:
                    hello.extend(connection.recv(4096))

            thread = threading.Thread(target=take)
            thread.start()
            answer = sent(f"https://localhost:{listener.getsockname()[1]}/")
            thread.join(5)
        assert b"localhost" in hello
        assert (answer.error or "").startswith("ConnectError")

    @pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
    def test_an_error_is_told_with_the_beginning_of_the_answer(self, receiver: Receiver, status: int) -> None:
        answer = sent(f"{receiver.url}/{status}")
        assert (answer.succeeded, answer.status_code) == (False, status)
        assert answer.error == f"The receiver answered {status}."
        assert answer.response == "said\N{REPLACEMENT CHARACTER}so"

    def test_redirects_are_not_followed(self, receiver: Receiver) -> None:
        receiver.redirect_to = f"{receiver.url}/trap"
        answer = sent(f"{receiver.url}/redirect")
        assert (answer.succeeded, answer.status_code) == (False, 307)
        assert receiver.at("/trap") == []

    def test_a_huge_answer_is_not_kept(self, receiver: Receiver) -> None:
        answer = sent(f"{receiver.url}/huge")
        assert answer.succeeded
        assert len(answer.response or "") == 1024

    @pytest.mark.parametrize("path", ["/slow", "/drip"])
    def test_a_slow_one_costs_no_more_than_the_limit(self, receiver: Receiver, path: str) -> None:
        began = time.monotonic()
        answer = sent(f"{receiver.url}{path}", seconds=0.5)
        assert time.monotonic() - began < 2
        assert answer.error == "The receiver did not answer within 0.5 s."

    def test_a_dead_one_is_an_error(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert (sent(f"http://127.0.0.1:{port}/").error or "").startswith("ConnectError")
