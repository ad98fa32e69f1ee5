"""The registry's requests, the counters and the doctor."""

from typing import Any

import pytest

from crucible_core.access import OPERATOR
from crucible_core.errors import ConflictError, InvalidError, NotFoundError
from crucible_core.protocol import parts
from crucible_core.protocol.hooks import HookList, HookView, RegisterHook, RunList, RunsRequest, UpdateHook
from crucible_core.protocol.parts import Check, Checks, EnableHook, GetRequest, ListRequest
from crucible_core.subjects import token
from crucible_hooks.app import create_app
from crucible_hooks.settings import Settings
from crucible_kit.buckets import open_bucket
from crucible_kit.rpc import call
from tests.cases import each_of

from .conftest import System, definition, until

MARKDOWN = """---
name: from-markdown
trigger: {events: [{type: Memory, event: Created, filter: {tags: {contains: "#x"}}}]}
action: {type: Script, script: "1"}
---
"""


async def checked(system: System, hook: str, **fields: Any) -> Check:
    found: Check = await system.ask("test", parts.TestRequest(id=hook, **fields), Check)
    return found


async def test_hook_is_changed_by_a_merge_patch(system: System) -> None:
    await system.register("tidy", "1")

    async def update(**changes: Any) -> HookView:
        view: HookView = await system.ask("update", UpdateHook("tidy", changes), HookView)
        return view

    changed = await update(description="Tidies", options={"timeout_ms": 4321})
    assert changed.definition is not None
    assert (changed.definition["description"], changed.definition["options"]["timeout_ms"]) == ("Tidies", 4321)
    assert (await update(description=None)).definition == (await system.view("tidy")).definition
    for wrong in ({"name": "other"}, {"trigger": None}, {"optoins": {}}, {"action": {"script": "nonsense("}}):
        with pytest.raises(InvalidError):
            await update(**wrong)
    with pytest.raises(NotFoundError):
        await system.ask("update", UpdateHook("gone", {}), HookView)


async def test_registered_hook_is_shown_and_deleted(system: System) -> None:
    view: HookView = await system.ask("register", RegisterHook(markdown=MARKDOWN), HookView)
    assert (view.name, view.state, view.timing, view.origin) == ("from-markdown", "active", "Post", "api")
    listed: HookList = await system.ask("list", RegisterHook(), HookList)
    assert [hook.name for hook in listed.hooks] == ["from-markdown"]
    await system.ask("delete", GetRequest(id="from-markdown"), HookView)
    with pytest.raises(NotFoundError):
        await system.view("from-markdown")


async def test_hooks_are_listed_and_tried_page_by_page(system: System) -> None:
    for number in range(5):
        text = MARKDOWN.replace("from-markdown", f"h{number}")
        await system.ask("register", RegisterHook(markdown=text), HookView)
    listed, tried = [], []
    page, checks = HookList([]), Checks([])
    while True:
        page = await system.ask("list", ListRequest(limit=2, cursor=page.next_cursor), HookList)
        checks = await system.ask("test_all", ListRequest(limit=2, cursor=checks.next_cursor), Checks)
        listed += [hook.name for hook in page.hooks]
        tried += [(one.id, one.check.verdict) for one in checks.checks]
        assert len(page.hooks) <= 2
        if page.next_cursor is None and checks.next_cursor is None:
            break
    assert listed == [f"h{number}" for number in range(5)]
    assert tried == [(name, "live") for name in listed]


@each_of(
    ("change", "path", "suggestion"),
    [
        ({"naem": 1}, "naem", "name"),
        ({"name": "Not a name"}, "name", None),
        ({"trigger": {"events": []}}, "trigger.events", None),
        ({"trigger": {"events": [{"type": "Memory", "event": "Createt"}]}}, "trigger.events.0.type", "Memory.Created"),
        ({"trigger": {"events": [{"type": "*"}], "timing": "Before"}}, "trigger.timing", None),
        (
            {"trigger": {"events": [{"type": "Memory", "event": "Created", "filter": {"tags": {"contain": 1}}}]}},
            "trigger.events.0.filter.tags.contain",
            "contains",
        ),
        ({"action": {"type": "Skript"}}, "action.type", "Script"),
        ({"action": {"type": "Script", "script": "work.py"}}, "action.script", None),
        ({"action": {"type": "Script", "script": "1 +"}}, "action.script", None),
        ({"action": {"type": "Script", "script": "1", "inputs": {"a": "{{ evnt.id }}"}}}, "action.inputs.a", "event"),
        ({"action": {"type": "TriggerFlow", "flow": "x"}}, "action.type", None),
        ({"options": {"timeout": 5}}, "options.timeout", "timeout_ms"),
        ({"options": {"timeout_ms": 10**9}}, "options.timeout_ms", None),
        ({"condition": {}}, "condition", None),
        ({"condition": {"expr": "nofunction(event)"}}, "condition.expr", None),
        *(
            (
                {"trigger": {"events": [{"type": "Memory", "event": "Linked"}]}, "condition": {word: text}},
                f"condition.{word}",
                "to",
            )
            for word, text in (("expr", "event.payload.target == 'a'"), ("script", "event['payload']['target'] == 'a'"))
        ),
    ],
)
async def test_definition_is_refused_where_it_is_wrong(
    system: System, change: dict[str, Any], path: str, suggestion: str | None
) -> None:
    with pytest.raises(InvalidError) as refused:
        await system.ask("register", RegisterHook(definition=definition("wrong", "1") | change), HookView)
    assert [(error.path, error.suggestion) for error in refused.value.errors] == [(path, suggestion)]
    assert await system.state("wrong") is None


