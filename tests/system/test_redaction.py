"""Redaction from end to end: what was erased is in no file of the installation any more."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_core.errors import NotFoundError

from .conftest import Stack, until

SECRET = "the colour of the vault is vermilion"


def files_with(data: Path, text: str) -> list[str]:
    return sorted(str(file.relative_to(data)) for file in _files(data) if text.encode() in file.read_bytes())


def _files(data: Path) -> Iterator[Path]:
    return (file for file in data.rglob("*") if file.is_file())


def test_what_is_redacted_is_in_no_file(stack: Stack) -> None:
    with stack.client() as crucible:
        custom = crucible.events.append("Custom.Note", {"text": SECRET}, entity="vault")
        memory = crucible.memory.create(f"{SECRET}, and nobody knows", tags=["#colour"])
        kept = crucible.memory.create("The vault is locked.")
        found = crucible.events.list("Memory.Created", min_sequence=kept.sequence)
        created = next(event for event in found if event.metadata.entity == memory.id)
        until(lambda: len(crucible.memory.query("vault")) == 2, 10)
        assert {name.split("/")[0] for name in files_with(stack.data, SECRET)} == {"nats", "index"}

        shown = stack.run("events", "redact", custom.id or "", "--reason", "a test", "--yes").stdout
        assert "a test" in shown
        left = crucible.events.redact(created.metadata.id)
        assert left.redacted
        assert left.redacted.by == "user:admin"
        until(lambda: len(crucible.memory.query("vault")) == 1, 10)
        with pytest.raises(NotFoundError):
            crucible.memory.get(memory.id)
        until(lambda: files_with(stack.data, SECRET) == [], 20, lambda: str(files_with(stack.data, SECRET)))
        assert [bool(event.redacted) for event in crucible.events.list(entity="vault")] == [True, False]
    stack.stop()
    for file in (stack.data / "index").rglob("*.sqlite*"):
        file.unlink()
    stack.start()
    with stack.client() as crucible:
        assert crucible.events.get(created.metadata.id) == left
        assert [match.id for match in crucible.memory.query("vault")] == [kept.id]
    assert files_with(stack.data, SECRET) == []
