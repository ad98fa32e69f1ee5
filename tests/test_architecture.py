"""The walls of the design: which package may import which, and which names have one home.

Each rule is a function of `{path: source}`, so that planted violations prove that it sees them.
"""

import ast
import collections
import functools
import graphlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
Files = Mapping[str, str]
Rule = Callable[[Files], list[str]]

SERVICES = ("events", "gateway", "hooks", "memory", "webhooks")
ALLOWED = {
    "crucible_core": set(),
    "crucible_kit": {"crucible_core"},
    "crucible_client": {"crucible_core"},
    "crucible_cli": {"crucible_core", "crucible_client"},
    **{f"crucible_{service}": {"crucible_core", "crucible_kit"} for service in SERVICES},
}
PURE = {
    *(
        "__future__",
        "abc",
        "base64",
        "bisect",
        "codecs",
        "collections",
        "contextlib",
        "dataclasses",
        "datetime",
        "decimal",
    ),
    *(
        "difflib",
        "enum",
        "errno",
        "fractions",
        "functools",
        "gc",
        "hashlib",
        "hmac",
        "ipaddress",
        "itertools",
        "json",
        "math",
    ),
    *("operator", "re", "reprlib", "string", "types", "typing", "unicodedata", "urllib", "zlib"),
    *("msgspec", "re2", "yaml"),
}
"""What the core may import: no I/O, no clock, no environment, no randomness."""
IMPURE_CALLS = {"now", "utcnow", "today", "open", "input", "print"}

EGRESS_HOME = "libs/kit/crucible_kit/http/exchange.py"
HTTP_CLIENTS = {"aiohttp", "httpx", "httpx2", "requests", "urllib3", "pyreqwest"}
CONNECTING = {"open_connection", "create_connection", "start_connection", "urlopen", "getaddrinfo", "gethostbyname"}
BUS_HOME = "libs/kit/crucible_kit/nats/bus.py"
YAML_HOME = "libs/core/crucible_core/yaml.py"
HOMES = {"nats": BUS_HOME, "yaml": YAML_HOME}
NAMES_HOME = "libs/core/crucible_core/subjects.py"
STATUS_HOME = "libs/kit/crucible_kit/http/asgi.py"
BUS_NAME = re.compile(
    r"(Nats|Crucible)-[A-Z][A-Za-z-]*$"  # headers on the bus; those of webhooks begin with X-Crucible-
    r"|\$(JS|KV|SYS|O)\."
    r"|(evt|live|run|dlv|sched|att|rpc)\.($|[*>{]|\w+\.)"
    r"|(\w*_)?(EVENTS|HOOK_RUNS|DELIVERIES|ATTEMPTS)$"
    r"|KV_"
)
MAX_LINES = 400
SMALL = 60
PARTICIPLE = re.compile(r"[a-z]{2}(ing|ed)$")
NOUNS = {"signing", "feed"}
QUESTION_WORDS = ("What ", "How ", "Where ", "When ", "Whether ", "Which ")
REASON = re.compile(r"\b(since|because|so that)\b")


# ---- The rules -------------------------------------------------------------------------------------------------------


def forbidden_arrows(files: Files) -> list[str]:
    """core ← kit ← services, core ← client ← cli; services never import each other."""
    return [
        f"{path}:{line}: {package(path)} imports {name}"
        for path, line, name in imports(files)
        if name.startswith("crucible_") and name != package(path) and name not in ALLOWED.get(package(path), set())
    ]


def impure_core(files: Files) -> list[str]:
    core = {path: source for path, source in files.items() if package(path) == "crucible_core"}
    imported = [
        f"{path}:{line}: the core imports {name}"
        for path, line, name in imports(core)
        if name not in PURE | {"crucible_core"}
    ]
    called = [
        f"{path}:{node.lineno}: the core calls {called_name(node)}"
        for path, node in nodes(core, ast.Call)
        if called_name(node) in IMPURE_CALLS
    ]
    return imported + called


def stray_imports(files: Files) -> list[str]:
    """Libraries that one module alone knows."""
    return [
        f"{path}:{line}: only {HOMES[name]} imports {name}"
        for path, line, name in imports(files)
        if path != HOMES.get(name, path)
    ]


