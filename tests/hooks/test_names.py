"""What a name's hooks leave to each other: nothing of a deleted one is shown, counted, or run under a later one."""

import contextlib

import msgspec

from crucible_core.protocol.hooks import HookRecord, HookView
from crucible_core.protocol.parts import EnableHook, GetRequest
from crucible_kit.buckets import open_bucket

from .conftest import System, until


async def gone(system: System, name: str) -> None:
    await system.ask("delete", GetRequest(id=name), HookView)


async def test_later_hook_of_a_name_starts_from_nothing(system: System) -> None:
    first = await system.register("again", "1", options={"debounce_ms": 3_600_000})
    await system.append()
    assert (await system.run_of("again", "ok")).hook_id == first.id
    await gone(system, "again")
    second = await system.register("again", "2", options={"debounce_ms": 3_600_000})
    assert first.id != second.id
    assert (await system.runs("again"), (await system.view("again")).counters.matched) == ([], 0)
    await system.append()
    run = await system.run_of("again", "ok")
    assert (run.output, run.hook_id) == (2, second.id)
    assert (await system.view("again")).counters.matched == 1


async def test_new_version_of_a_hook_keeps_its_runs(system: System) -> None:
    first = await system.register("again", "1")
    await system.append()
    await system.run_of("again", "ok")
    second = await system.register("again", "2")
    await system.ask("enable", EnableHook(name="again", enabled=False), HookView)
    assert (first.id, len(await system.runs("again"))) == (second.id, 1)


async def test_what_waited_for_a_deleted_hook_is_not_run_by_the_next(system: System) -> None:
    retry = {"retry": {"max_attempts": 2, "delay_ms": 600}}
    await system.register("again", "1 / 0", options=retry)
    await system.append()
    await system.run_of("again", "retrying")
    await gone(system, "again")
    await system.register("again", "'second'", options=retry)
    marker = await system.append()
    run = await system.run_of("again", "ok")
    assert run.event_id == marker.id
    with contextlib.suppress(TimeoutError):
        await until(lambda: several(system), 1.5)
    assert [run.event_id for run in await system.runs("again")] == [marker.id]


async def several(system: System) -> bool:
    return len(await system.runs("again")) > 1


async def test_deleted_and_registered_at_once_it_loses_no_run(system: System) -> None:
    for n in range(5):
        await system.register("again", f"{n}")
        appended = await system.append(payload={"n": n})
        assert (await system.run_of("again", "ok")).event_id == appended.id
        await gone(system, "again")


async def test_hook_of_before_there_were_ids_keeps_its_runs(system: System) -> None:
    view = await system.register("old", "1")
    record = HookRecord(name="old", definition=view.definition)
    await (await open_bucket(system.bus, "hooks")).put("old", msgspec.json.encode(record))
    await until(lambda: without_id(system))
    await system.append()
    await system.run_of("old", "ok")
    again = await system.register("old", "2")
    assert (again.id, len(await system.runs("old"))) == ("", 1)


async def without_id(system: System) -> bool:
    return (await system.view("old")).id == ""


async def test_file_that_comes_back_is_another_hook(system: System) -> None:
    text = "---\nname: filed\ntrigger: {events: [{type: Custom.note}]}\naction: {type: Script, script: '1'}\n---\n"
    path = system.write("filed.md", text)
    await until(lambda: there(system, True))
    first = (await system.view("filed")).id
    path.rename(path.with_name("moved.md"))
    await until(lambda: at(system, "moved.md"))
    assert (await system.view("filed")).id == first
    path.with_name("moved.md").unlink()
    await until(lambda: there(system, False))
    path.write_text(text)
    await until(lambda: there(system, True))
    assert (await system.view("filed")).id not in ("", first)


async def there(system: System, wanted: bool) -> bool:
    return (await system.state("filed") is not None) == wanted


async def at(system: System, name: str) -> bool:
    return (await system.view("filed")).origin.endswith(name)
