"""The Shell action: a command of the hook's author, run with values that never become part of its text."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from typing import Any

import msgspec

from crucible_core.definition import ShellAction
from crucible_core.errors import InvalidError
from crucible_core.limits import HOOK_ARGUMENT_BYTES, HOOK_OUTPUT_BYTES, SCRIPT_BYTES
from crucible_hooks.errors import RunError
from crucible_hooks.expressions.expression import Expression
from crucible_hooks.expressions.templates import Template, combine, compile_text, parse, text_of

_SHOWN = 500
_LINGER_S = 0.2
_ANSWER_S = 1.0
"""The wait for the end of an answer once its command has exited."""
_POLL_S = 0.02
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[^\s;|&()<>`$'\"]+")
_HOLE = "\0"
"""The character that stands for a template while a command is parsed."""
_SEPARATOR = re.compile(r"\|\||&&|[;&\n]")
_PASSES_ON = re.compile(r"[>={}]|\b(?:for|read|tee|set|export|case)\b")
"""A statement that may leave a value to others: in a file, in a variable, or in the arguments of a function."""
_EXPANDS = re.compile(r"[$`]")
_RUN = re.compile(
    r"(?:^|[|(`{])\s*(?:(?:then|do|else|elif|if|while|until|exec|command|time|!)\s+)*"
    r"(?:[A-Za-z_]\w*=\S*\s+)*([^\s;|&()<>`$'\"{}]+)"
)
"""The first word of each command in a statement, past variables that are set for it."""
_SOURCES = re.compile(r"(?:^|[;&|(`{]|\bthen\b|\bdo\b)\s*\.\s")
_REPARSERS = frozenset(
    """
    sh bash dash zsh ksh mksh ash csh tcsh fish busybox toybox eval source trap alias su sudo doas
    runuser ssh rsh env xargs parallel watch at batch crontab nohup setsid timeout nice script expect
    awk gawk mawk nawk sed perl ruby php node deno bun lua tclsh -exec -execdir -ok -okdir make ed ex vi
    vim gdb
    """.split()  # noqa: SIM905 - a table of words
)
_INTERPRETER = re.compile(r"python[\d.]*|pypy[\d.]*|perl[\d.]+|lua[\d.]+|ruby[\d.]+|php[\d.]+")
"""Programs that take an argument for a program: with a value in it, the value would be run."""


class Shell(msgspec.Struct, frozen=True):
    """`command` has a positional parameter for each template; `values` come to the `arguments`, in order, and
    to `env`."""

    command: str
    values: Template


def compile_shell(action: ShellAction, at: str) -> Shell:
    """Raises InvalidError for bad templates, and for one in a text that would be parsed as a command once more."""
    if len(action.command) > SCRIPT_BYTES:
        raise InvalidError.field(f"{at}.command", f"a command may have {SCRIPT_BYTES // 1024} KiB")
    parts = parse(action.command, f"{at}.command")
    templates = any(isinstance(part, Expression) for part in parts)
    if templates and (reader := _reader(parts)):
        message = f"a template may not go through {reader}: give the value in env, and use the variable"
        raise InvalidError.field(f"{at}.command", message)
    for name in action.env:
        if not _VARIABLE.fullmatch(name):
            raise InvalidError.field(
                f"{at}.env.{name[:80]}", "not the name of a variable", detail=f"{at}.env: not the name of a variable"
            )
    env = {name: compile_text(text_of(value), f"{at}.env.{name}") for name, value in action.env.items()}
    expressions = tuple(part for part in parts if isinstance(part, Expression))
    arguments = Template(expressions, lambda values: [next(values) for _ in expressions])
    return Shell(_command(parts), combine({"arguments": arguments, "env": combine(env)}))


def working_directory(action: ShellAction, beside: str | None, at: str) -> str | None:
    """The directory of the command: `beside`, the hook file's, unless the hook names another; None for the service's.
    Raises InvalidError for a name that says nothing without a file."""
    if action.cwd is None:
        return beside
    named = os.path.expanduser(action.cwd)
    if beside is None and not os.path.isabs(named):
        message = f"{action.cwd[:200]} is beside no hook file: a hook that arrives over the API names an absolute path"
        raise InvalidError.field(f"{at}.cwd", message)
    return os.path.normpath(os.path.join(beside or "/", named))


def _reader(parts: tuple[str | Expression, ...]) -> str | None:
    """The part of a command that may read a value as a program once more; None where there is none. Rather too strict.

    Of a statement with a template every word counts. Of the others only what they run does, and only where a value can
    have come there: by a variable, or by a file.
    """
    text = "".join(part if isinstance(part, str) else _HOLE for part in parts)
    if "<<" in text:
        return "a here-document"
    statements = _statements(text)
    passed_on = any(_PASSES_ON.search(statement) for statement in statements if _HOLE in statement)
    for statement in statements:
        if _HOLE in statement:
            words = _WORD.findall(statement.replace(_HOLE, " "))
        elif passed_on or _EXPANDS.search(statement):
            words = _RUN.findall(statement)
        else:
            continue
        if _SOURCES.search(statement):
            return "`.`"
        names = (word.rpartition("/")[2].replace("\\", "") for word in words)
        if found := next((name for name in names if name in _REPARSERS or _INTERPRETER.fullmatch(name)), None):
            return f"`{found}`"
    return None


def _statements(text: str) -> list[str]:
    """The commands of a script that stand apart: between `;`, `&`, `&&`, `||` and the ends of lines, where no quote and
    no parenthesis is open. A pipeline is one."""
    found, inside, start, parsed_to = [], [""], 0, 0
    for separator in _SEPARATOR.finditer(text):
        _enter(text[parsed_to : separator.start()], inside, comment=True)
        parsed_to = separator.end()
        if inside == [""]:
            found.append(text[start : separator.start()])
            start = parsed_to
    return [*found, text[start:]]


def _command(parts: tuple[str | Expression, ...]) -> str:
    """The shell's words, with `$1`, `$2` … where templates stood, quoted so that each value stays one word whatever
    quotes stand around it."""
    written: list[str] = []
    inside = [""]
    number = 0
    for part in parts:
        if isinstance(part, str):
            written.append(part)
            _enter(part, inside, comment=not number)
            continue
        number += 1
        written.append({'"': "${%d}", "'": "'\"${%d}\"'"}.get(inside[-1], '"${%d}"') % number)
    return "".join(written)


def _enter(text: str, inside: list[str], *, comment: bool) -> None:
    """Moves `inside`, the stack of quotes and parentheses that are open, past `text` (POSIX 2.2 and 2.6.3).

    A mistake here can split a value into words, but never make a command of it. `comment`: a `#` may begin one at once.
    """
    index = 0
    while index < len(text):
        char, top = text[index], inside[-1]
        if top == "'":
            if char == "'":
                inside.pop()
        elif char == "\\":
            index += 1
        elif char in '"`':
            inside.pop() if top == char else inside.append(char)
        elif top == '"' and not text.startswith("$(", index):
            pass
        elif char in "'(":
            inside.append(char)
        elif char == "$" and text.startswith("$(", index):
            inside.append("(")
            index += 1
        elif char == ")" and top == "(":
            inside.pop()
        elif char == "#" and (text[index - 1] in " \t\n;&|(" if index else comment):
            end = text.find("\n", index)
            index = len(text) if end < 0 else end
        index += 1


async def run_shell(
    shell: Shell,
    values: Mapping[str, Any],
    event: bytes,
    traceparent: str,
    directory: str | None,
    *,
    answers: bool = False,
) -> bytes:
    """The beginning of the command's standard output: HOOK_OUTPUT_BYTES bytes of it, and one more where there are more.
    Raises RunError unless it exits with 0, and, where its output `answers` a question, comes to its end.

    Cancelling kills the command and all of its process group.
    """
    arguments = [_check_argument(text_of(value)) for value in values["arguments"]]
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    env |= {"TRACEPARENT": traceparent, **{name: _check_argument(value) for name, value in values["env"].items()}}
    if directory is not None and not await asyncio.to_thread(os.path.isdir, directory):
        raise RunError(f"the command cannot be started: there is no directory {directory}, in which it is to run (cwd)")
    try:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            shell.command,
            "hook",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=directory,
            start_new_session=True,
        )
    except OSError as error:
        raise RunError(f"the command cannot be started: {error.strerror or error}") from None
    output, complaint, whole = await _converse(process, event, _ANSWER_S if answers else _LINGER_S)
    if process.returncode:
        said = complaint.decode(errors="replace").strip()[-_SHOWN:]
        raise RunError(f"the command ended with {_describe_exit(process.returncode)}{': ' if said else ''}{said}")
    if answers and not whole:
        # The part that is there may be an answer by itself: nothing at all would allow.
        raise RunError("the command left something running that may print more: give that another output (>/dev/null)")
    return output


async def _converse(process: asyncio.subprocess.Process, stdin: bytes, linger_s: float) -> tuple[bytes, bytes, bool]:
    """Standard output, standard error, and whether the first had come to its end before the rest was killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, complaint = bytearray(), bytearray()
    printing = asyncio.ensure_future(_read(process.stdout, output))
    readers = asyncio.gather(printing, _read(process.stderr, complaint))
    feeder = asyncio.create_task(_feed(process.stdin, stdin))
    try:
        await _wait_exit(process, readers)
        await asyncio.wait([printing], timeout=linger_s)
        whole = printing.done()
    finally:
        feeder.cancel()
        await asyncio.shield(_end(process, readers))
    return bytes(output), bytes(complaint), whole