def stray_connections(files: Files) -> list[str]:
    """What a service connects to, NATS aside, goes by the egress guard of one module."""
    served = {
        path: source for path, source in files.items() if path.startswith("services/") or "/crucible_kit/" in path
    }
    clients = [
        f"{path}:{line}: only {EGRESS_HOME} imports {name}"
        for path, line, name in imports(served)
        if name in HTTP_CLIENTS and path != EGRESS_HOME
    ]
    return clients + [
        f"{path}:{node.lineno}: only {EGRESS_HOME} calls {called_name(node)}"
        for path, node in nodes(served, ast.Call)
        if called_name(node) in CONNECTING and path != EGRESS_HOME
    ]


def stray_bus_names(files: Files) -> list[str]:
    """Streams, subjects, buckets and headers are written in subjects.py alone."""
    return [
        f"{path}:{node.lineno}: {node.value!r} belongs in {NAMES_HOME}"
        for path, source in files.items()
        if path != NAMES_HOME
        for node in literals(source)
        if BUS_NAME.match(node.value)
    ]


def stray_statuses(files: Files) -> list[str]:
    """Which HTTP status an error has is said in asgi.py alone."""
    return [
        f"{path}:{node.lineno}: the status {status} of an error belongs in {STATUS_HOME}"
        for path, node in nodes(files, ast.Call)
        if path != STATUS_HOME and (path.startswith("services/") or package(path) == "crucible_kit")
        for status in error_statuses(node)
    ]


def inner_imports(files: Files) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{path}:{node.lineno}: an import inside a function"
        for path, source in files.items()
        for function in ast.walk(parse(source))
        if isinstance(function, functions)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def long_modules(files: Files) -> list[str]:
    """More than 400 lines that say something: blank lines and comments do not count."""
    counted = {path: len(re.findall(r"^[ \t]*[^\s#]", source, re.MULTILINE)) for path, source in files.items()}
    return [f"{path}: {lines} lines, at most {MAX_LINES}" for path, lines in counted.items() if lines > MAX_LINES]


def import_cycles(files: Files) -> list[str]:
    """No module imports itself, by whatever way round."""
    known = {module(path): path for path in files}
    graph = {path: {known[name] for name in imported_modules(path, source) if name in known} - {path}
             for path, source in files.items()}  # fmt: skip
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def modules_without_a_sentence(files: Files) -> list[str]:
    """Each module opens with what belongs in it; an `__init__` only re-exports."""
    said = {path: ast.get_docstring(parse(source)) for path, source in files.items() if "__init__" not in path}
    return [path for path, docstring in said.items() if not docstring]


def participles(files: Files) -> list[str]:
    """A module's name is a noun of the field."""
    names = {path: module(path).rpartition(".")[2] for path in files}
    return [path for path, name in names.items() if PARTICIPLE.search(name) and name not in NOUNS]


def openings(files: Files) -> list[str]:
    """A module's docstring begins with its subject."""
    said = {path: ast.get_docstring(parse(source)) or "" for path, source in files.items()}
    return [path for path, docstring in said.items() if docstring.startswith(QUESTION_WORDS)]


def small_modules(files: Files) -> list[str]:
    """A module of fewer than 60 lines with one importer is a part of that, or its first sentence says why not."""
    paths = {module(path): path for path in files}
    importers: dict[str, set[str]] = collections.defaultdict(set)
    for path, source in files.items():
        for name in imported_modules(path, source):
            if name in paths and paths[name] != path:
                importers[paths[name]].add(path)
    return [
        f"{path}: only {min(importers[path])} imports it"
        for path, source in files.items()
        if len(importers[path]) == 1
        and len(source.splitlines()) < SMALL
        and not path.endswith("__init__.py")
        and not REASON.search((ast.get_docstring(parse(source)) or "").partition("\n\n")[0])
    ]


# ---- What the rules look at ------------------------------------------------------------------------------------------


@functools.cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


def package(path: str) -> str:
    """`crucible_kit` of libs/kit/crucible_kit/nats/bus.py."""
    return path.split("/")[2]


