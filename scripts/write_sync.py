"""Writes the synchronous client from the asynchronous one; with --check it only says that it is stale."""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "libs" / "client" / "crucible_client"
WHOLE = (
    (
        "The asynchronous client: the same calls, awaited.",
        "The synchronous client, written from aio.py.",
    ),
    ("between tasks; close it, or use it in an `async with`", "between threads; close it, or use it in a `with`"),
    ("import asyncio\n", ""),
    ("from typing import Any, ", "from typing import "),
    ("from crucible_client.batches import packed_async as packed\n", "from crucible_client.batches import packed\n"),
    ("import websockets.asyncio.client as asyncio_client", "import websockets.sync.client as sync_client"),
    ("Iterable[Json | bytes] | AsyncIterable[Json | bytes]", "Iterable[Json | bytes]"),
    ("[item async for item in pages(self, *args, **kwargs)]", "list(pages(self, *args, **kwargs))"),
)
_EACH = (r"\bfor (\w+) in (.+):\n\s+yield \1\n", r"yield from \2\n")
PATTERNS = (
    (r"Coroutine\[Any, Any, (T|list\[T\])\]", r"\1"),
    (r"AsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
)
NAMES = {
    "asyncio.sleep": "time.sleep",
    "asyncio_client": "sync_client",
    "asynccontextmanager": "contextmanager",
    "open_async_socket": "open_socket",
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    "AsyncIterable, ": "",
    "Coroutine, ": "",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "httpx.AsyncBaseTransport": "httpx.BaseTransport",
    "httpx.AsyncClient": "httpx.Client",
    "httpx.AsyncHTTPTransport": "httpx.HTTPTransport",
    **{f"__a{name}__": f"__{name}__" for name in ("enter", "exit")},
    **{name: name[1:] for name in ("aread", "aclose", "aiter_bytes", "aiter_sse")},
}


def synchronous(source: str) -> str:
    for old, new in WHOLE:
        if old not in source:
            raise ValueError(f"aio.py has no {old!r} any more")
        source = source.replace(old, new)
    for pattern, new in PATTERNS:
        source = re.sub(pattern, new, source)
    for name, new in NAMES.items():
        source = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)" if name[-1] != " " else re.escape(name), new, source)
    source = re.sub(r"\bAsync(?=[A-Z])", "", source)
    source = re.sub(*_EACH, source)
    for arguments in (["check", "--fix", "--select", "I,F401"], ["format"]):
        source = _ruff(arguments, source)
    return source


def _ruff(arguments: list[str], source: str) -> str:
    ruff = str(Path(sys.executable).with_name("ruff"))
    name = ["--stdin-filename", str(CLIENT / "sync.py"), "--quiet", "-"]
    return subprocess.run([ruff, *arguments, *name], input=source, capture_output=True, text=True, check=True).stdout


def main() -> int:
    text, file = synchronous((CLIENT / "aio.py").read_text()), CLIENT / "sync.py"
    stale = file.read_text() != text
    if stale and "--check" not in sys.argv:
        file.write_text(text)
    if stale:
        print("stale:" if "--check" in sys.argv else "written:", "crucible_client/sync.py")
    return int(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
