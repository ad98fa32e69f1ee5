"""Parsing what the server sends: however it is cut into pieces, every message arrives once, whole and in order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crucible_core import subjects
from crucible_kit.nats.message import Message
from crucible_kit.nats.parser import Parser, headers_of

FRAMES = (
    b"MSG a.b 1 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG a.c 1 _INBOX.x 0\r\n\r\n"
    b"HMSG a.d 1 _INBOX.y 23 27\r\nNATS/1.0\r\nA: b\r\nC:d\r\n\r\nbody\r\n"
    b"+OK\r\n"
    b"MSG other 2 3\r\n\r\n!\r\n"
    b"HMSG a.e 1 28 28\r\nNATS/1.0 404 No Messages\r\n\r\n\r\n"
    b"INFO {}\r\n"
    b"MSG a.f 1 $JS.ACK.S.C.1.7.3.1700000000000000000.9 1\r\nx\r\n"
)


class Library:
    """What is left to the client library."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.messages: list[tuple[int, bytes, bytes, bytes]] = []

    async def parse(self, data: bytes = b"") -> None:
        self.lines.append(data)

    def reset(self) -> None:
        self.lines.clear()

    async def undirected(self, subscription: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.messages.append((subscription, subject, reply, data))


def wired() -> tuple[Parser, Library, list[Message]]:
    library, arrived = Library(), list[Message]()
    wire = Parser(library, library.undirected, lambda: None)
    wire.receivers[1] = arrived.append
    return wire, library, arrived


@given(st.lists(st.integers(1, len(FRAMES) - 1), max_size=30))
async def test_messages_arrive_however_they_are_cut(cuts: list[int]) -> None:
    wire, library, arrived = wired()
    places = [0, *sorted(set(cuts)), len(FRAMES)]
    for start, end in pairwise(places):
        await wire.parse(FRAMES[start:end])
    assert [(one.subject, one.data, one.reply) for one in arrived[:3]] == [
        ("a.b", b"hello", ""),
        ("a.c", b"", "_INBOX.x"),
        ("a.d", b"body", "_INBOX.y"),
    ]
    assert arrived[2].headers == {"A": "b", "C": "d"}
    assert arrived[3].status == "404"
    assert (arrived[4].sequence, arrived[4].consumer_sequence, arrived[4].pending) == (7, 3, 9)
    assert len(arrived) == 5
    assert library.lines == [b"PING\r\n", b"+OK\r\n", b"INFO {}\r\n"]
    assert library.messages == [(2, b"other", b"", b"\r\n!")]


async def test_large_message_in_small_pieces() -> None:
    wire, _, arrived = wired()
    body = bytes(range(256)) * 4096
    frames = b"MSG a 1 %d\r\n%b\r\n" % (len(body), body)
    for start in range(0, len(frames), 1000):
        await wire.parse(frames[start : start + 1000])
    assert [message.data for message in arrived] == [body]


async def test_receiver_that_fails_costs_only_its_message() -> None:
    wire, _, arrived = wired()

    def fails(message: Message) -> None:
        raise ValueError(message.subject)

    wire.receivers[3] = fails
    await wire.parse(b"MSG a 3 1\r\nx\r\nMSG b 1 1\r\ny\r\n")
    assert [message.subject for message in arrived] == ["b"]


async def test_reset_forgets_half_a_message() -> None:
    wire, _, arrived = wired()
    await wire.parse(b"MSG a 1 10\r\nhal")
    wire.reset()
    await wire.parse(b"MSG b 1 1\r\ny\r\n")
    assert [message.subject for message in arrived] == ["b"]


def test_headers_and_inline_status() -> None:
    beat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 5\r\n\r\n"
    assert headers_of(beat) == {
        subjects.STATUS: "100",
        subjects.DESCRIPTION: "Idle Heartbeat",
        subjects.LAST_CONSUMER: "5",
    }
    assert headers_of(b"NATS/1.0 503\r\n\r\n") == {subjects.STATUS: "503"}
    assert headers_of(b"NATS/1.0\r\nA: x: y \r\n\r\n") == {"A": "x: y"}