def module(path: str) -> str:
    return ".".join(path.removesuffix(".py").removesuffix("/__init__").split("/")[2:])


def nodes(files: Files, kind: type[ast.Call]) -> Iterator[tuple[str, ast.Call]]:
    for path, source in files.items():
        yield from ((path, node) for node in ast.walk(parse(source)) if isinstance(node, kind))


def imports(files: Files) -> Iterator[tuple[str, int, str]]:
    """(path, line, top-level package) of every absolute import."""
    for path, source in files.items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.Import):
                yield from ((path, node.lineno, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.lineno, node.module.partition(".")[0]


def imported_modules(path: str, source: str) -> Iterator[str]:
    """Full names of what a file imports from our packages, whether a module or something inside one."""
    here = module(path).split(".") if path.endswith("/__init__.py") else module(path).split(".")[:-1]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
            if node.module:
                yield origin


def literals(source: str) -> Iterator[ast.Constant]:
    """String literals, f-string parts among them, that are not docstrings or loose strings."""
    tree = parse(source)
    loose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node


def called_name(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def error_statuses(node: ast.Call) -> Iterator[int]:
    """400 to 599 as a `status` or `status_code` of a call, or as the first argument of an HTTPException."""
    values = [keyword.value for keyword in node.keywords if keyword.arg in ("status", "status_code")]
    if called_name(node) == "HTTPException":
        values += node.args[:1]
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, int) and 400 <= value.value <= 599:
            yield value.value


# ---- The tests -------------------------------------------------------------------------------------------------------

RULES: list[Rule] = [
    forbidden_arrows,
    impure_core,
    stray_imports,
    stray_connections,
    stray_bus_names,
    stray_statuses,
    inner_imports,
    long_modules,
    import_cycles,
    modules_without_a_sentence,
    participles,
    openings,
    small_modules,
]

KIT, CORE, EVENTS, CLI = (
    "libs/kit/crucible_kit/a.py",
    "libs/core/crucible_core/a.py",
    "services/events/crucible_events/a.py",
    "libs/cli/crucible_cli/a.py",
)
PLANTED: list[tuple[Rule, str, str]] = [
    (forbidden_arrows, CORE, "import crucible_kit.nats.bus"),
    (forbidden_arrows, KIT, "from crucible_events import app"),
    (forbidden_arrows, KIT, "from crucible_client import Crucible"),
    (forbidden_arrows, EVENTS, "from crucible_hooks.api import x"),
    (forbidden_arrows, CLI, "from crucible_kit.nats.bus import open_bus"),
    (forbidden_arrows, CLI, "def f():\n    import crucible_gateway"),
    (impure_core, CORE, "import os"),
    (impure_core, CORE, "from time import time"),
    (impure_core, CORE, "import asyncio.queues"),
    (impure_core, CORE, "from datetime import datetime\nx = datetime.now()"),
    (impure_core, CORE, "x = open('file')"),
    (stray_imports, EVENTS, "import nats"),
    (stray_imports, "libs/kit/crucible_kit/nats/consumer.py", "from nats.js import api"),
    (stray_imports, EVENTS, "import yaml"),
    (stray_connections, EVENTS, "import httpx"),
    (stray_connections, KIT, "from aiohttp import ClientSession"),
    (stray_connections, EVENTS, "async def f():\n    await asyncio.open_connection('h', 1)"),
    (stray_bus_names, EVENTS, "x = {'Nats-Msg-Id': '1'}"),
    (stray_bus_names, KIT, "x = 'evt.default.main.Memory.Created.m1'"),
    (stray_bus_names, KIT, "x = f'evt.{world}'"),
    (stray_bus_names, KIT, "x = 'rpc.events.append'"),
    (stray_bus_names, EVENTS, "x = 'EVENTS'"),
    (stray_bus_names, EVENTS, "x = f'{prefix}_HOOK_RUNS'"),
    (stray_bus_names, EVENTS, "x = '$JS.API.STREAM.NAMES'"),
    (stray_bus_names, EVENTS, "x = headers['Crucible-Attempt']"),
    (stray_statuses, EVENTS, "Response(b'', status_code=404)"),
    (stray_statuses, KIT, "answer(status=503)"),
    (stray_statuses, EVENTS, "raise HTTPException(422, 'no')"),
    (inner_imports, CLI, "async def f():\n    if x:\n        from os import path"),
    (long_modules, CLI, "x = 1\n" * 401),
    (import_cycles, KIT, "from . import a2\nfrom .a import x\nfrom .b import y"),
    (modules_without_a_sentence, CLI, "x = 1"),
    (participles, "libs/cli/crucible_cli/sending.py", "x = 1"),
    (openings, CLI, "'''What is sent.'''"),
    (small_modules, KIT, "x = 1"),
]
ALLOWED_SOURCES: list[tuple[Rule, str, str]] = [
    (forbidden_arrows, CLI, "import crucible_client\nfrom crucible_core.errors import x\nfrom .a import y"),
    (forbidden_arrows, EVENTS, "from crucible_kit.nats.bus import x"),
    (impure_core, CORE, "import re2, msgspec\nfrom collections.abc import Iterator\nfrom .ids import x"),
    (impure_core, KIT, "import os"),
    (stray_imports, BUS_HOME, "import nats.js.api"),
    (stray_imports, YAML_HOME, "import yaml"),
    (stray_connections, EGRESS_HOME, "import aiohttp"),
    (stray_connections, CLI, "import httpx"),
    (stray_bus_names, NAMES_HOME, "x = 'Nats-Msg-Id'"),
    (stray_bus_names, EVENTS, "x = 'Crucible-Hooks/1'"),
    (stray_bus_names, EVENTS, "'''Reads EVENTS.'''\nx = 'X-Crucible-Event-Id'\ny = 'live. And kicking'\nz = 'events'"),
    (stray_statuses, STATUS_HOME, "Response(status_code=404)"),
    (stray_statuses, EVENTS, "Response(status_code=201)\nx = status == 410"),
    (inner_imports, CLI, "import os\nif True:\n    import sys"),
    (long_modules, CLI, "x = 1\n" * 400 + "\n# comment" * 50),
    (import_cycles, KIT, "from .b import y"),
    (modules_without_a_sentence, CLI, "'''One sentence.'''"),
    (participles, "libs/cli/crucible_cli/signing.py", "x = 1"),
    (openings, CLI, "'''Requests and their answers.'''"),
    (small_modules, KIT, "'''Apart, since it is loaded late.'''"),
    (modules_without_a_sentence, "libs/cli/crucible_cli/__init__.py", "from .a import x"),
]


@pytest.fixture(scope="module")
def project() -> Files:
    found = [*ROOT.glob("libs/*/crucible_*/**/*.py"), *ROOT.glob("services/*/crucible_*/**/*.py")]
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in found}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project_keeps_the_rule(rule: Rule, project: Files) -> None:
    assert rule(project) == []


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_planted_violation_is_caught(rule: Rule, path: str, source: str) -> None:
    files = {path: source}
    if rule is import_cycles:
        files |= {
            "libs/kit/crucible_kit/b.py": "from crucible_kit.c import z",
            "libs/kit/crucible_kit/c.py": "from . import a",
        }
    if rule is small_modules:
        files |= {"libs/kit/crucible_kit/b.py": "from crucible_kit.a import x"}
    assert rule(files)


@pytest.mark.parametrize(("rule", "path", "source"), ALLOWED_SOURCES)
def test_what_is_allowed_is_not_caught(rule: Rule, path: str, source: str) -> None:
    assert rule({path: source, "libs/kit/crucible_kit/b.py": "'''B.'''"}) == []


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_every_package_has_its_arrows(project: Files) -> None:
    assert {package(path) for path in project} == set(ALLOWED)


PAGE = (ROOT / "docs" / "architecture.md").read_text()
CHANGES = re.findall(r"^\| .* \| `(\S+\.py)` \| `(\w+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("path", "name"), CHANGES)
def test_what_the_page_names_is_in_the_file_that_it_names(path: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text())


def test_the_page_answers_twenty_questions() -> None:
    assert len(CHANGES) >= 20
