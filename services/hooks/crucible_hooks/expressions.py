"""CEL expressions (cel.dev): checked and compiled once, evaluated against `event` and `inputs`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import cel
import msgspec

from crucible_core.errors import FieldError, InvalidError
from crucible_core.suggest import nearest

from .failures import AbsentError, RunError

VARIABLES = ("event", "inputs")
MAX_SOURCE = 4096
_SHOWN = 200
_STRING = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'""")
_OF_EVENT = re.compile(r"\b(?:event|inputs)\b")
_SEARCHES = re.compile(r"\bin\b|\w\s*\(|\+")
"""What takes time in proportion to a value: done for each element of another, it could hold up the whole process."""
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_PROBES = ("{}()", "{}(1)", '"a".{}()', '"a".{}("a")', 'timestamp("2026-01-01T00:00:00Z").{}()', "[1].{}()")
# The probes call a function with few kinds of arguments; these refuse all of them.
_KNOWN = frozenset({"bool", "bytes", "timestamp", "duration", "max", "min", "has"})


class Expression(msgspec.Struct, frozen=True):
    source: str
    program: Any


def compile_expression(source: str, at: str) -> Expression:
    """Raises InvalidError, its path `at`, for what is no CEL, unknown names, and loops inside loops.

    One loop over an event is linear in its size; nested ones could hold up every other hook of this process.
    """
    if len(source) > MAX_SOURCE:
        raise _refused(at, f"an expression may have {MAX_SOURCE} characters")
    try:
        program = cel.compile(source)
        names = program.references()
    except Exception as error:
        raise _refused(at, f"not a CEL expression: {_first_line(error)}") from None
    bare = _STRING.sub('""', source)
    _check_names(names["variables"], [*VARIABLES, *_MACRO.findall(bare)], at)
    _check_functions(names["functions"], at)
    for body in _loop_bodies(bare):
        if _MACRO.search(body):
            raise _refused(at, "loops (map, filter, all, exists …) may not stand inside each other")
        if _OF_EVENT.search(body) and _SEARCHES.search(body):
            message = "a loop may compare with fields of event and inputs, but not search in them or call on them"
            raise _refused(at, message)
    return Expression(source, program)


def evaluate(expression: Expression, context: Mapping[str, Any]) -> Any:
    """The value, made of JSON's types. Raises AbsentError for a field that is not there, RunError for all else."""
    try:
        return plain(expression.program.execute(dict(context)))
    except KeyError as error:
        raise AbsentError(
            f"{_shown(expression)}: there is no {error.args[0] if error.args else 'such field'}"
        ) from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library's Rust is no Exception
        raise RunError(f"{_shown(expression)}: {_first_line(error)}") from None


def plain(value: Any) -> Any:
    """Any value of an expression or a script, as JSON's types. Raises RunError for one that JSON cannot hold."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))
    except RecursionError:
        raise RunError("the result refers to itself or is nested too deeply") from None
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise RunError(f"the result cannot be written as JSON: {error}") from None


def _check_names(used: Iterable[str], known: list[str], at: str) -> None:
    for name in used:
        if name not in known:
            raise _refused(at, f'there is no "{name}": an expression sees event and inputs', nearest(name, VARIABLES))


def _check_functions(used: Iterable[str], at: str) -> None:
    for name in used:
        if name.isidentifier() and not name.startswith("_") and not _is_function(name):
            raise _refused(at, f'CEL has no function "{name}"')


@cache
def _is_function(name: str) -> bool:
    return name in _KNOWN or any(_answers(name, probe.format(name)) for probe in _PROBES)


def _answers(name: str, probe: str) -> bool:
    try:
        cel.compile(probe).execute({})
    except RuntimeError as error:
        return not str(error).startswith(f"Undefined variable or function: '{name}'")
    except Exception:
        return True
    return True


def _loop_bodies(bare: str) -> Iterator[str]:
    """What stands in the parentheses of each loop; `bare` has its strings emptied."""
    for macro in _MACRO.finditer(bare):
        depth, place = 1, macro.end()
        while depth and place < len(bare):
            depth += {"(": 1, ")": -1}.get(bare[place], 0)
            place += 1
        yield bare[macro.end() : place]


def _shown(expression: Expression) -> str:
    return expression.source.strip()[:_SHOWN]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_SHOWN]


def _refused(at: str, message: str, suggestion: str | None = None) -> InvalidError:
    hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
    return InvalidError(f"{at}: {message}{hint}", errors=[FieldError(at, message, suggestion)])
