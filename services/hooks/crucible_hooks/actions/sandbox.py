"""The sandbox: hook scripts, adapted to it, in `monty` worker processes with their functions and nothing else; and the
errors of scripts as their authors read them."""

import ast
import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from pydantic_monty import (
    AsyncFunctionSnapshot,
    AsyncMonty,
    AsyncMontySession,
    ExternalResult,
    MontyComplete,
    MontyError,
    MontyRuntimeError,
    ResourceLimits,
)

from crucible_core.errors import (
    CrucibleError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from crucible_hooks.actions.scripts import SPELLINGS, VARIABLES, bound_names, imported_names, parse_script, root
from crucible_hooks.errors import AbsentError, RunError
from crucible_hooks.expressions.cel import plain
from crucible_hooks.stopwatch import Stopwatch
from crucible_kit.fairness import Slots
from crucible_kit.isolation import ExhaustedError, WorkerPool

_FIELD = "_field_of"
_PRELUDE = f"""def {_FIELD}(value, name):
    return value[name] if isinstance(value, dict) else getattr(value, name)
"""
Function = Callable[..., Awaitable[Any]]
Printed = Callable[[str], None]
_SHOWN = 2000
_INPUT = "<python-input-0>"
"""The file name of a script in monty's tracebacks."""
_FRAME_LINE = re.compile(r'File ".*", line (\d+)')
_FRAME = re.compile(
    r'(?P<before>  File ".*", line )(?P<line>\d+)(?P<after>.*)\n(?:    .*\n)?(?:    [ ~^]*\n)?', re.MULTILINE
)
_ABSENT = re.compile(r"(?:KeyError|IndexError): .*")
_LIMITS = ("TimeoutError", "time limit", "MemoryError", "sleep limit", "duration")
_CHECK_S = 5.0
_CHECKED = "StopIteration"
_MOST_ADAPTED = 1024
_EXIT_PAUSE_S = 0.1
_BUILTIN: Mapping[type[CrucibleError], type[Exception]] = {
    NotFoundError: LookupError,
    InvalidError: ValueError,
    ForbiddenError: PermissionError,
}
"""The exceptions that scripts catch for our errors; RuntimeError for all others."""


class AdaptedScript(msgspec.Struct, frozen=True):
    """A script as the sandbox runs it; `lines` has the author's line for each of its own, None where they are equal."""

    source: str
    lines: Mapping[int, int] | None = None


def adapt(source: str) -> AdaptedScript:
    """The script as the sandbox runs it. One that cannot be parsed stays as it is: the sandbox reports the error."""
    try:
        tree = parse_script(source, "")
    except InvalidError:
        return AdaptedScript(source)
    rewriter = _Rewriter(tree)
    changed = ast.fix_missing_locations(rewriter.visit(tree))
    if not rewriter.changes:
        return AdaptedScript(source)
    prelude = _PRELUDE if rewriter.uses_prelude else ""
    text = ast.unparse(changed)
    return AdaptedScript(prelude + text, _lines(changed, text, prelude.count("\n")))


def _lines(changed: ast.AST, text: str, before: int) -> dict[int, int]:
    """Each line of the text with the line that its statement had."""
    lines: dict[int, int] = {}
    for old, new in zip(ast.walk(changed), ast.walk(ast.parse(text)), strict=False):
        if isinstance(new, ast.expr | ast.stmt) and isinstance(old, ast.expr | ast.stmt):
            lines.setdefault(new.lineno + before, old.lineno)
    return lines


class _Rewriter(ast.NodeTransformer):
    """Rewrites attributes of objects as their elements, and the methods of CEL as Python's."""

    def __init__(self, tree: ast.Module) -> None:
        self.changes = 0
        self.uses_prelude = False
        nodes = list(ast.walk(tree))
        self._own = frozenset(bound_names(nodes))
        self._variables = frozenset(VARIABLES) - self._own
        self._modules = frozenset(imported_names(nodes))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        value = self.visit(node.value)
        first = root(node)
        if first in self._variables:
            self.changes += 1
            return _at(node, ast.Subscript(value, ast.Constant(node.attr), node.ctx))
        if not isinstance(node.ctx, ast.Load) or first in self._modules:
            return _at(node, ast.Attribute(value, node.attr, node.ctx))
        self.changes += 1
        self.uses_prelude = True
        return _at(node, ast.Call(ast.Name(_FIELD, ast.Load()), [value, ast.Constant(node.attr)], []))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        arguments = [self.visit(argument) for argument in node.args]
        keywords = [ast.keyword(keyword.arg, self.visit(keyword.value)) for keyword in node.keywords]
        if not isinstance(node.func, ast.Attribute):
            return _at(node, ast.Call(self.visit(node.func), arguments, keywords))
        value, name = self.visit(node.func.value), node.func.attr
        if name not in self._own:
            if name == "contains" and len(arguments) == 1 and not keywords:
                self.changes += 1
                return _at(node, ast.Compare(arguments[0], [ast.In()], [value]))
            if name == "size" and not arguments and not keywords:
                self.changes += 1
                return _at(node, ast.Call(ast.Name("len", ast.Load()), [value], []))
            if name in SPELLINGS:
                self.changes += 1
                name = SPELLINGS[name]
        return _at(node, ast.Call(_at(node.func, ast.Attribute(value, name, ast.Load())), arguments, keywords))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.target = self.visit(node.target)
        node.value = self.visit(node.value) if node.value else None
        return node

    def visit_match_case(self, node: ast.match_case) -> Any:
        node.guard = self.visit(node.guard) if node.guard else None
        return self._body(node)

    def _body(self, node: Any) -> Any:
        """Rewrites the statements; decorators, annotations, bases and patterns are names of types, and stay."""
        node.body = [self.visit(statement) for statement in node.body]
        return node


def _at(old: ast.expr, new: ast.expr) -> ast.expr:
    return ast.copy_location(new, old)


class Sandbox:
    """Two pools of workers, so that Post hooks never keep a Pre hook waiting. Each starts when it is first needed.

    A hook holds at most a quarter of a pool, and hooks whose scripts used up their time of late at most half of it
    together: the scripts of others run on.
    """

    def __init__(self, stack: contextlib.AsyncExitStack, isolated: WorkerPool, workers: int, memory_mb: int) -> None:
        self._stack = stack
        self._isolated = isolated
        self._workers = workers
        self._memory = memory_mb * 1024 * 1024
        self._pools: dict[str, AsyncMonty] = {}
        self._slots = {pool: Slots(workers, workers // 4) for pool in ("pre", "post")}
        self._adapted: dict[str, AdaptedScript] = {}
        self._starting = asyncio.Lock()

    async def run(
        self,
        source: str,
        *,
        pool: str,
        name: str,
        watch: Stopwatch,
        timeout_s: float,
        values: dict[str, Any],
        functions: Mapping[str, Function],
        printed: Printed,
    ) -> Any:
        """The script's last expression, as JSON's types. Raises RunError, or UnavailableError where the script failed
        after something that its functions need was away.

        `timeout_s` bounds the script's own computing; `watch` stands still while it waits for a worker. The worker of a
        cancelled script is replaced.
        """
        script = await self._adapt_once(source, name, watch)
        away: list[UnavailableError] = []
        lookup = {called: _translate_errors(function, away) for called, function in functions.items()}
        greedy = False
        try:
            async with watch.enter(self._worker(pool, name, timeout_s)) as session:
                return plain(await _drive(session, script.source, values, lookup, printed))
        except MontyError as error:
            greedy = _exceeded_limit(error)
            if away:
                raise away[-1] from None
            raise _failure(error, _traceback(error, name, source, script)) from None
        finally:
            self._slots[pool].record_turn(name, greedy=greedy or watch.expired)

    async def check(self, source: str, at: str) -> None:
        """Raises InvalidError for syntax that the sandbox does not know: it reads a whole script before it runs any."""
        try:
            async with self._worker("post", "review", _CHECK_S) as session:
                await session.feed_run(f"raise {_CHECKED}()\n{source}")
        except MontyError as error:
            text = error.display() if isinstance(error, MontyRuntimeError) else str(error)
            if text.strip().endswith(_CHECKED):
                return
            raise InvalidError.field(at, _syntax_error(text)) from None

    @contextlib.asynccontextmanager
    async def _worker(self, pool: str, name: str, timeout_s: float) -> AsyncIterator[AsyncMontySession]:
        limits: ResourceLimits = {
            "max_feed_duration_secs": timeout_s,
            "max_memory": self._memory,
            "max_recursion_depth": 500,
            "max_suspensions": 2000,
            "max_total_sleep_secs": timeout_s,
        }
        workers = await self._pool(pool)
        async with self._slots[pool].take(name), workers.checkout(limits=limits) as session:
            yield session

    async def _adapt_once(self, source: str, name: str, watch: Stopwatch) -> AdaptedScript:
        """The script as it is run: parsed once, in a worker process."""
        found = self._adapted.get(source)
        if found is None:
            try:
                async with watch.enter(self._isolated.worker(name)) as worker:
                    found = await worker.run(adapt, source)
            except ExhaustedError as error:
                raise RunError(f"the script cannot be parsed: {error}") from None
            if len(self._adapted) >= _MOST_ADAPTED:
                self._adapted.clear()
            self._adapted[source] = found
        return found

    async def _pool(self, name: str) -> AsyncMonty:
        async with self._starting:
            if name not in self._pools:
                pool = AsyncMonty(min_processes=1, max_processes=self._workers)
                self._pools[name] = await self._stack.enter_async_context(pool)
            return self._pools[name]


@contextlib.asynccontextmanager
async def open_sandbox(isolated: WorkerPool, workers: int, memory_mb: int) -> AsyncIterator[Sandbox]:
    async with contextlib.AsyncExitStack() as stack:
        # pydantic-monty's threads outlive the pool for a moment; the interpreter aborts if it ends before they do.
        stack.push_async_callback(asyncio.sleep, _EXIT_PAUSE_S)
        yield Sandbox(stack, isolated, workers, memory_mb)


async def _drive(
    session: AsyncMontySession,
    source: str,
    values: dict[str, Any],
    functions: Mapping[str, Function],
    printed: Printed,
) -> Any:
    """Runs a script and answers its calls one by one, so that they need no `await`; with it they work just the same."""
    step = await session.feed_start(
        source, inputs=values, external_lookup=dict(functions), print_callback=lambda _, text: printed(text)
    )
    while not isinstance(step, MontyComplete):
        if isinstance(step, AsyncFunctionSnapshot) and step.function_name in functions and not step.allow_eager_await:
            step = await step.resume(await _answer(functions[step.function_name], step.args, step.kwargs))
        else:
            step = await step.resume_auto()
    return step.output


async def _answer(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExternalResult:
    try:
        return {"return_value": await function(*args, **kwargs)}
    except Exception as error:
        return {"exception": error}


def _translate_errors(function: Function, away: list[UnavailableError]) -> Function:
    """The function, with errors that are exceptions a script knows."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return plain(await function(*args, **kwargs))
        except CrucibleError as error:
            if isinstance(error, UnavailableError):
                away.append(error)
            raise _BUILTIN.get(type(error), RuntimeError)(error.detail) from None
        except TypeError as error:
            raise TypeError(str(error).rpartition(".")[2]) from None

    return call


def _failure(error: MontyError, text: str) -> RunError:
    """AbsentError for a missing key or element, as in an expression; RunError for any other error."""
    absent = _ABSENT.fullmatch(text.rpartition("\n")[2])
    return AbsentError(text) if absent and isinstance(error, MontyRuntimeError) else RunError(text)


def _exceeded_limit(error: MontyError) -> bool:
    """True where a script ended at one of its limits."""
    text = str(error)
    return not isinstance(error, MontyRuntimeError) or any(word in text for word in _LIMITS)


def _traceback(error: MontyError, name: str, source: str, script: AdaptedScript) -> str:
    """The error as its author reads it: with the lines of the script, not those of the adapted one."""
    text = error.display() if isinstance(error, MontyRuntimeError) else str(error)
    if script.lines is not None:
        text = _FRAME.sub(lambda frame: _frame(frame, source.splitlines(), script.lines or {}), text)
    return text.replace(_INPUT, name).strip()[-_SHOWN:]


def _frame(frame: re.Match[str], source: Sequence[str], lines: Mapping[int, int]) -> str:
    line = lines.get(int(frame["line"]))
    if line is None:  # of the prelude
        return ""
    shown = source[line - 1].strip() if line <= len(source) else ""
    return f"{frame['before']}{line}{frame['after']}\n    {shown}\n"


def _syntax_error(text: str) -> str:
    """The last line of an error of a script with one line before it, with the script's own line number."""
    lines = _FRAME_LINE.findall(text)
    where = f"line {int(lines[-1]) - 1}: " if lines and int(lines[-1]) > 1 else ""
    return where + (text.strip().splitlines() or ["not a script"])[-1].replace(" monty syntax parser", " sandbox")[:300]