async def _wait_exit(process: asyncio.subprocess.Process, readers: "asyncio.Future[Any]") -> None:
    """Returns when the command has exited. `Process.wait` would also wait for whatever the command has left running,
    as that holds its pipes open."""
    while process.returncode is None:
        if readers.done():
            await asyncio.sleep(_POLL_S)
        else:
            await asyncio.wait([readers], timeout=_POLL_S)


async def _end(process: asyncio.subprocess.Process, readers: "asyncio.Future[Any]") -> None:
    """Kills what is left of the command's process group, and lets go of the pipes even where somebody keeps them."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.wait([readers], timeout=_LINGER_S)
    readers.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await readers
    process._transport.close()  # type: ignore[attr-defined]  # there is no public way to close the pipes


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    # A command need not read what it is given.
    with contextlib.suppress(OSError):
        pipe.write(data)
        await pipe.drain()
        pipe.close()


async def _read(pipe: asyncio.StreamReader, beginning: bytearray) -> None:
    """Keeps the beginning and drops the rest, so that a command that writes without end never waits for us."""
    while chunk := await pipe.read(65_536):
        beginning += chunk[: HOOK_OUTPUT_BYTES + 1 - len(beginning)]


def _check_argument(value: str) -> str:
    if "\0" in value:
        raise RunError("a value has a NUL character, which no command can be given")
    if len(value.encode(errors="surrogatepass")) > HOOK_ARGUMENT_BYTES:
        raise RunError("a value is too long for a command's arguments; the event itself is on standard input")
    return value


def _describe_exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def decode_output(output: bytes) -> Any:
    """The output of a command, decoded where it is a JSON object; None where it is empty."""
    text = output[:HOOK_OUTPUT_BYTES].decode(errors="replace").strip()
    if text.startswith("{"):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(text)
    return text or None
