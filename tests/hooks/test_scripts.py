"""Scripts: what is refused when they are registered, which fields they read, and the spelling that they share with
expressions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_monty import AsyncMonty, MontyError

from crucible_core.errors import InvalidError
from crucible_core.limits import SCRIPT_BYTES
from crucible_hooks.actions.functions import EFFECTS, READING, signatures
from crucible_hooks.actions.sandbox import adapt
from crucible_hooks.actions.scripts import BUILTINS, MODULES, check
from tests.cases import each_of

from .conftest import System, until


@pytest.fixture
async def monty() -> AsyncIterator[AsyncMonty]:
    async with AsyncMonty(min_processes=1, max_processes=1) as pool:
        yield pool
    await asyncio.sleep(0.1)  # its threads outlive it for a moment


async def ran(pool: AsyncMonty, script: str, **values: Any) -> Any:
    async with pool.checkout() as session:
        return await session.feed_run(adapt(script).source, inputs=values)


async def test_names_are_those_that_the_sandbox_knows(monty: AsyncMonty) -> None:
    for name in BUILTINS - {"locals", "eval", "exec", "__name__", "__file__", "__debug__"}:
        await ran(monty, name)
    for name in MODULES:
        await ran(monty, f"import {name}")
    for name in ("exit", "globals", "input", "super"):
        with pytest.raises(MontyError, match="NameError"):
            await ran(monty, name)


EVENT = {"payload": {"tags": ["#research", "b"], "n": 2, "title": "A plan", "links": [{"to": "x"}], "get": 1}}


@pytest.mark.parametrize(
    ("script", "value"),
    [
        ('event.payload.tags.contains("#research")', True),
        ('event["payload"]["tags"].contains("#other")', False),
        ('"b" in event.payload["tags"]', True),
        ('event.payload.title.contains("plan") and event.payload.contains("tags")', True),
        ('event.payload.title.startsWith("A") and event.payload.title.endsWith("plan")', True),
        ('event.payload.title.startswith("A") and event.payload.title.upper() == "A PLAN"', True),
        ("event.payload.tags.size() + len(event.payload.tags)", 4),
        ("p = event.payload\np.n + p['n']", 4),
        ("[link.to for link in event.payload.links]", ["x"]),
        ("for link in event.payload.links:\n    found = link.to\nfound", "x"),
        ("event.payload.n = 3\nevent.payload.n += 1\n{'payload': event.payload}['payload']['n']", 4),
        ("f'{event.payload.title}: {event.payload.tags.size()}'", "A plan: 2"),
        ('f"""{event.payload.title}\n{event.payload.n}"""', "A plan\n2"),
        ("event.payload.get('absent', 7)", 7),
        ("def first(value): return value.tags[0]\nfirst(event.payload)", "#research"),
        ("import datetime\ndatetime.date(2026, 1, 2).year + event.payload.n", 2028),
        ("import math\nmath.floor(math.pi) + event.payload.n", 5),
        ("class Box:\n    def __init__(self, n):\n        self.n = n\nBox(event.payload.n).n", 2),
        ("class Bag:\n    def contains(self, x):\n        return x == 1\nBag().contains(1)", True),
        ("event = {'payload': {'x': 1}}\nevent.payload.x", 1),
        ("match event:\n    case {'payload': p}:\n        found = p.n\nfound", 2),
        ("(lambda e: e.payload.n)(event)", 2),
        ("'é 😀'.contains('😀') and event.payload.n == 2", True),
    ],
)
async def test_both_spellings_are_one(monty: AsyncMonty, script: str, value: Any) -> None:
    check(script, "x", signatures(READING), {})
    assert await ran(monty, script, event=EVENT, inputs={}) == value


def test_script_without_the_other_spelling_is_run_as_it_is_written() -> None:
    source = "# a comment\nx = event['payload']  # kept\nlen(x)"
    assert adapt(source).source == source


@pytest.mark.parametrize(
    ("script", "message", "suggestion"),
    [
        ("memory_qury('x')", 'no "memory_qury"', "memory_query"),
        ("if False:\n    evnt['payload']", 'line 2: there is no "evnt"', "event"),
        ("x = true", 'no "true"', "True"),
        ("size(event.payload.tags)", 'no "size"', "len"),
        ("event.payload.tags.includes('x')", 'a method "includes"', "contains"),
        ("event.payload.title.toLowerCase()", 'a method "toLowerCase"', "lower"),
        ("event.payload.tags.len() > 1", 'a method "len"', "len(…)"),
        ("import requests", 'no module "requests"', None),
        ("import jsn", 'no module "jsn"', "json"),
        ("emit('x')", "emit: not here", None),
        ("memory_query(txt='x')", 'memory_query has no argument "txt"', "text"),
        ("if False:\n    memory_query('x', limt=3, tgas=[])", 'line 2: memory_query has no argument "limt"', "limit"),
        ("memory_query(**{'text': 'x'}, lmit=1)", 'memory_query has no argument "lmit"', "limit"),
        ("memory_get()", "memory_get: missing a required argument: 'id'", "memory_get(id)"),
        ("memory_get('a', 'b')", "memory_get: too many positional arguments", "memory_get(id)"),
        ("memory_get('a', id='b')", "memory_get: multiple values", "memory_get(id)"),
        ("log('a', sep=' ')", 'log has no argument "sep"', None),
        ("sorted([2, 1], revers=True)", 'sorted has no argument "revers"', "reverse"),
        ("x = (", "line 1", None),
        ("let uncommitted = git::status().len();\nuncommitted >= 5\n", "Rune", "git status --porcelain"),
        ("let x = 1;\nx", "Rune", "x = 1"),
        ("event.payload.tags.some(t => t == 'x')", "JavaScript", None),
        ("event.payload.a && event.payload.b", "CEL", "condition.expr"),
        ("(" * 30_000, "nested", None),
        ("[" * 150 + "]" * 150, "nested", None),
        ("-" * 60_000 + "1", "nested", None),
        ("1" + "+1" * 20_000, "nested", None),
        ("x" + ".y" * 20_000, "nested", None),
        ("\n".join(" " * n + "if 1:" for n in range(120)), "indentation", None),
        ("1\0", "null", None),
    ],
)
def test_script_that_cannot_work_is_refused(script: str, message: str, suggestion: str | None) -> None:
    with pytest.raises(InvalidError) as refused:
        check(script, "condition.script", signatures(READING), dict.fromkeys(EFFECTS, "not here"))
    error = refused.value.errors[0]
    assert error.path == "condition.script"
    assert message in refused.value.detail
    assert suggestion is None or suggestion in (error.suggestion or "")


@pytest.mark.parametrize(
    "script",
    [
        "memory_query(*['x'], limit=1) or memory_query(**{'text': 'x'}) or log('a', 'b') or memory_get(id='x')",
        "def memory_get(a, b):\n    return a\nmemory_get(b=1, a=2)",
        "sorted([2, 1], key=abs, reverse=True) or print('a', sep='') or max([1], default=0) or sum([1], start=2)",
        "env = 1\n'emit'  # emit, requests and evnt are only words here",
        "def later():\n    return helper()\ndef helper():\n    return 1\nlater()",
        "try:\n    import tomllib\nexcept ImportError:\n    tomllib = None",
        "[x for x in [1] if (y := x)]\ny",
        "import json as j\nj.loads('1')",
        "from datetime import date as d\nd.today()",
        "*rest, last = [1, 2]\nrest",
        "match [1]:\n    case [first, *others]:\n        first + len(others)",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    str(error)",
        "\n".join(f"{'el' * (n > 0)}if event['id'] == '{n}':\n    log({n})" for n in range(200)),
    ],
)
def test_script_that_works_is_not_refused(script: str) -> None:
    check(script, "x", signatures(READING), {})


@pytest.mark.parametrize(
    ("script", "places"),
    [
        ("event.payload.a", {"event", "event.payload", "event.payload.a"}),
        ("event['payload'].get('a')[0].b", {"event.payload.a", "event.payload.a.0.b"}),
        ("p = event.payload\np.a", {"event.payload.a"}),
        ("p = event.payload\np = {}\np.a", {"event.payload"}),
        ("for x in event.payload.a:\n    x.b", {"event.payload.a", "event.payload.a.0.b"}),
        ("[k for k in event.payload]", {"event.payload"}),
        ("event.payload.a.contains(inputs.b)", {"event.payload.a", "inputs.b"}),
        ("event = {}\nevent.payload.a", set()),
    ],
)
def test_fields_that_a_script_reads(script: str, places: set[str]) -> None:
    found = {".".join(place) for place, _ in check(script, "x", signatures(READING), {}).fields}
    assert places <= found
    assert not places or found - places <= {"event", "event.payload", "inputs"}


# ---- registered ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [{"expr": "%s"}, {"script": "%s\n"}])
async def test_hook_of_the_mission_fires(system: System, condition: dict[str, str]) -> None:
    holds = {kind: text % 'event.payload.tags.contains("#research")' for kind, text in condition.items()}
    action = {
        "type": "Script",
        "script": 'event.payload.content + inputs["who"] + inputs.who',
        "inputs": {"who": "{{event.payload.id}}"},
    }
    await system.register("auto-link-related", on="Memory.Created", condition=holds, action=action)
    await system.append("Memory.Created", {"id": "mem_1", "content": "x", "tags": ["#other"]}, entity="mem_1")
    await system.append("Memory.Created", {"id": "mem_2", "content": "y", "tags": ["#research"]}, entity="mem_2")
    assert (await system.run_of("auto-link-related", "ok")).output == "ymem_2mem_2"
    await until(lambda: _count(system, "auto-link-related", 2))


async def _count(system: System, hook: str, runs: int) -> bool:
    return len(await system.runs(hook)) == runs


async def test_error_names_the_line_of_the_script_as_it_was_written(system: System) -> None:
    script = "# a comment\n\np = event.payload\n\nif p.n.contains(1):  # a number holds nothing\n    1\n"
    await system.register("bad", script)
    await system.append(payload={"n": 1})
    error = (await system.run_of("bad", "failed")).error or ""
    assert "line 5" in error
    assert "if p.n.contains(1):" in error
    assert "_field_of" not in error


@each_of(
    ("parts", "path", "suggestion"),
    [
        ({"condition": {"expr": "event.payload.tgs == 1"}}, "condition.expr", "tags"),
        ({"condition": {"expr": 'event["payload"]["tgs"] == 1'}}, "condition.expr", "tags"),
        ({"condition": {"expr": "has(event.payload.tgs)"}}, "condition.expr", "tags"),
        ({"condition": {"expr": "event.data.payload.tgs == 1"}}, "condition.expr", "tags"),
        ({"condition": {"expr": "event.metadata.actr == 'x'"}}, "condition.expr", "event.metadata.actor"),
        ({"condition": {"expr": "event.paylod.tags == []"}}, "condition.expr", "event.payload"),
        ({"condition": {"expr": "inputs.id == 1"}}, "condition.expr", None),
        ({"condition": {"script": "event.payload.tgs == 1"}}, "condition.script", "tags"),
        ({"script": "p = event['payload']\np['tgs']"}, "action.script", "tags"),
        ({"script": "event.payload.get('tgs')"}, "action.script", "tags"),
        ({"script": "(event.payload or {}).get('tgs')"}, "action.script", "tags"),
        ({"script": "event.payload.links[-1].tpye"}, "action.script", "links.0.type"),
        ({"script": "event.payload.links[1:][0]['tpye']"}, "action.script", "links.0.type"),
        ({"script": "getattr(event.payload, 'tgs')"}, "action.script", "tags"),
        ({"script": "'tgs' not in event.payload"}, "action.script", "tags"),
        ({"script": "p, n = event.payload, 1\np.tgs"}, "action.script", "tags"),
        ({"script": "if p := event.payload:\n    p.tgs"}, "action.script", "tags"),
        ({"script": "inputs.idd"}, "action.script", None),
        (
            {"action": {"type": "Script", "script": "inputs.a.x.y\ninputs.a.oen", "inputs": {"a": {"one": 1, "x": 2}}}},
            "action.script",
            "one",
        ),
        (
            {"action": {"type": "Script", "script": "1", "inputs": {"a": "x {{event.payload.tgs}}"}}},
            "action.inputs.a",
            "tags",
        ),
        ({"action": {"type": "Shell", "command": "echo {{event.payload.tgs}}"}}, "action.command", "tags"),
        ({"action": {"type": "HTTP", "url": "http://127.0.0.1/{{event.payload.tgs}}"}}, "action.url", "tags"),
        (
            {"action": {"type": "HTTP", "url": "http://127.0.0.1/", "body": {"a": ["{{event.payload.tgs}}"]}}},
            "action.body.a.0",
            "tags",
        ),
        ({"script": "memory_tag('m', tga='#x')"}, "action.script", "tag"),
        ({"filter": {"event_type": "x"}}, "trigger.events.0.filter.event_type", "entry_type"),
        ({"script": "x = 1\ndel x"}, "action.script", None),
        ({"script": "x = 1\n" * SCRIPT_BYTES}, "action.script", None),
    ],
)
async def test_field_that_no_event_can_have_is_refused(
    system: System, parts: dict[str, Any], path: str, suggestion: str | None
) -> None:
    with pytest.raises(InvalidError) as refused:
        await system.register("typo", on="Memory.Created", **{"script": "1", **parts})
    assert [(error.path, error.suggestion) for error in refused.value.errors] == [(path, suggestion)]
    assert await system.state("typo") is None


async def test_field_of_an_open_type_or_of_one_of_several_is_not_refused(system: System) -> None:
    await system.register("open", "event.payload.tgs", condition={"expr": "event.payload.tgs == 1"})
    await system.register("all", "event.payload.tgs", on="*")
    await system.register("texts", "'tgs' in event.payload.tags or 'tgs' in event.payload.content", on="Memory.Created")
    await system.register("some", "event.payload.tag", on="Memory.*")
    await system.register("extended", "event.metadata.extensions.dataschema", on="Memory.Created")
