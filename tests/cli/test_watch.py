"""`crucible watch`: the log follows the folder, whatever happens in between."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crucible_cli.commands.watch import Folder, Outcome, Watcher
from crucible_cli.notes import Note, changes, is_note, scan
from crucible_client import Crucible
from crucible_core.errors import CrucibleError
from crucible_core.types.catalogue import CATALOGUE
from tests.client.playing import BROKEN, KEY, Played, trouble

Run = Callable[..., Any]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.md").write_text("# One")
    (folder / "deep" / "two.md").write_text("# Two")
    return folder


def sent(played: Played) -> list[tuple[str, str]]:
    return [(event["data"]["event"], event["metadata"]["entity"]) for event in played.log]


def once(run: Run, notes: Path) -> list[dict[str, Any]]:
    result = run("watch", str(notes), "--once", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def following(
    played: Played, folder: Folder, note: Callable[[str], None] = lambda text: None
) -> Iterator[list[Outcome]]:
    told: list[Outcome] = []
    stop = threading.Event()
    with Crucible(played.url, KEY, environ={}) as crucible:
        watcher = Watcher(crucible, folder, told.append, note)
        watcher.begin()
        thread = threading.Thread(target=watcher.follow, args=(stop,))
        thread.start()
        try:
            yield told
        finally:
            stop.set()
            thread.join(10)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_the_first_scan_sends_every_note(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    assert sent(played) == [("Created", "deep/two.md"), ("Created", "one.md")]
    payload = played.payloads[1]
    assert (payload["path"], payload["root"], payload["content"]) == ("one.md", str(notes), "# One")
    assert (payload["size"], payload["mime"], len(payload["hash"])) == (5, "text/markdown", 64)
    for event in played.log:
        CATALOGUE.validate(f"File.{event['data']['event']}", json.dumps(event["data"]["payload"]).encode())


def test_nothing_is_sent_twice(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    os.utime(notes / "one.md")
    assert once(run, notes) == []


def test_what_changed_while_it_was_away_is_found(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    (notes / "one.md").write_text("# One, again")
    (notes / "deep" / "two.md").rename(notes / "moved.md")
    (notes / "new.md").write_text("# New")
    found = once(run, notes)
    assert [(line["type"], line["path"]) for line in found] == [
        ("File.Renamed", "moved.md"),
        ("File.Created", "new.md"),
        ("File.Modified", "one.md"),
    ]
    assert played.payloads[2]["from"] == "deep/two.md"
    (notes / "moved.md").unlink()
    assert [line["type"] for line in once(run, notes)] == ["File.Deleted"]
    for event in played.log:
        CATALOGUE.validate(f"File.{event['data']['event']}", json.dumps(event["data"]["payload"]).encode())


def test_a_note_that_comes_back_is_created_again(run: Run, played: Played, notes: Path, tmp_path: Path) -> None:
    once(run, notes)
    for _ in range(2):
        (notes / "one.md").rename(tmp_path / "away.md")
        once(run, notes)
        (tmp_path / "away.md").rename(notes / "one.md")
        once(run, notes)
    assert [event for event, path in sent(played) if path == "one.md"] == [
        "Created",
        "Deleted",
        "Created",
        "Deleted",
        "Created",
    ]


def test_a_lost_answer_appends_nothing_twice(run: Run, played: Played, notes: Path) -> None:
    played.after_commit = [BROKEN] * 4
    assert run("watch", str(notes), "--once").exit_code == 1
    assert len(played.log) == 2
    assert [line["sequence"] for line in once(run, notes)] == [1, 2]
    assert len(played.log) == 2


def test_another_log_gets_everything(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    played.log.clear()
    played.known.clear()
    assert len(once(run, notes)) == 2


def test_a_refused_note_is_told_and_not_sent_again(run: Run, played: Played, notes: Path) -> None:
    refusal = {"type": "https://x/denied", "detail": "no", "hook": "guard", "reason": "no title"}
    played.append = lambda sent, key=None: {"error": refusal}  # type: ignore[method-assign, assignment, misc]
    result = run("watch", str(notes), "--once")
    assert "denied by the hook guard: no title" in result.stdout
    del played.append  # type: ignore[method-assign]
    assert once(run, notes) == []
    (notes / "one.md").write_text("# One, mended")
    assert [line["type"] for line in once(run, notes)] == ["File.Created"]


def test_a_long_note_is_sent_without_its_content(run: Run, played: Played, notes: Path) -> None:
    (notes / "one.md").write_text("x" * (901 * 1024))
    (notes / "deep" / "two.md").write_bytes(b"\x01" * (300 * 1024))  # as JSON six times as long
    once(run, notes)
    assert all("content" not in payload and "900 KiB" in payload["reason"] for payload in played.payloads)


def test_a_note_that_is_not_utf8_is_sent_all_the_same(run: Run, played: Played, notes: Path) -> None:
    (notes / "one.md").write_bytes(b"caf\xe9")
    [_, line] = once(run, notes)
    assert played.payloads[1]["content"] == "caf\ufffd"
    assert line["note"] == "what is not UTF-8 shows as \ufffd: byte 3 is not UTF-8: save the file as UTF-8"


@pytest.mark.parametrize("data", ["# Größe".encode("utf-16-le"), b"\x7fELF\x00\x01", b"\xff\xfea\x00b"])
def test_what_is_no_text_is_told_and_left_out(run: Run, played: Played, notes: Path, data: bytes) -> None:
    (notes / "one.md").write_bytes(data)
    [_, line] = once(run, notes)
    assert "content" not in played.payloads[1]
    assert line["note"].startswith("the content is left out: ")
    assert "save the file as UTF-8" in line["note"]


def test_changes_are_followed(played: Played, notes: Path, tmp_path: Path) -> None:
    with following(played, Folder(notes, tmp_path / "ledger.json")):
        (notes / "one.md").write_text("# One, again")
        until(lambda: ("Modified", "one.md") in sent(played))
        (notes / "deep").rename(notes / "deeper")
        until(lambda: ("Renamed", "deeper/two.md") in sent(played))
        (notes / "one.md").unlink()
        until(lambda: ("Deleted", "one.md") in sent(played))


def test_a_burst_is_one_event(played: Played, notes: Path, tmp_path: Path) -> None:
    with following(played, Folder(notes, tmp_path / "ledger.json")):
        for number in range(20):
            draft = notes / ".one.md.swp"
            draft.write_text(f"# {number}")
            draft.replace(notes / "one.md")
        until(lambda: bool(played.log) and played.payloads[-1].get("content") == "# 19")
    assert len(played.log) < 12


def test_a_gateway_that_is_away_is_waited_for(played: Played, notes: Path, tmp_path: Path) -> None:
    with following(played, Folder(notes, tmp_path / "ledger.json")) as told:
        played.troubles = [trouble(503, "unavailable", "0")] * 6
        (notes / "one.md").write_text("# One, again")
        until(lambda: ("Modified", "one.md") in sent(played))
        until(lambda: told[-1].path == "one.md")


def test_a_folder_that_goes_away_deletes_nothing(played: Played, notes: Path, tmp_path: Path) -> None:
    with Crucible(played.url, KEY, environ={}) as crucible:
        watcher = Watcher(crucible, Folder(notes, tmp_path / "ledger.json"), lambda _: None, lambda _: None)
        watcher.begin()
        notes.rename(tmp_path / "unmounted")
        with pytest.raises(CrucibleError, match="the folder is gone"):
            watcher.catch_up()
    assert ("Deleted", "one.md") not in sent(played)


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        ("a.md", True),
        ("a b/ü.md", True),
        (".obsidian/a.md", False),
        ("a/.a.md", False),
        (".#a.md", False),
        ("#a.md#", False),
        ("~$a.md", False),
        ("a.md~", False),
        ("a.txt", False),
        ("README.MD", True),
        ("doc.markdown", True),
        ("a\u00a0b.Md", True),
        ("~/a.md", True),
    ],
)
def test_what_a_note_is(path: str, holds: bool) -> None:
    assert is_note(path) is holds


def test_a_touched_file_is_read_whatever_its_time(tmp_path: Path) -> None:
    note = tmp_path / "a.md"
    note.write_text("one")
    before = scan(tmp_path, {}).notes
    time_ns = note.stat().st_mtime_ns
    note.write_text("two")
    os.utime(note, ns=(time_ns, time_ns))
    assert changes(before, scan(tmp_path, before).notes) == []
    assert [change.path for change in changes(before, scan(tmp_path, before, {"a.md"}).notes)] == ["a.md"]


@pytest.mark.parametrize(
    "name",
    [
        "👩‍💻 dev.md",
        "会議　メモ.md",
        "a\u00a0b.md",
        "a\u200cb.md",
        "README.MD",
        "doc.markdown",
        "line\nfeed.md",
        "\x1b]0;title\x07.md",
        "\u202egnp.md",
        "e\u0301.md",
        "-rf.md",
        "%s.md",
    ],
)
def test_name_of_a_note_may_be_any_text(run: Run, played: Played, notes: Path, name: str) -> None:
    (notes / name).write_text("# Any")
    result = run("watch", str(notes), "--once")
    assert (result.exit_code, "Created" in result.stdout) == (0, True)
    assert name in [payload["path"] for payload in played.payloads]
    assert not {"\x1b", "\x07", "\u202e"} & set(result.output)


def test_what_is_passed_over_is_said_once(run: Run, played: Played, notes: Path) -> None:
    odd = os.fsencode(notes)
    for name in (b"caf\xe9.pdf", b"caf\xe9.md", b"\xff/in.md", b".hidden.md", b".git/x.md", b"~draft.md", b"plain.txt"):
        Path(os.fsdecode(odd + b"/" + name)).parent.mkdir(exist_ok=True)
        Path(os.fsdecode(odd + b"/" + name)).write_text("x")
    os.mkfifo(notes / "pipe.md")
    (notes / "zero.md").symlink_to("/dev/zero")
    (notes / "loop.md").symlink_to(notes / "loop.md")
    (notes / "folder.md").mkdir()
    (notes / "up").symlink_to(notes)
    result = run("watch", str(notes), "--once")
    assert result.exit_code == 0
    assert sent(played) == [("Created", "deep/two.md"), ("Created", "one.md")]
    said = sorted(result.stderr.splitlines())
    assert sum("not UTF-8" in line for line in said) == 2
    assert sum("pipe.md" in line for line in said) == sum("zero.md" in line for line in said) == 1
    assert len(said) == 7  # with what to do next


def test_name_that_is_no_text_ends_nothing(played: Played, notes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with following(played, Folder(notes, tmp_path / "ledger.json"), said.append):
        for n, name in enumerate((b"caf\xe9.pdf", b"x\xff.bak", b"caf\xe9.md")):
            Path(os.fsdecode(os.fsencode(notes) + b"/" + name)).write_text("x")
            (notes / f"b{n}.md").write_text("# B")
            until(lambda n=n: ("Created", f"b{n}.md") in sent(played))  # type: ignore[misc]
    assert ["is passed over: its name is not UTF-8" in line for line in said] == [True]


def test_pipe_that_takes_a_notes_place_is_its_end(played: Played, notes: Path, tmp_path: Path) -> None:
    with following(played, Folder(notes, tmp_path / "ledger.json")):
        (notes / "one.md").unlink()
        os.mkfifo(notes / "one.md")
        until(lambda: ("Deleted", "one.md") in sent(played))
        (notes / "b.md").write_text("# B")
        until(lambda: ("Created", "b.md") in sent(played))


def watched_folders() -> int:
    """How many directories this process has the system watch (proc(5), fdinfo of inotify)."""
    told = (Path("/proc/self/fdinfo") / name for name in os.listdir("/proc/self/fdinfo"))
    return sum(file.read_text().count("inotify wd:") for file in told if file.exists())


def test_links_to_folders_are_not_watched(played: Played, notes: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    for number in range(100):
        (far / str(number)).mkdir(parents=True)
    (notes / "far").symlink_to(far)
    (notes / "up").symlink_to(notes)
    before = watched_folders()
    with following(played, Folder(notes, tmp_path / "ledger.json")):
        (notes / "new").mkdir()
        (notes / "new" / "three.md").write_text("# Three")
        until(lambda: ("Created", "new/three.md") in sent(played))
        assert watched_folders() - before < 100
        (notes / "new" / "three.md").write_text("# Three, again")
        until(lambda: ("Modified", "new/three.md") in sent(played))


def test_folder_that_goes_away_and_comes_back_is_followed(played: Played, notes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with following(played, Folder(notes, tmp_path / "ledger.json"), said.append):
        notes.rename(tmp_path / "unmounted")
        until(lambda: any("waiting" in line for line in said))
        (tmp_path / "unmounted").rename(notes)
        (notes / "new.md").write_text("# New")
        until(lambda: ("Created", "new.md") in sent(played))
    assert not [event for event, _ in sent(played) if event == "Deleted"]
    assert len(said) == 1


def test_folders_come_and_go(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    assert "DirectoryCreated" not in [event for event, _ in sent(played)]
    (notes / "new" / "inner").mkdir(parents=True)
    (notes / "new" / "inner" / "a.md").write_text("# A")
    assert [(line["type"], line["path"]) for line in once(run, notes)] == [
        ("File.DirectoryCreated", "new"),
        ("File.DirectoryCreated", "new/inner"),
        ("File.Created", "new/inner/a.md"),
    ]
    (notes / "new").rename(notes / "old")
    assert [(line["type"], line["path"]) for line in once(run, notes)] == [
        ("File.DirectoryCreated", "old"),
        ("File.DirectoryCreated", "old/inner"),
        ("File.Renamed", "old/inner/a.md"),
        ("File.DirectoryDeleted", "new/inner"),
        ("File.DirectoryDeleted", "new"),
    ]
    shutil.rmtree(notes / "deep")
    assert [line["type"] for line in once(run, notes)] == ["File.Deleted", "File.DirectoryDeleted"]
    assert once(run, notes) == []


def test_note_in_utf16_is_read_and_one_without_end_is_not(run: Run, played: Played, notes: Path) -> None:
    (notes / "wide.md").write_bytes("# Größe".encode("utf-16"))
    with (notes / "sparse.md").open("wb") as sparse:
        sparse.truncate(1 << 40)
    result = run("watch", str(notes), "--once")
    found = {payload["path"]: payload for payload in played.payloads}
    assert found["wide.md"]["content"] == "# Größe"
    assert found["sparse.md"]["size"] == 1 << 40
    assert not found["sparse.md"].keys() & {"content", "hash"}
    assert "the content is left out: it is over 900 KiB" in result.stdout
    assert once(run, notes) == []
    for event in played.log:
        CATALOGUE.validate(f"File.{event['data']['event']}", json.dumps(event["data"]["payload"]).encode())


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (
            "title: Plan: part two",
            'line 2: mapping values are not allowed in this context: put a value that contains ": "',
        ),
        ("a: 1\nwho: @sam", "line 3:"),
        ("a: 1\na: 2", "line 3: the key 'a' stands twice"),
        ("title: [/red]", None),
        ("title: Plan", None),
    ],
)
def test_front_matter_that_does_not_parse_is_told(
    run: Run, played: Played, notes: Path, head: str, told: str | None
) -> None:
    once(run, notes)
    (notes / "one.md").write_text(f"---\n{head}\n---\ntext")
    [line] = once(run, notes)
    assert (line["note"] or "").startswith(f"front matter, {told}" if told else "")
    assert bool(line["note"]) == bool(told)
    (notes / "one.md").write_text(f"---\n{head}\n---\nmore text")
    shown = run("watch", str(notes), "--once").stdout
    assert "one.md" in shown
    assert told is None or f"front matter, {told}" in shown


def moved(before: dict[str, Note], after: dict[str, Note]) -> list[tuple[str, str | None, str]]:
    return [(change.event, change.old_path, change.path) for change in changes(before, after)]


def test_a_file_that_took_the_place_of_another_was_renamed() -> None:
    a, b, c = (Note(name, 3, 1, 5, inode) for inode, name in enumerate("abc", 1))
    assert moved({"a.md": a, "b.md": b}, {"b.md": a}) == [("Renamed", "a.md", "b.md")]
    # The last one first, so that no note is moved over one that is still to be moved.
    chain = [("Renamed", "c.md", "d.md"), ("Renamed", "b.md", "c.md"), ("Renamed", "a.md", "b.md")]
    assert moved({"a.md": a, "b.md": b, "c.md": c}, {"b.md": a, "c.md": b, "d.md": c}) == chain
    # Two that changed places are no chain: each is at its path, with another text.
    swapped = [("Modified", None, "a.md"), ("Modified", None, "b.md")]
    assert moved({"a.md": a, "b.md": b}, {"a.md": b, "b.md": a}) == swapped
    # An editor that writes a new file and moves it over the old one has modified that.
    saved = Note("new", 3, 2, 5, 9)
    assert moved({"a.md": a}, {"a.md": saved}) == [("Modified", None, "a.md")]


def test_a_note_moved_over_another_is_renamed(run: Run, played: Played, notes: Path) -> None:
    once(run, notes)
    (notes / "one.md").replace(notes / "deep" / "two.md")
    assert [(line["type"], line["old_path"], line["path"]) for line in once(run, notes)] == [
        ("File.Renamed", "one.md", "deep/two.md")
    ]
    assert once(run, notes) == []


def test_same_file_is_known_by_its_inode_and_its_name() -> None:
    twin = {"hash": "a", "size": 1, "sequence": 5}
    before = {"a/x.md": Note(**twin, mtime_ns=1, inode=7), "a/y.md": Note(**twin, mtime_ns=2, inode=8)}
    after = {"b/1.md": Note("a", 1, 2, inode=8), "b/x.md": Note("a", 1, 9, inode=9)}
    assert {(change.old_path, change.path) for change in changes(before, after)} == {
        ("a/y.md", "b/1.md"),
        ("a/x.md", "b/x.md"),
    }
    reused = {"b.md": Note("other", 3, 4, inode=7)}
    assert [change.event for change in changes({"a.md": before["a/x.md"]}, reused)] == ["Deleted", "Created"]


def test_folder_that_cannot_be_read_keeps_its_notes(tmp_path: Path) -> None:
    """Permissions do not hold for root, but a path may be too long for everybody."""
    root = tmp_path / "notes"
    (root / "locked").mkdir(parents=True)
    (root / "locked" / "a.md").write_text("x")
    before = scan(root, {}).notes
    longest = os.pathconf(root, "PC_PATH_MAX") - 1
    detour = "/../notes" * ((longest - len(str(root))) // len("/../notes"))
    (root / "locked").rename(root / ("l" * 20))
    before = {path.replace("locked", "l" * 20): note for path, note in before.items()}
    found = scan(Path(f"{root}{detour}"), before)
    assert (changes(before, found.notes), list(found.passed)) == ([], [f"{'l' * 20}/"])


def test_empty_notes_are_not_taken_for_renamed() -> None:
    empty = Note("e3b0", 0, 1, 5)
    found = changes({"a.md": empty}, {"b.md": Note("e3b0", 0, 2)})
    assert [(change.event, change.path) for change in found] == [("Deleted", "a.md"), ("Created", "b.md")]


def test_unknown_places_are_refused_before_anything_is_sent(run: Run, played: Played, notes: Path) -> None:
    played.places.worlds["acme"] = played.places.worlds["default"] | {"id": "acme"}
    for options in (["--world", "acmee"], ["--room", "mian"], ["--world", "acme", "--room", "lab"]):
        result = run("watch", str(notes), "--once", *options)
        assert (result.exit_code, "there is no" in result.stderr) == (1, True)
    assert played.log == []
    assert run("watch", str(notes), "--once", "--world", "acme", "--room", "main").exit_code == 0
    assert len(played.log) == 2
