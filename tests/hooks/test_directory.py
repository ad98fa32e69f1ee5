"""The watched directory: what saving, breaking, moving and deleting hook files does, within a second."""

import asyncio
import os
import socket
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError
from crucible_core.protocol.hooks import HookRecord, HookView, RegisterHook
from crucible_core.protocol.parts import EnableHook, FormerTypes, GetRequest
from crucible_core.protocol.worlds import ChangeWorld
from crucible_hooks.directory import HookFile, plan, read_file, stamp
from crucible_hooks.texts import read_texts
from crucible_kit.rpc import call
from tests.places import make_world

from .conftest import System, until

NOTE = """
    ---
    name: note
    trigger: {events: [{type: Custom.note}]}
    action: {type: Script, script: "%s"}
    ---
    # A hook
    """

PLAIN = 'name: note\ntrigger: {events: [{type: Custom.note}]}\naction: {type: Script, script: "1"}\n'
JSON = msgspec.json.encode(
    {"trigger": {"events": [{"type": "Custom.note"}]}, "action": {"type": "Script", "script": "1"}}
).decode()


async def live(system: System, hook: str, state: str | None) -> None:
    """Returns once it is: within a second, unless the machine is busy."""
    seen: list[str | None] = []

    async def there() -> bool:
        seen.append(await system.state(hook))
        return seen[-1] is not None and seen[-1].startswith(state) if state else seen[-1] is None

    try:
        await until(there)
    except TimeoutError:
        raise AssertionError(f"{hook} is {seen[-1]}, not {state}") from None


async def test_saved_file_is_live_within_a_second(system: System) -> None:
    system.write("note.md", NOTE % "1")
    await live(system, "note", "active")
    await system.append()
    assert (await system.run_of("note", "ok")).output == 1
    system.write("note.md", NOTE % "2")
    await until(lambda: has_script(system, "2"))
    (system.folder / "note.md").unlink()
    await live(system, "note", None)


async def test_files_are_there_from_the_start(stopped: System) -> None:
    stopped.write("note.md", NOTE % "1")
    async with stopped.running():
        assert await stopped.state("note") == "active"
    (stopped.folder / "note.md").unlink()
    async with stopped.running():
        assert await stopped.state("note") is None


async def test_directory_that_goes_away_takes_no_hook_with_it(system: System) -> None:
    system.write("note.md", NOTE % "1")
    await live(system, "note", "active")
    away = system.folder.rename(system.folder.with_name("unmounted"))
    await until(lambda: _unsynced(system))
    assert await system.state("note") == "active"
    assert not system.folder.exists()
    await system.append()
    assert (await system.run_of("note", "ok")).output == 1
    away.rename(system.folder)
    (system.folder / "note.md").unlink()
    await until(lambda: is_gone(system, "note"))


async def is_gone(system: System, hook: str) -> bool:
    return await system.state(hook) is None


def _unsynced(system: System) -> bool:
    return "hook files" in system.ready()


async def test_script_beside_the_file_is_inlined_and_watched(system: System) -> None:
    script = system.write("work.py", "1")
    system.write("note.md", NOTE % "work.py")
    await live(system, "note", "active")
    script.write_text("2")
    await until(lambda: has_script(system, "2"))
    script.unlink()
    await live(system, "note", "inert: action.script: work.py cannot be read")