@each_of(
    "text",
    [
        MARKDOWN,
        MARKDOWN.split("---")[1],
        '{"name": "from-markdown", "trigger": {"events": [{"type": "*"}]}, '
        '"action": {"type": "Script", "script": "1"}}',
    ],
)
async def test_text_of_every_form_is_registered(system: System, text: str) -> None:
    view: HookView = await system.ask("register", RegisterHook(markdown=text), HookView)
    assert (view.name, view.state) == ("from-markdown", "active")


@each_of(
    ("text", "told"),
    [
        ("---\ntrigger: " + "[" * 30_000 + "\n---\n", "nested more than 64 deep"),
        ("trigger:\n " + "- " * 30_000, "nested more than 64 deep"),
        ('{"trigger": ' + "[" * 30_000, "nested deeper than 64"),
        ("---\n" + "? " * 30_000 + "\n---\n", "not YAML"),
        (MARKDOWN.replace("action:", "name: again\naction:"), "line 4: the key 'name' stands twice (first in line 2)"),
        ("words", "no front matter"),
    ],
)
async def test_text_that_cannot_be_read_harms_nothing(system: System, text: str, told: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await system.ask("register", RegisterHook(markdown=text), HookView)
    assert told in refused.value.detail
    assert not system.ready()


async def test_pre_hook_may_not_have_effects_or_take_long(system: System) -> None:
    with pytest.raises(InvalidError, match="only decides"):
        await system.register("gate", "emit('Custom.x')", pre=True)
    with pytest.raises(InvalidError, match="a writer waits"):
        await system.register("gate", "None", pre=True, options={"timeout_ms": 60_000})


async def test_shell_over_the_api_needs_the_operators_leave(stopped: System, settings: Settings) -> None:
    given = Settings(**{name: getattr(settings, name) for name in settings.__struct_fields__} | {
        "hooks_allow_api_shell": False
    })  # fmt: skip
    app = create_app(given)
    async with app.router.lifespan_context(app):
        await until(lambda: not app.state.ready())
        with pytest.raises(InvalidError, match="may not use Shell"):
            await stopped.register("sh", action={"type": "Shell", "command": "true"})


async def test_unknown_hooks_are_not_found(system: System) -> None:
    for operation, request in (
        ("get", GetRequest(id="no")),
        ("delete", GetRequest(id="no")),
        ("enable", EnableHook(name="no", enabled=True)),
        ("runs", RunsRequest(name="no")),
        ("test", parts.TestRequest(id="no")),
    ):
        with pytest.raises(NotFoundError):
            await system.ask(operation, request, dict)


async def test_registered_again_it_is_replaced(system: System) -> None:
    await system.register("again", "1")
    view = await system.register("again", "2")
    assert view.definition is not None
    assert view.definition["action"]["script"] == "2"
    assert not isinstance(view, ConflictError)


async def test_runs_are_paged_newest_first(system: System) -> None:
    await system.register("counter", "event['payload']['n']", options={"concurrency": 1})
    for n in range(5):
        await system.append(payload={"n": n})

    async def all_ran() -> bool:
        return len(await system.runs("counter")) == 5

    await until(all_ran)
    seen: list[Any] = []
    cursor = None
    while len(seen) < 5:
        page: RunList = await system.ask("runs", RunsRequest(name="counter", limit=2, cursor=cursor), RunList)
        seen += [run.output for run in page.runs]
        cursor = page.next_cursor
    assert seen == [4, 3, 2, 1, 0]
    assert cursor is None
    for bad in ({"limit": 0}, {"cursor": "x"}):
        with pytest.raises(InvalidError):
            await system.ask("runs", RunsRequest(name="counter", **bad), RunList)


async def test_index_that_was_deleted_is_rebuilt(stopped: System) -> None:
    async with stopped.running():
        await stopped.register("kept", "1")
        await stopped.append()
        run = await stopped.run_of("kept", "ok")
        counters = (await stopped.view("kept")).counters
    for file in stopped.folder.parent.glob("data/hooks.sqlite*"):
        file.unlink()
    async with stopped.running():
        assert await stopped.runs("kept") == [run]
        assert (await stopped.view("kept")).counters == counters


# ---- the doctor ------------------------------------------------------------------------------------------------------


async def test_doctor_sends_a_synthetic_event_through_the_queue_and_changes_nothing(system: System) -> None:
    await system.register(
        "live",
        "memory_tag(event['payload']['id'], '#seen')\nemit('Custom.done')\nmemory_get('mem_x')['content']",
        on="Memory.Created",
        filter={"tags": {"contains": "#x"}, "content": {"matches": "(?s).{200,}"}, "event.metadata.actor": "user:me"},
        condition={"expr": '"#x" in event.payload.tags && event.metadata.actor == "user:me"'},
    )
    check = await checked(system, "live")
    assert check.verdict == "live", check
    assert [(step.step, step.ok) for step in check.steps] == [
        ("registered", True),
        ("matches a synthetic event", True),
        ("queued and picked up", True),
        ("condition", True),
        ("action ran (dry run)", True),
    ]
    assert check.steps[1].detail == "Memory.Created"
    assert check.steps[3].detail == "true"
    assert "Memory.Tagged" in check.steps[4].detail
    assert system.memories.effects() == []
    assert await system.runs("live") == []
    assert not await system.log("Custom.done")


async def test_doctor_finds_a_broken_action(system: System) -> None:
    await system.register("broken", "event['payload']['nothing']['here']")
    check = await checked(system, "broken")
    assert check.verdict == "inert"
    assert "KeyError" in (check.reason or "")


async def test_doctor_takes_the_payload_that_is_given(system: System) -> None:
    await system.register("picky", "event['payload']['n'] * 2", filter={"n": {"gt": 5}})
    check = await checked(system, "picky", payload={"n": 21})
    assert check.steps[-1].detail == "42"


async def test_doctor_can_run_for_real(system: System) -> None:
    await system.register("real", "memory_tag('mem_1', '#seen')['changed']")
    check = await checked(system, "real", dry_run=False)
    assert check.verdict == "live", check
    assert len(system.memories.effects()) == 1
    await system.run_of("real", "ok")


@pytest.mark.parametrize(
    "action",
    [
        {"type": "HTTP", "url": "http://127.0.0.1:1/{{event.id}}"},
        {"type": "Shell", "command": "touch {{event.id}}; false"},
    ],
)
async def test_doctor_sends_and_starts_nothing(system: System, action: dict[str, Any]) -> None:
    await system.register("dry", action=action)
    check = await checked(system, "dry")
    assert check.verdict == "live", check
    assert "would" in check.steps[-1].detail


async def test_doctor_asks_a_pre_hook(system: System) -> None:
    await system.register("gate", '{"deny": "always"}', pre=True)
    check = await checked(system, "gate")
    assert check.verdict == "live", check
    assert "denies: always" in check.steps[-1].detail
    await system.register("confused", '"yes"', pre=True)
    assert (await checked(system, "confused")).verdict == "inert"


async def test_doctor_reports_disabled_and_inert_hooks(system: System) -> None:
    await system.register("off", "1")
    await system.ask("enable", EnableHook(name="off", enabled=False), HookView)
    assert (await checked(system, "off")).verdict == "disabled"
    system.write("bad.md", "---\nname: bad\n---\n")

    async def there() -> bool:
        return await system.state("bad") is not None

    await until(there)
    check = await checked(system, "bad")
    assert (check.verdict, check.reason is not None and "trigger" in check.reason) == ("inert", True)


async def test_every_request_needs_its_own_fields(system: System) -> None:
    with pytest.raises(InvalidError, match="definition or markdown"):
        await call(system.bus, OPERATOR, "hooks", "register", RegisterHook(), HookView)


async def test_a_hook_whose_record_cannot_be_read_can_be_deleted(stopped: System) -> None:
    bucket = await open_bucket(stopped.bus, "hooks")
    await bucket.put(token("ein Tor"), b"{")
    async with stopped.running():
        [hook] = (await stopped.ask("list", ListRequest(), HookList)).hooks
        assert hook.state.startswith("inert: its record cannot be read")
        await stopped.ask("delete", GetRequest(id=hook.name), HookView)
        assert not await bucket.entries()
