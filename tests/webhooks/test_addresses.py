"""However an address is spelled, what is not public is refused, and nothing is ever connected to."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from db.errors import InvalidInput
from webhooks.addresses import check_url, is_permitted, is_public, permitted_addresses
from webhooks.sending import Message, send
from webhooks.signing import new_secret

PRIVATE_IPV4 = (
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.0.0.1",  # noqa: S104
    "10.0.0.1", "10.255.255.255",
    "100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255",
    "192.0.0.192", "192.168.0.1", "192.168.255.255", "198.18.0.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16",
)  # fmt: skip
PRIVATE_IPV6 = (
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "100::1", "2001::1",
    "2001:2::1", "2001:db8::1", "64:ff9b:1::1", "5f00::1", "3fff::1", "4000::1",
)  # fmt: skip
NAMES = ("localhost", "LOCALHOST", "localhost.", "LocalHost.")
PUBLIC = ("93.184.216.34", "8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1")


def spellings_of_ipv4(text: str) -> list[str]:
    """The ways in which C libraries and URL parsers let an IPv4 address be written."""
    number = int(IPv4Address(text))
    a, b, c, d = text.split(".")
    rest, last = number & 0xFFFFFF, number & 0xFFFF
    return [
        text, str(number), hex(number), f"0{number:o}", f"{a}.{rest}", f"{a}.{b}.{last}",
        ".".join(hex(int(part)) for part in (a, b, c, d)),
        ".".join(f"0{int(part):o}" for part in (a, b, c, d)),
        f"0x{int(a):x}.{rest}",
        "".join(letter if letter == "." else chr(ord(letter) + 0xFEE0) for letter in text),
    ]  # fmt: skip


def in_ipv6(text: str) -> list[str]:
    """An IPv4 address inside an IPv6 one: mapped, compatible, translated, NAT64, 6to4."""
    number = int(IPv4Address(text))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    return [
        f"::ffff:{text}", f"::ffff:{high}:{low}", f"0:0:0:0:0:ffff:{high}:{low}", f"::{high}:{low}",
        f"::ffff:0:{high}:{low}", f"64:ff9b::{high}:{low}", f"64:ff9b::{text}", f"2002:{high}:{low}::1",
    ]  # fmt: skip


def spellings() -> list[str]:
    hosts = [spelling for address in PRIVATE_IPV4 for spelling in spellings_of_ipv4(address)]
    hosts += [f"[{inside}]" for address in PRIVATE_IPV4 for inside in in_ipv6(address)]
    hosts += [f"[{address}]" for address in PRIVATE_IPV6]
    hosts += [f"[{IPv6Address(address).exploded}]" for address in PRIVATE_IPV6]
    return list(dict.fromkeys([*hosts, *NAMES]))


class Traps:
    """Sockets that listen on a loopback port and must never be connected to."""

    def __init__(self) -> None:
        self.caught = 0
        first = socket.create_server(("127.0.0.1", 0))
        self.port = first.getsockname()[1]
        self._sockets = [first]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._threads = [threading.Thread(target=self._watch, args=(one,)) for one in self._sockets]
        for thread in self._threads:
            thread.start()

    def _watch(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.caught += 1
            connection.close()

    def close(self) -> None:
        for listener, thread in zip(self._sockets, self._threads, strict=True):
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            listener.close()


@pytest.fixture
def traps() -> Iterator[Traps]:
    traps = Traps()
    yield traps
    traps.close()


def message(url: str) -> Message:
    return Message("evt-1", url, "{}", (new_secret(),))


class TestSpellings:
    def test_there_are_enough_of_them(self) -> None:
        assert len(spellings()) >= 200

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_none_leads_to_a_connection(self, traps: Traps, scheme: str) -> None:
        async def send_all() -> list[Any]:
            urls = [f"{scheme}://{host}:{traps.port}/hook" for host in spellings()]
            return [await send(message(url), allowed=(), timeout_seconds=2) for url in urls]

        answers = asyncio.run(send_all())
        assert all(answer.status_code is None and answer.error for answer in answers)
        assert not [answer.error for answer in answers if answer.seconds > 1.5]
        assert traps.caught == 0

    def test_the_traps_would_have_caught_one(self, traps: Traps) -> None:
        asyncio.run(
            send(
                message(f"http://127.1:{traps.port}/"),
                allowed=[ip_network("127.0.0.0/8")],
                timeout_seconds=2,
            )
        )
        assert traps.caught == 1


class TestAddresses:
    @pytest.mark.parametrize("address", [*PRIVATE_IPV4, *PRIVATE_IPV6])
    def test_not_public(self, address: str) -> None:
        assert not is_public(ip_address(address))

    @pytest.mark.parametrize("address", PRIVATE_IPV4)
    def test_nor_inside_of_ipv6(self, address: str) -> None:
        assert not any(is_public(ip_address(inside)) for inside in in_ipv6(address))

    @pytest.mark.parametrize("address", PUBLIC)
    def test_public(self, address: str) -> None:
        assert is_public(ip_address(address))

    def test_a_network_that_is_allowed_is_so_in_every_form(self) -> None:
        allowed = [ip_network("10.1.0.0/16")]
        assert all(is_permitted(ip_address(form), allowed) for form in ["10.1.2.3", *in_ipv6("10.1.2.3")])
        assert not is_permitted(ip_address("10.2.0.1"), allowed)


class TestResolution:
    def test_one_private_address_among_public_ones_is_one_too_many(self) -> None:
        def lookup(host: str, port: int) -> list[Any]:
            return [(0, 0, 0, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

        with pytest.raises(InvalidInput, match="LATHE_WEBHOOK_ALLOWED_NETWORKS"):
            permitted_addresses(check_url("https://hooks.example/"), (), lookup=lookup)

    def test_a_name_that_changes_its_address_is_refused_when_it_does(self, traps: Traps) -> None:
        answers = iter(["93.184.216.34", "127.0.0.1"])

        def lookup(host: str, port: int) -> list[Any]:
            return [(0, 0, 0, "", (next(answers), port))]

        url = f"http://hooks.example:{traps.port}/"
        assert permitted_addresses(check_url(url), (), lookup=lookup) == ["93.184.216.34"]
        answer = asyncio.run(send(message(url), allowed=(), timeout_seconds=2, lookup=lookup))
        assert "not public" in (answer.error or "")
        assert traps.caught == 0

    def test_an_unknown_name_says_so(self) -> None:
        with pytest.raises(InvalidInput, match="cannot be resolved"):
            permitted_addresses(check_url("https://no-such-host.invalid/"), ())


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "", "hooks.example.com", "ftp://example.com/", "file:///etc/passwd", "gopher://127.0.0.1/", "http://",
            "http:///x", "https://user:pass@example.com/", "https://example.com\\@127.0.0.1/",
            "http://example.com:0/", "http://[::1", "http://a\r\nb/", "http://\ud800/",
            "https://example.com/" + "x" * 2048,
        ],
    )  # fmt: skip
    def test_refused(self, url: str) -> None:
        with pytest.raises(InvalidInput) as refused:
            check_url(url, param="webhook_url")
        assert refused.value.param == "webhook_url"
