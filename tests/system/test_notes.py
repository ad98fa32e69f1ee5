"""A folder of notes as people write them, through `crucible watch`, to what a query finds."""

import codecs
import json
from pathlib import Path
from typing import Any

from .conftest import Stack, until


class Notes:
    """A watched folder, and what has become of it."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        folder.mkdir()

    def write(self, path: str, text: str | bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    def send(self) -> list[dict[str, Any]]:
        """What `watch --once` says, once the memory service is done with all of it."""
        done = self.stack.run("watch", str(self.folder), "--once", "--json")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        wanted = {line["id"] for line in told if not line["type"].startswith("File.Directory")}
        with self.stack.client() as crucible:
            until(lambda: wanted <= {event.metadata.causation_id for event in self.processed(crucible)}, 15)
        return told

    def processed(self, crucible: Any) -> list[Any]:
        return list(crucible.events.list("File.Processed", page_size=1000))

    def find(self, text: str | None = None, **fields: Any) -> list[Any]:
        with self.stack.client() as crucible:
            newest = next(iter(crucible.events.list(order="desc", page_size=1))).sequence
            found: list[Any] = crucible.memory.query(text, min_sequence=newest, limit=100, **fields)
            return found

    def paths(self, text: str | None = None, **fields: Any) -> set[str]:
        return {memory.path for memory in self.find(text, **fields)}


def test_notes_as_people_write_them(stack: Stack, tmp_path: Path) -> None:
    notes = Notes(stack, tmp_path / "notes")
    notes.write("会議　メモ.md", "昨日は東京都庁に行きました #हिन्दी #ภาษาผู้ใช้")
    notes.write(
        "straße.md", "---\ntags: [no, 007, Proj/Alpha]\nat: 12:30\n---\nDie Straße ist gesperrt #cafe\u0301 #1984"
    )
    notes.write("wide.md", codecs.BOM_UTF16_LE + "# Wide\nIn UTF-16 geschrieben 🎉".encode("utf-16-le"))
    notes.write("child.md", '---\nup: "[[STRASSE]]"\nrelated: ["[[会議 メモ]]"]\n---\ntext')
    notes.write("good.md", "---\ntitle: Plan\n---\nthe first zebra")
    notes.send()
    for text, path in (
        ("東京", "会議　メモ.md"),
        ("都庁", "会議　メモ.md"),
        ("STRASSE", "straße.md"),
        ("geschrieben", "wide.md"),
        ("🎉", "wide.md"),
    ):
        assert notes.paths(text) == {path}, text
    for tag, path in (
        ("#हिन्दी", "会議　メモ.md"),
        ("#ภาษาผู้ใช้", "会議　メモ.md"),
        ("#café", "straße.md"),
        ("#007", "straße.md"),
        ("#proj", "straße.md"),
        ("#PROJ/alpha", "straße.md"),
    ):
        assert notes.paths(tags=[tag]) == {path}, tag
    assert notes.paths(tags=["#1984"]) == set()
    ids = {memory.path: memory.id for memory in notes.find()}
    [street] = notes.find("gesperrt")
    assert (street.metadata, street.tags[:3]) == ({"at": "12:30"}, ["#no", "#007", "#Proj/Alpha"])
    [child] = notes.find(filter={"path": "child.md"})
    assert {(link.target, link.type) for link in child.links} == {
        (ids["straße.md"], "up"),
        (ids["会議　メモ.md"], "related"),
    }

    notes.write("good.md", "---\ntitle: Plan: part two\n---\nthe second zebra")
    [told] = notes.send()
    assert (told["path"], told["sequence"] is not None) == ("good.md", True)
    assert "front matter, line 2" in told["note"]
    assert "in quotes" in told["note"]
    [good] = notes.find("second zebra")
    assert (good.id, good.path, good.problems) == (ids["good.md"], "good.md", [told["note"]])
    assert notes.paths("first") == set()

    with stack.client() as crucible:
        crucible.memory.update(street.id, tags=[*street.tags, "#by-agent"])
    (notes.folder / "straße.md").rename(notes.folder / "weg.md")
    (notes.folder / "good.md").replace(notes.folder / "wide.md")
    assert {(line["type"], line["path"]) for line in notes.send()} == {
        ("File.Renamed", "weg.md"),
        ("File.Renamed", "wide.md"),
    }
    [street] = notes.find(tags=["#by-agent"])
    assert (street.id, street.path) == (ids["straße.md"], "weg.md")
    [child] = notes.find(filter={"path": "child.md"})
    assert street.id in {link.target for link in child.links}
    [wide] = notes.find("zebra")
    assert (wide.id, wide.path) == (ids["good.md"], "wide.md")
    assert notes.find("geschrieben") == []

    notes.write("wide.md", "zebra " * 200_000)
    [told] = notes.send()
    assert "900 KiB" in told["note"]
    assert notes.find("zebra") == []
    [wide] = notes.find(filter={"path": "wide.md"})
    assert (wide.content, wide.problems) == ("", [told["note"]])
