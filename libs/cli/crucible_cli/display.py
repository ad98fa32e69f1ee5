"""Display texts for a terminal: one clean line of any text, durations, errors, titles, and an event in a few words."""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec

from crucible_core.envelope import Event

LENGTH = 72


def summarise(event: Event, length: int = LENGTH) -> str:
    """An event in words, beyond its type's name."""
    if event.redacted:
        return clean(f"redacted by {event.redacted.by} {event.redacted.reason or ''}", length)
    payload = event.data.payload if isinstance(event.data.payload, dict) else {"payload": event.data.payload}
    words = _BY_TYPE.get(event.dotted) or _BY_CATEGORY.get(event.type) or _anything
    return clean(words(payload) or _anything(payload), length)


def clean(text: str, length: int = LENGTH) -> str:
    """One line of at most `length` characters, with nothing in it that a terminal would obey."""
    cut = text[: length * 4]
    line = " ".join("".join(char if char.isprintable() else " " for char in cut).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def duration(ms: float) -> str:
    """A length of time as people read it."""
    if ms < 10:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.1f} s"


def reason(error: str) -> str:
    """A run's failure on one line: of a script's traceback its last."""
    return error.rstrip().rpartition("\n")[2] if "Traceback (most recent call last)" in error else error


def headline(content: str) -> str:
    """A note's first line that says something: its title, without front matter and marks."""
    lines = content[:4000].splitlines()
    if lines and lines[0].strip() == "---" and "---" in (line.strip() for line in lines[1:]):
        lines = lines[1 + [line.strip() for line in lines[1:]].index("---") + 1 :]
    return next((line.strip(" #\t") for line in lines if line.strip(" #\t")), "")


def _file(payload: Mapping[str, Any]) -> str:
    old = payload.get("from") or payload.get("old_path")
    path = str(payload.get("to") or payload.get("path") or "")
    moved = f"{old} → {path}" if old else path
    error = str(payload.get("error") or "").removeprefix(f"{path}: ")
    became = f"{payload.get('status') or ''}: {error}" if error else str(payload.get("status") or "")
    return f"{moved} {became}".rstrip()


def _memory(payload: Mapping[str, Any]) -> str:
    title = payload.get("title") or headline(str(payload.get("content") or ""))
    name = title or PurePosixPath(str(payload.get("path") or "")).stem or str(payload.get("id") or "")
    tags = payload.get("tags")
    return " ".join([str(name), *map(str, tags if isinstance(tags, list) else ())])


def _link(payload: Mapping[str, Any]) -> str:
    strength = payload.get("strength", payload.get("weight"))
    weight = f" ({strength:.2f})" if isinstance(strength, float) else ""
    near = payload.get("from") or payload.get("id") or payload.get("source")
    return f"{_short(near)} → {_short(payload.get('to') or payload.get('target'))}{weight}"


def _tag(payload: Mapping[str, Any]) -> str:
    return f"{_short(payload.get('id'))} {payload.get('tag')}"


def _hook(payload: Mapping[str, Any]) -> str:
    took = payload.get("duration_ms")
    parts = [str(payload.get("hook") or ""), str(payload.get("error") or payload.get("reason") or "")]
    return " ".join([part for part in parts if part] + ([duration(took)] if isinstance(took, int | float) else []))


def _redacted(payload: Mapping[str, Any]) -> str:
    return " ".join(str(payload.get(name) or "") for name in ("event_id", "type", "reason"))


def _webhook(payload: Mapping[str, Any]) -> str:
    parts = (
        payload.get("name") or payload.get("id"),
        payload.get("url"),
        payload.get("reason") or payload.get("error"),
    )
    return " ".join(str(part) for part in parts if part)


def _anything(payload: Mapping[str, Any]) -> str:
    return msgspec.json.encode(payload).decode() if payload else ""


def _short(id: Any) -> str:
    """An id's end, where TypeIDs differ."""
    text = str(id or "?")
    return text if len(text) <= 16 else f"{text.split('_')[0]}_…{text[-6:]}"


_BY_CATEGORY: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "File": _file,
    "Memory": _memory,
    "Hook": _hook,
    "Webhook": _webhook,
}
_BY_TYPE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "Memory.Linked": _link,
    "Memory.Unlinked": _link,
    "Graph.EdgeCreated": _link,
    "Graph.EdgeRemoved": _link,
    "Graph.NodeAdded": _memory,
    "Graph.NodeRemoved": _memory,
    "Memory.Tagged": _tag,
    "Memory.Untagged": _tag,
    "Memory.Redacted": _redacted,
    "Graph.Redacted": _redacted,
    "System.Redacted": _redacted,
}
