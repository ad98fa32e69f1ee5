"""Storing, asking and subscribing, against a real server that is killed where it matters."""

import asyncio
import contextlib
import gc
import logging
from pathlib import Path

import nats.errors
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from crucible_core import subjects
from crucible_core.errors import ConflictError, InvalidError, NotFoundError, TooLargeError, UnavailableError
from crucible_core.subjects import Names
from crucible_kit.clock import now_ms
from crucible_kit.nats.bus import MAX_BATCH, Bus, DuplicateError, Message, open_bus
from crucible_kit.nats.frames import Outgoing, batch_frames, clean
from tests.kit.outage import private_server, proxied, until

MANY = 1024 * 1024


@pytest.fixture
async def stream(bus: Bus) -> str:
    """A stream that takes `<prefix>.s.>`."""
    name = bus.names.bucket("S")
    await bus.ensure_stream(
        name, subjects=[subject(bus, ">")], allow_atomic=True, allow_msg_ttl=True, allow_msg_schedules=True
    )
    return name


def subject(bus: Bus, rest: str) -> str:
    return f"{bus.names.prefix}.s.{rest}"


# ---- frames

values = st.text(max_size=60)


def parsed(frame: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """(subject, headers, data) of each message, as a server reads them."""
    found = []
    while frame:
        line, _, rest = frame.partition(b"\r\n")
        words = line.split(b" ")
        assert words[0] == b"HPUB"
        head, total = int(words[-2]), int(words[-1])
        lines = rest[:head].split(b"\r\n")
        assert lines[0] == b"NATS/1.0"
        assert lines[-2:] == [b"", b""]
        headers = dict(line.split(b": ", 1) for line in lines[1:-2])
        found.append((words[1], headers, rest[head:total]))
        assert rest[total : total + 2] == b"\r\n"
        frame = rest[total + 2 :]
    return found


@given(values, values, st.binary(max_size=40))
def test_what_users_write_never_begins_a_header_or_a_frame(reason: str, msg_id: str, data: bytes) -> None:
    message = Outgoing("evt.a", data, {subjects.REASON: reason}, msg_id)
    [(name, headers, sent)] = parsed(batch_frames([message], "b", "reply", MANY))
    assert (name, sent) == (b"evt.a", data)
    assert set(headers) == {
        b"Crucible-Reason",
        b"Nats-Msg-Id",
        b"Nats-Batch-Id",
        b"Nats-Batch-Sequence",
        b"Nats-Batch-Commit",
    }
    assert headers[b"Nats-Msg-Id"].decode() == clean(msg_id)


@given(st.lists(st.tuples(values, st.binary(max_size=40)), min_size=1, max_size=5))
def test_a_batch_is_read_back_as_it_was_written(parts: list[tuple[str, bytes]]) -> None:
    messages = [Outgoing(f"evt.{n}", data, {"X": text}) for n, (text, data) in enumerate(parts)]
    read = parsed(batch_frames(messages, "b", "reply", MANY))
    assert [data for _, _, data in read] == [data for _, data in parts]
    assert [headers[b"Nats-Batch-Sequence"] for _, headers, _ in read] == [b"%d" % (n + 1) for n in range(len(parts))]
    assert [b"Nats-Batch-Commit" in headers for _, headers, _ in read] == [*[False] * (len(parts) - 1), True]


@given(values)
def test_a_clean_value_is_one_line_that_can_be_sent(text: str) -> None:
    assert clean(text).encode().isascii() or not text.isascii()
    assert not {"\r", "\n", "\0"} & set(clean(text))


@pytest.mark.parametrize("bad", ["", "a b", "a\r\nPUB x 0\r\n\r\n", "a\tb", "a\x00", "x" * 1001])
async def test_a_bad_subject_is_refused_before_it_reaches_the_connection(bus: Bus, bad: str) -> None:
    with pytest.raises(InvalidError):
        await bus.publish(bad, b"")
    with pytest.raises(InvalidError):
        await bus.commit([Outgoing(bad, b"")])
    assert bus.connected


# ---- core NATS


async def test_request_without_anybody_is_unavailable(bus: Bus) -> None:
    with pytest.raises(UnavailableError, match="nothing answers"):
        await bus.request(subject(bus, "nobody"))


async def test_request_that_nobody_answers_in_time_is_unavailable(bus: Bus) -> None:
    leave = await bus.listen(subject(bus, "silent"), ignore)
    with pytest.raises(UnavailableError, match=r"within 0\.05 s"):
        await bus.request(subject(bus, "silent"), timeout=0.05)
    await leave()


def ignore(message: Message) -> None:
    pass


async def test_what_was_sent_before_the_end_of_listening_is_received(bus: Bus) -> None:
    seen: list[bytes] = []
    leave = await bus.listen(subject(bus, "x"), lambda message: seen.append(message.data))
    for n in range(100):
        await bus.publish(subject(bus, "x"), b"%d" % n)
    await leave()
    assert len(seen) == 100


async def test_a_failing_receiver_does_not_end_its_subscription(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bytes] = []

    def failing(message: Message) -> None:
        seen.append(message.data)
        raise ValueError("no")

    leave = await bus.listen(subject(bus, "x"), failing)
    await bus.publish(subject(bus, "x"), b"1")
    await bus.publish(subject(bus, "x"), b"2")
    await leave()
    assert seen == [b"1", b"2"]
    assert caplog.text.count("ValueError: no") == 2


async def test_cancelled_calls_leave_the_connection_alone(bus: Bus, stream: str) -> None:
    async def hasty(n: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(n / 100_000):
                await (await bus.listen(subject(bus, "x"), ignore))()
                await bus.commit([Outgoing(subject(bus, "y"), b"")])

    for n in range(100):
        await hasty(n)
    async with asyncio.timeout(2):
        assert (await bus.store(Outgoing(subject(bus, "z"), b"1"))).sequence


async def test_size_guard_is_that_of_the_server(bus: Bus, stream: str) -> None:
    headers = {"X": "ü" * 100}
    most = bus.max_payload - len("NATS/1.0\r\nX: \r\n\r\n") - len(headers["X"].encode())
    assert (await bus.store(Outgoing(subject(bus, "x"), bytes(most), headers))).sequence == 1
    too_large = Outgoing(subject(bus, "x"), bytes(most + 1), headers)
    for attempt in (
        lambda: bus.publish(too_large.subject, too_large.data, headers),
        lambda: bus.request(too_large.subject, too_large.data, headers=headers),
        lambda: bus.store(too_large),
        lambda: bus.store_all([too_large, Outgoing(subject(bus, "x"), b"")]),
        lambda: bus.commit([Outgoing(subject(bus, "x"), b""), too_large]),
    ):
        with pytest.raises(TooLargeError):
            await attempt()
    assert bus.connected
    assert await bus.last_sequence(stream) == 2


# ---- storing and looking up


async def test_stored_message_is_found_with_its_time_and_headers(bus: Bus, stream: str) -> None:
    before = now_ms()
    await bus.store(Outgoing(subject(bus, "a"), b"1", {"X": "ä\r\nb"}))
    await bus.store(Outgoing(subject(bus, "b"), b"\x00\xff"))
    found = await bus.get(stream, 1)
    assert found is not None
    assert (found.subject, found.data, found.headers, found.sequence) == (subject(bus, "a"), b"1", {"X": "ä  b"}, 1)
    assert before - 1000 <= found.time_ms <= now_ms() + 1000
    last = await bus.last(stream, subject(bus, "*"))
    assert last is not None
    assert last.data == b"\x00\xff"
    following = await bus.next(stream, 1, subject(bus, "b"))
    assert following is not None
    assert following.sequence == 2
    assert await bus.get(stream, 9) is None
    assert await bus.last(stream, subject(bus, "c")) is None


async def test_a_stream_that_is_missing_is_not_an_absent_message(bus: Bus) -> None:
    for attempt in (bus.get("nope", 1), bus.last("nope", "x"), bus.last_sequence("nope")):
        with pytest.raises(NotFoundError):
            await attempt


async def test_known_id_is_a_duplicate_and_another_sequence_a_conflict(bus: Bus, stream: str) -> None:
    first = await bus.store(Outgoing(subject(bus, "a"), b"1", msg_id="one"))
    again = await bus.store(Outgoing(subject(bus, "a"), b"1", msg_id="one"))
    assert (first.duplicate, again.duplicate, again.sequence) == (False, True, first.sequence)
    with pytest.raises(ConflictError):
        await bus.store(Outgoing(subject(bus, "a"), b"2", {subjects.EXPECTED_SEQUENCE: "0"}))


async def test_store_all_tries_all_and_raises_the_first_failure(bus: Bus, stream: str) -> None:
    bad = Outgoing(subject(bus, "a"), b"", {subjects.EXPECTED_SEQUENCE: "77"})
    good = [Outgoing(subject(bus, "b"), b"%d" % n) for n in range(MAX_BATCH + 5)]
    with pytest.raises(ConflictError):
        await bus.store_all([bad, *good])
    assert await bus.last_sequence(stream) == len(good)
    assert await bus.store_all([]) == []


async def test_commit_stores_all_or_nothing(bus: Bus, stream: str) -> None:
    sequences = await bus.commit([Outgoing(subject(bus, "a"), b"%d" % n, msg_id=f"i{n}") for n in range(MAX_BATCH)])
    assert sequences == list(range(1, MAX_BATCH + 1))
    fine = Outgoing(subject(bus, "b"), b"fine")
    with pytest.raises(DuplicateError):
        await bus.commit([fine, Outgoing(subject(bus, "a"), b"", msg_id="i7")])
    with pytest.raises(ConflictError):
        await bus.commit([fine, Outgoing(subject(bus, "a"), b"", {subjects.EXPECTED_SEQUENCE: "3"})])
    with pytest.raises(TooLargeError):
        await bus.commit([fine] * (MAX_BATCH + 1))
    assert await bus.last_sequence(stream) == MAX_BATCH
    assert await bus.commit([fine]) == [MAX_BATCH + 1]
    assert await bus.commit([]) == []


async def test_commit_without_a_stream_is_unavailable(bus: Bus) -> None:
    with pytest.raises(UnavailableError, match="no stream"):
        await bus.commit([Outgoing(subject(bus, "a"), b""), Outgoing(subject(bus, "a"), b"")])


async def test_concurrent_commits_get_their_own_sequences(bus: Bus, stream: str) -> None:
    async def commit(name: int) -> list[int]:
        return await bus.commit([Outgoing(subject(bus, "a"), b"%d" % name) for _ in range(20)])

    for name, sequences in enumerate(await asyncio.gather(*map(commit, range(20)))):
        stored = [await bus.get(stream, sequence) for sequence in sequences]
        assert {message.data for message in stored if message} == {b"%d" % name}


async def test_schedule_fires_once_and_a_later_one_replaces_it(bus: Bus, stream: str) -> None:
    at = now_ms() + 1000
    await bus.schedule(subject(bus, "plan"), subject(bus, "target"), at + 60_000, b"first", {})
    await bus.schedule(subject(bus, "plan"), subject(bus, "target"), at, b"second", {"X": "kept"})

    async def fired() -> Message | None:
        return await bus.last(stream, subject(bus, "target"))

    await until(fired)
    message = await fired()
    assert message is not None
    assert (message.data, message.headers["X"]) == (b"second", "kept")
    assert message.time_ms >= at
    assert await bus.last(stream, subject(bus, "plan")) is None


async def test_streams_and_consumers_are_declared_again_and_deleted(bus: Bus, stream: str) -> None:
    kept = {"allow_msg_ttl": True, "allow_msg_schedules": True}  # which cannot be taken away again
    for _ in range(2):
        await bus.ensure_stream(stream, subjects=[subject(bus, ">")], max_age=3600.0, **kept)
    assert stream in await bus.stream_names()
    await bus.store_all([Outgoing(subject(bus, name), b"") for name in ("a", "a", "b")])
    assert await bus.ensure_consumer(stream, "c", ack_policy="explicit", filter_subjects=[subject(bus, "a")]) == 2
    assert await bus.consumer_backlog(stream, "c") == (2, 0)
    await bus.purge(stream, subject(bus, "a"))
    assert await bus.consumer_backlog(stream, "c") == (0, 0)
    await bus.delete_consumer(stream, "c")
    await bus.delete_consumer(stream, "c")
    with pytest.raises(NotFoundError):
        await bus.consumer_backlog(stream, "c")
    await bus.delete_stream(stream)
    await bus.delete_stream(stream)
    assert stream not in await bus.stream_names()


async def test_all_streams_are_listed_though_they_come_in_pages(bus: Bus) -> None:
    wanted = {f"{bus.names.prefix}_{n}" for n in range(5)}
    for name in wanted:
        await bus.ensure_stream(name, subjects=[subject(bus, name)], storage="memory")
    assert wanted <= set(await bus.stream_names())


# ---- the connection


async def test_a_server_that_stays_away_is_named_without_its_secret() -> None:
    with pytest.raises(UnavailableError) as caught:
        async with open_bus("nats://hidden@127.0.0.1:1,nats://hidden@127.0.0.1:2", Names("x"), patience=0.5):
            pass
    assert "127.0.0.1:2" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "refused" in str(caught.value) or "Connect call failed" in str(caught.value)


async def test_one_server_of_a_list_is_enough(nats_url: str, names: Names) -> None:
    async with open_bus(f"nats://127.0.0.1:1, {nats_url}", names, patience=5) as bus:
        assert bus.connected


async def test_a_server_that_is_gone_without_a_word_is_not_waited_for(nats_url: str, names: Names) -> None:
    """It leaves unsent what was written last, and acknowledges no end of the connection."""
    async with proxied(nats_url) as (proxy, url), open_bus(url, names) as bus:
        proxy.stall()
        await stuff(bus)
        await bus._client._process_op_err(nats.errors.StaleConnectionError())  # as after two pings, in 15 s
        await until(lambda: bus.connected, 5)
        await bus._round_trip()


async def test_a_connection_without_a_greeting_is_closed_before_the_next_one(nats_url: str, names: Names) -> None:
    """nats-py connects again over it and forgets it: each one would stay open until the garbage is collected."""
    async with proxied(nats_url) as (proxy, url), open_bus(url, names) as bus:
        proxy.turned_away = 3
        proxy.drop()
        await until(lambda: bus.connections == 2)
        gc.collect()  # a stream that was left open warns, and a warning fails the test
        assert proxy.turned_away == 0


async def test_a_bus_is_closed_though_the_server_takes_nothing(nats_url: str, names: Names) -> None:
    async with asyncio.timeout(10), proxied(nats_url) as (proxy, url), open_bus(url, names) as bus:
        proxy.stall()
        await stuff(bus)


async def stuff(bus: Bus) -> None:
    """Writes until the connection takes no more."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await bus.publish("x", bytes(MANY // 2))
                await asyncio.sleep(0)  # it is written at the end of a turn


async def test_an_outage_fails_at_once_and_ends_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, Names("p")) as bus:
        seen: list[bytes] = []

        await bus.listen("p.silent", lambda message: seen.append(message.data))
        await bus.ensure_stream("S", subjects=["p.s.>"], allow_atomic=True)
        waiting = asyncio.create_task(bus.request("p.silent", timeout=60))
        await until(lambda: seen)
        await server.kill()
        async with asyncio.timeout(2):
            with pytest.raises(UnavailableError, match="went away"):
                await waiting
            for attempt in (
                lambda: bus.request("p.silent", timeout=60),
                lambda: bus.publish("p.silent", b""),
                lambda: bus.commit([Outgoing("p.s.a", b"")], timeout=60),
                lambda: bus.listen("p.other", ignore),
                lambda: bus.last_sequence("S"),
                lambda: bus.ensure_consumer("S", "c"),
            ):
                with pytest.raises(UnavailableError):
                    await attempt()
        assert not bus.connected
        await asyncio.sleep(1)
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) < 5
        await server.start()
        await bus.wait_connected()
        assert bus.connected
        assert await bus.commit([Outgoing("p.s.a", b"1")]) == [1]
        await bus.publish("p.silent", b"again")
        await until(lambda: b"again" in seen)


async def test_nothing_acknowledged_is_lost_and_nothing_is_twice_when_the_server_is_killed(tmp_path: Path) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, Names("p")) as bus:
        await bus.ensure_stream("S", subjects=["p.s.>"], allow_atomic=True)
        accepted: list[bytes] = []

        async def insist(n: int) -> None:
            messages = [Outgoing("p.s.a", b"%d.%d" % (n, part), msg_id=f"{n}.{part}") for part in range(3)]
            while True:
                try:
                    await bus.commit(messages, timeout=2)
                except UnavailableError:
                    await asyncio.sleep(0.01)
                    await bus.wait_connected()
                    continue
                except DuplicateError:  # it was stored, and the acknowledgement lost
                    pass
                accepted.extend(message.data for message in messages)
                return

        async def write() -> None:
            for n in range(300):
                await insist(n)

        writing = asyncio.create_task(write())
        for count in (100, 300, 500):
            await until(lambda count=count: len(accepted) > count)
            await server.restart()
        await writing
        end = await bus.last_sequence("S")
        stored = [await bus.get("S", sequence) for sequence in range(1, end + 1)]
        assert [message.data for message in stored if message] == accepted


async def test_a_connection_that_is_closed_for_good_is_said(tmp_path: Path) -> None:
    async with private_server(tmp_path) as server, open_bus(server.url, Names("p")) as bus:
        # A violation of the protocol, after which the client library never tries again.
        await bus._client._send_command(b"NONSENSE\r\n")
        await bus._client._flush_pending()
        await until(lambda: not bus.connected)
        with pytest.raises(UnavailableError, match="for good"):
            await bus.wait_connected()


@pytest.mark.parametrize("turns", range(4))
def test_a_connection_that_has_just_broken_is_unavailable(nats_url: str, names: Names, turns: int) -> None:
    """The client library hears of it a moment after the transport, on the event loop that services run on."""
    unhandled: list[object] = []

    async def broken() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
        async with open_bus(nats_url, names) as bus:
            bus._client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
            for _ in range(turns):
                await asyncio.sleep(0)
            with pytest.raises(UnavailableError):
                await bus.request(f"{names.prefix}.nobody")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(broken())
    assert not unhandled