async def test_broken_file_is_reported_and_its_last_good_version_runs(system: System) -> None:
    system.write("note.md", NOTE % "'good'")
    await live(system, "note", "active")
    system.write("note.md", "---\nname: note\ntrigger: [\n---\n")
    await live(system, "note", "inert: the front matter is not YAML: line ")
    assert "last good version" in (await system.state("note") or "")
    await system.append()
    assert (await system.run_of("note", "ok")).output == "good"
    system.write("note.md", NOTE % "'mended'")
    await live(system, "note", "active")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no front matter", "there is no front matter"),
        ("---\n- 1\n---\n", "not an object"),
        ("---\n? [1, 2]\n: 3\n---\n", "line 2: a list or a mapping is no key"),
        ('---\nname: "\\ud800"\n---\n', "front matter"),
        ("---\nname: a\ntrigger: {}\nname: b\n---\n", "line 4: the key 'name' stands twice"),
        ("---\n" + "a: {" * 2000 + "}" * 2000 + "\n---\n", "front matter"),
        ("---\n" + "- " * 30_000 + "\n---\n", "nested more than 64 deep"),
        ("---\nname: &x note\ndescription: *x\n---\n", "trigger: required"),
        ("---\ntriger: {}\n---\n", 'triger: unknown field (did you mean "trigger"?)'),
        (NOTE.replace("Custom.note", "Memory.Creatd") % "1", 'did you mean "Memory.Created"?'),
        (
            NOTE.replace("Custom.note", "Memory.Created, filter: {tags: {contain: 1}}") % "1",
            'unknown operator "contain"',
        ),
        (NOTE.replace("Custom.note", "Memory.Created, filter: {tgas: 1}") % "1", 'field "tgas"'),
        (NOTE % "x = (", "line 1"),
        (NOTE % "work.rn", "Rune"),
        (NOTE % "../secret.py", "outside"),
        (NOTE.replace("type: Script", "type: TriggerFlow, flow: x, inputs") % "1", "action"),
        (NOTE.replace("Script, script", "TriggerFlow, flow") % "x", "not available yet"),
        (NOTE.replace("action:", "options: {timeout_ms: 0}\naction:") % "1", "timeout_ms"),
        (NOTE.replace("action:", "condition: {expr: '1 +'}\naction:") % "1", "not a CEL expression"),
        (NOTE.replace("action:", "condition: {expr: 'evnt.x'}\naction:") % "1", 'no "evnt"'),
    ],
)
def test_file_that_is_refused_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "hooks").mkdir()
    (tmp_path / "secret.py").write_text("1")
    path = tmp_path / "hooks" / "note.md"
    path.write_text("\n".join(line.removeprefix("    ") for line in text.lstrip("\n").splitlines()))
    _, found = read_file(str(path), str(tmp_path / "hooks"), check=lambda hook: read_texts(hook.texts()) and None)
    assert found is not None
    assert found.definition is None
    assert reason in (found.error or "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("note.yaml", PLAIN),
        ("note.YML", PLAIN),
        ("note.md", PLAIN),
        ("note.json", JSON),
        ("note.markdown", f"---\n{PLAIN}---\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_form_of_a_hook_file_is_read(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    found = read_file(str(tmp_path / name), str(tmp_path))[1]
    assert found is not None
    assert found.error is None
    assert found.name == "note"


@pytest.mark.parametrize("name", ["package.json", "compose.yaml", "README.MD", "broken.yml"])
def test_files_of_others_are_passed_over(tmp_path: Path, name: str) -> None:
    texts = {"package.json": '{"scripts": {}}', "compose.yaml": "services: {}\n", "broken.yml": "a: ["}
    (tmp_path / name).write_text(texts.get(name, "# Hooks"))
    assert read_file(str(tmp_path / name), str(tmp_path))[1] is None


def hostile(folder: Path) -> list[socket.socket]:
    """Everything that a directory may hold; what is returned keeps a socket's file in use."""
    name = os.fsencode(folder)
    for odd in (b"x\xff.bak", b"x\xff.md", b"caf\xe9/x.md", b"a\nb.py", b"\x1b[31mred.txt"):
        (os.makedirs(os.path.dirname(name + b"/" + odd), exist_ok=True))
        Path(os.fsdecode(name + b"/" + odd)).write_text("---\nname: odd\n---\n")
    os.mkfifo(folder / "pipe.md")
    os.mkfifo(folder / "pipe.py")
    (folder / "zero.md").symlink_to("/dev/zero")
    (folder / "zero.py").symlink_to("/dev/zero")
    (folder / "directory.md").mkdir()
    (folder / "loop.md").symlink_to(folder / "loop.md")
    (folder / "up").symlink_to(folder)
    (folder / "gone.md").symlink_to(folder / "nowhere.md")
    with (folder / "sparse.md").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (folder / "binary.md").write_bytes(bytes(range(256)))
    (folder / "deep.md").write_text("---\n" + "[" * 30_000 + "\n---\n")
    (folder / "deep.yaml").write_text("trigger: " + "- " * 30_000)
    (folder / "deep.json").write_text('{"trigger":' * 30_000)
    (folder / "pipe-script.md").write_text(textwrap.dedent(NOTE).lstrip() % "pipe.py")
    (folder / "zero-script.md").write_text(textwrap.dedent(NOTE).lstrip() % "zero.py")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket.md"))
    return [listener]


async def test_no_file_stops_the_service(stopped: System) -> None:
    stopped.write("before.md", (NOTE % "1").replace("name: note", "name: before"))
    folder = stopped.folder / "first"
    folder.mkdir()
    kept = hostile(folder)
    async with stopped.running():
        assert await stopped.state("before") == "active"
        (stopped.folder / "later").mkdir()
        kept += hostile(stopped.folder / "later")
        stopped.write("after.md", (NOTE % "2").replace("name: note", "name: after"))
        await live(stopped, "after", "active")
        assert not stopped.ready()
        found = {view["name"]: view["state"] for view in (await stopped.ask("list", RegisterHook(), Any))["hooks"]}
    assert found.pop("before") == found.pop("after") == "active"
    assert not {"odd", "pipe", "zero", "socket", "directory"} & {name.rpartition("/")[2][:-3] for name in found}
    assert "no regular file" in found["note"]
    assert all(state.startswith("inert: ") for state in found.values())
    for one in kept:
        one.close()


def watched_folders() -> int:
    """How many directories this process has the system watch (proc(5), fdinfo of inotify)."""
    told = (Path("/proc/self/fdinfo") / name for name in os.listdir("/proc/self/fdinfo"))
    return sum(file.read_text().count("inotify wd:") for file in told if file.exists())


async def test_links_to_directories_are_not_watched(stopped: System, tmp_path: Path) -> None:
    """All that one leads to would be gone through before anything else is done: one to / takes a minute."""
    far = tmp_path / "far"
    for number in range(100):
        (far / str(number)).mkdir(parents=True)
    stopped.folder.mkdir(exist_ok=True)
    (stopped.folder / "far").symlink_to(far)
    (stopped.folder / "far.md").symlink_to(far)
    (stopped.folder / "up").symlink_to(stopped.folder)
    before = watched_folders()
    async with stopped.running():
        (stopped.folder / "new").mkdir()
        stopped.write("new/note.md", NOTE % "1")
        await live(stopped, "note", "active")
        assert watched_folders() - before < 100
        stopped.write("new/note.md", NOTE % "2")
        await until(lambda: has_script(stopped, "2"))


def touch(path: str, text: str) -> None:
    Path(path).write_text(text)


async def test_touched_again_and_again_a_name_that_is_no_text_holds_nothing_up(system: System) -> None:
    odd = os.fsdecode(os.fsencode(system.folder) + b"/x\xff.bak")
    for n in range(3):
        touch(odd, str(n))
        system.write(f"n{n}.md", (NOTE % n).replace("name: note", f"name: n{n}"))
        await live(system, f"n{n}", "active")
        assert not system.ready()


@pytest.mark.parametrize("name", ["会議　メモ.md", "a\u00a0b.md", "👩‍💻 dev.md", "line\nfeed.md", "\x1b]0;x\x07.md"])
async def test_name_of_a_file_may_be_any_text(system: System, name: str) -> None:
    system.write(name, NOTE % "1")
    await live(system, "note", "active")
    assert (await system.view("note")).origin == str(system.folder / name)


async def test_another_directory_at_its_place_is_watched(system: System) -> None:
    system.folder.rename(system.folder.with_name("old"))
    system.folder.mkdir()
    system.write("note.md", NOTE % "1")
    await until(lambda: is_active(system, "note"), 5.0)
    system.write("second.md", (NOTE % "2").replace("name: note", "name: second"))
    await live(system, "second", "active")


def test_hooks_below_a_directory_that_cannot_be_read_stay() -> None:
    kept = HookRecord(name="kept", origin="/h/locked/kept.md")
    gone = HookRecord(name="gone", origin="/h/open/gone.md")
    assert plan([], {"kept": kept, "gone": gone}, "/h", "t", ["/h/locked"]) == ([], ["gone"])
    other = HookFile("/h/open/kept.md", "kept", {"name": "kept"})
    writes, _ = plan([other], {"kept": kept}, "/h", "t", ["/h/locked"])
    assert [(record.name, record.error) for record in writes] == [
        ("open/kept.md", "the name kept is taken by /h/locked/kept.md")
    ]


def test_permission_that_is_given_again_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    path.write_text("")
    before = stamp(str(path))
    path.chmod(0)
    assert stamp(str(path)) != before


def test_readme_is_no_hook(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Hooks")
    assert read_file(str(tmp_path / "README.md"), str(tmp_path))[1] is None


def test_other_spellings_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a-hook.md"
    path.write_text(
        "---\nversion: 1.0\ntrigger: {events: [{type: memory.created}]}\naction: {type: RuneScript, script: '1'}\n---\n"
    )
    found = read_file(str(path), str(tmp_path))[1]
    assert found is not None
    assert found.definition is not None, found.error
    assert (found.definition["name"], found.definition["version"]) == ("a-hook", "1.0")


async def test_a_world_that_is_not_there_is_a_warning_until_it_is(system: System) -> None:
    system.write("note.md", (NOTE % "1").replace("name: note", "name: note\n    world_id: lab"))

    async def warnings() -> list[str]:
        return (await system.view("note")).warnings

    await until(lambda: system.state("note"))
    await until(warnings)
    assert await warnings() == ["there is no world lab, so no event is for it"]
    await make_world(system.bus, "lab")
    await until(lambda: nothing(warnings))
    await system.append(world_id="lab")
    await system.run_of("note", "ok")
    await call(system.bus, OPERATOR, "events", "delete_world", ChangeWorld(id="lab"), bytes)
    await until(warnings)


async def nothing(found: Callable[[], Awaitable[list[str]]]) -> bool:
    return not await found()


async def test_second_file_of_a_name_is_inert_under_its_path(system: System) -> None:
    system.write("b.md", NOTE % "1")
    await live(system, "note", "active")
    system.write("a.md", NOTE % "2")
    await live(system, "a.md", "inert: the name note is taken by ")
    (system.folder / "b.md").unlink()
    await live(system, "a.md", None)
    await until(lambda: has_script(system, "2"), 2.0)


async def test_name_of_an_api_hook_stays_its_own(system: System) -> None:
    await system.register("note", "1")
    system.write("note.md", NOTE % "2")
    await live(system, "note.md", "inert: the name note is taken over the API")
    await system.ask("delete", GetRequest(id="note"), HookView)
    await live_soon(system, "note")


async def test_hook_of_a_file_is_switched_but_not_replaced_over_the_api(system: System) -> None:
    system.write("note.md", NOTE % "1")
    await live(system, "note", "active")
    with pytest.raises(ConflictError):
        await system.register("note", "2")
    with pytest.raises(ConflictError):
        await system.ask("delete", GetRequest(id="note"), HookView)
    await system.ask("enable", EnableHook(name="note", enabled=False), HookView)
    system.write("note.md", NOTE % "3")
    await until(lambda: has_script(system, "3"), 2.0)
    assert await system.state("note") == "disabled"


async def test_many_files_at_once(system: System) -> None:
    for n in range(30):
        system.write(f"n{n}.md", (NOTE % n).replace("name: note", f"name: n{n}"))
    await asyncio.gather(*(live_soon(system, f"n{n}") for n in range(30)))


def test_plan_is_empty_when_nothing_changed() -> None:
    definition = {"name": "note", "enabled": True}
    found = [HookFile("/h/note.md", "note", definition)]
    writes, deletes = plan(found, {}, "/h", "t1")
    assert [record.name for record in writes] == ["note"]
    assert deletes == []
    records = {record.name: record for record in writes}
    assert plan(found, records, "/h", "t2") == ([], [])
    former = [FormerTypes(types=["Custom.a"], until=3)]
    kept = {name: msgspec.structs.replace(record, switched=[1], former=former) for name, record in records.items()}
    assert plan(found, kept, "/h", "t2") == ([], [])
    elsewhere = {"other": HookRecord(name="other", origin="/elsewhere/other.md")}
    assert plan([], records | elsewhere, "/h", "t3") == ([], ["note"])


async def live_soon(system: System, hook: str) -> None:
    await until(lambda: is_active(system, hook), 5.0)


async def is_active(system: System, hook: str) -> bool:
    return await system.state(hook) == "active"


async def has_script(system: System, script: str) -> bool:
    if await system.state("note") is None:
        return False
    return bool(((await system.view("note")).definition or {})["action"]["script"] == script)
