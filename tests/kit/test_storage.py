"""Whether there is room: on a disk, and by JetStream's word."""

import asyncio
from pathlib import Path

import pytest

from crucible_core.errors import StorageFullError
from crucible_core.limits import STORAGE_RESERVE_BYTES, storage_reserve
from crucible_core.subjects import Names
from crucible_kit.buckets import open_bucket
from crucible_kit.nats.bus import open_bus
from crucible_kit.nats.frames import Outgoing
from crucible_kit.nats.storage import Storage
from tests.kit.outage import private_server, until

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("total_mib", "reserve_mib"), [(1_000_000, 256), (2560, 256), (1000, 100), (200, 32), (64, 16), (0, 0)]
)
def test_what_is_kept_free_suits_the_disk(total_mib: int, reserve_mib: int) -> None:
    assert storage_reserve(total_mib * MIB) == reserve_mib * MIB
    assert storage_reserve(total_mib * MIB) <= STORAGE_RESERVE_BYTES


def test_less_room_than_the_reserve_is_said_with_the_numbers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), 1e9)
    with pytest.raises(StorageFullError, match=r"the disk of .* MiB, and 1,000,000,000 MiB are kept free") as caught:
        storage.check()
    assert caught.value.extra["retry_after"] > 0
    [trouble] = storage.troubles()
    assert trouble.code == "storage"


def test_room_is_there_by_size(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path), 0)
    storage.check()
    with pytest.raises(StorageFullError):
        storage.check(2**60)
    assert Storage(str(tmp_path / "missing"), 1e9).shortage() is None
    assert Storage().troubles() == []


async def test_a_limit_of_jetstream_is_no_room_and_is_asked_for_again(tmp_path: Path, names: Names) -> None:
    async with private_server(tmp_path, max_file_store=4 * MIB) as server, open_bus(server.url, names) as bus:
        await open_bucket(bus, "marks")
        stream, subject = f"{names.prefix}_KEPT", f"{names.prefix}.kept"
        await bus.ensure_stream(stream, subjects=[subject])
        watching = asyncio.create_task(bus.storage.watch(bus))
        filling = (bus.store(Outgoing(subject, bytes(MIB // 2))) for _ in range(20))
        with pytest.raises(StorageFullError, match="JetStream has no room"):
            await asyncio.gather(*filling)
        with pytest.raises(StorageFullError):
            await bus.commit([Outgoing(subject, bytes(MIB // 4))] * 2)
        assert "JetStream has no room" in (bus.storage.shortage() or "")
        await asyncio.sleep(0)
        await bus.purge(stream, subject)
        await until(lambda: bus.storage.shortage() is None)
        await bus.store(Outgoing(subject, b"x"))
        watching.cancel()
