"""A thousand notes saved at once in a watched folder, until each is a memory.

The floor is the same work in one process: read, parse, three messages for each to JetStream, a row of a full text.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nats
from markdown_it import MarkdownIt

from bench.floors import make_stream, server
from bench.running import CRUCIBLE, Row, Running, running, until

NOTES = 1000
AT_ONCE = 200
LEAST = 300
"""Notes a second."""
_TEXT = "---\ntags: [alpha, t{0}]\n---\n# Note {1}\n\nAbout [[note-{2}]], which is searched for. #research\n\n{3}\n"


def run() -> list[Row]:
    with _folder() as folder, server() as url:
        files = _write(folder)
        floor = NOTES / asyncio.run(_bare(files, url))
    with running() as stack, _folder() as folder, _watching(stack, folder) as watch:
        before = stack.cpu()
        began = time.perf_counter()
        _write(folder)
        until(lambda: _count(stack) > NOTES, 300)
        rate = NOTES / (time.perf_counter() - began)
        row = stack.row("1,000 notes saved at once, to memories", rate, floor, "notes/s", before=before)
        used = sum(stack.cpu().values()) - sum(before.values())
    assert watch.returncode is not None
    row |= {"wanted": f"≥ {LEAST}/s", "": "ok" if rate >= LEAST else "MISSED"}
    return [row, {"what": "  processor time of all services", "crucible": f"{1000 * used / NOTES:.1f} ms/note"}]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="crucible-notes-"))
    yield root
    shutil.rmtree(root)


@contextlib.contextmanager
def _watching(stack: Running, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [CRUCIBLE, "watch", str(folder), "--data", str(stack.data)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "first.md").write_text("the first")
    until(lambda: _count(stack) == 1, 30)
    time.sleep(2)
    yield process
    process.terminate()
    process.wait(10)


def _count(stack: Running) -> int:
    with stack.http() as http:
        count: int = http.get("/api/v1/memory/status").json()["memories"]
    time.sleep(0.05)
    return count


def _write(folder: Path) -> list[Path]:
    files = [folder / f"note-{number}.md" for number in range(NOTES)]
    for number, file in enumerate(files):
        file.write_text(_TEXT.format(number % 7, number, (number + 1) % NOTES, "words and more words " * 20))
    return files


async def _bare(files: Sequence[Path], url: str) -> float:
    """The seconds that it takes."""
    with contextlib.closing(sqlite3.connect(files[0].with_name("floor.sqlite"))) as index:
        index.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE VIRTUAL TABLE t USING fts5(x)")
        client, reader = await nats.connect(url, pending_size=64 * 1024 * 1024), MarkdownIt("commonmark")
        await make_stream(client)
        inbox = await client.subscribe(reply := client.new_inbox())
        began = time.perf_counter()
        for start in range(0, len(files), AT_ONCE):
            texts = [file.read_text() for file in files[start : start + AT_ONCE]]
            for kind in ("file", "memory"):
                await _commit(client, inbox, reply, [json.dumps(_note(reader, text)).encode() for text in texts], kind)
            index.executemany("INSERT INTO t VALUES (?)", [(text,) for text in texts])
            index.commit()
        took = time.perf_counter() - began
        await client.close()
        return took


def _note(reader: MarkdownIt, text: str) -> dict[str, Any]:
    tokens = reader.parse(text)
    return {"content": text, "hash": hashlib.sha256(text.encode()).hexdigest(), "tokens": len(tokens)}


async def _commit(client: Any, inbox: Any, reply: str, payloads: Sequence[bytes], kind: str) -> None:
    batch = secrets.token_hex(12)
    messages = payloads if kind == "file" else [one for payload in payloads for one in (payload, b"{}")]
    for place, payload in enumerate(messages, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(place), "Nats-Msg-Id": f"{batch}{place}"}
        if place == len(messages):
            headers["Nats-Batch-Commit"] = "1"
        await client.publish(
            f"floor.b{place % 64}", payload, reply if "Nats-Batch-Commit" in headers else "", headers=headers
        )
    answer = await inbox.next_msg(10)
    assert b'"error"' not in answer.data, answer.data
