"""What each answer of a Pre hook means: allowed, denied, changed, or not understood, for which its policy holds."""

from typing import Any

import pytest

from crucible_core.errors import DeniedError
from crucible_hooks.errors import RunError
from crucible_hooks.runner import Decision, read_answer, read_decision
from tests.cases import each_of

from .conftest import System

ALLOWED = Decision()
VALUES: list[tuple[Any, Decision | None]] = [
    (None, ALLOWED),
    ({"deny": "no"}, Decision(deny="no")),
    ({"deny": ""}, Decision(deny="denied without a reason")),
    ({"deny": " "}, Decision(deny="denied without a reason")),
    ({"deny": True}, Decision(deny="denied without a reason")),
    ({"deny": "x" * 5000}, Decision(deny="x" * 2000)),
    ({"payload": {}}, Decision(payload={})),
    ({"payload": {"deny": "x"}}, Decision(payload={"deny": "x"})),
    *(
        (value, None)
        for value in (
            {"deny": None},
            {"deny": False},
            {"deny": 1},
            {"deny": ["no"]},
            {"deny": {"reason": "no"}},
            {"denied": "no"},
            {"Deny": "no"},
            {"reason": "no"},
            {"deny": "no", "payload": {}},
            {"deny": "no", "allow": True},
            {"payload": None},
            {"payload": []},
            {"payload": "x"},
            {"allow": True},
            {},
            [],
            [{"deny": "no"}],
            ["deny"],
            True,
            False,
            0,
            1.5,
            "",
            "ok",
            "deny",
        )
    ),
]


@pytest.mark.parametrize(("answer", "means"), VALUES)
def test_value(answer: Any, means: Decision | None) -> None:
    if means is None:
        with pytest.raises(RunError):
            read_decision(answer)
    else:
        assert read_decision(answer) == means


@pytest.mark.parametrize("raw", [b"", b" \n\t\n"])
def test_nothing_is_nothing(raw: bytes) -> None:
    assert read_answer(raw, complete=True, what="it") is None


@pytest.mark.parametrize(
    "raw",
    [
        b'checking...\n{"deny": "no"}',
        b'{"deny": "no"}\ndone',
        b'{"deny": "no"}\n{"deny": "no"}',
        b'{"deny": "a", "deny": "b"}',
        b'{"payload": {"a": {"b": 1, "b": 2}}}',
        b'{"deny": "no"',
        b"{'deny': 'no'}",
        b'{"deny": "\xff"}',
        '{"deny": "no"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"deny": "no"}',
        b"<html><body>ok</body></html>",
        b"ok",
        b"NaN",
        b'{"payload": {"a": NaN}}',
        b"[" * 5_000 + b"]" * 5_000,
        b'{"payload":' * 2_000 + b"1" + b"}" * 2_000,
        b"\0",
    ],
)
def test_words_that_are_not_one_document_are_not_understood(raw: bytes) -> None:
    with pytest.raises(RunError):
        read_answer(raw, complete=True, what="it")


def test_part_of_an_answer_is_not_understood() -> None:
    with pytest.raises(RunError, match="larger"):
        read_answer(b"null", complete=False, what="it")


@each_of(
    ("command", "denied"),
    [
        ("""echo checking…; echo '{"deny": "no"}'""", "not one JSON document"),
        ("""echo '{"denied": "no"}'""", "an object with denied"),
        ("""echo ok""", "not one JSON document"),
        ("""echo true""", "true or false"),
        ("""head -c 200000 /dev/zero""", "larger than an answer"),
        ("""echo '{"deny": "no"}'; exit 3""", "exit code 3"),
        ("""echo '{"deny": "no"}'""", "no"),
        ("""(sleep 0.4; echo '{"deny": "late"}') &""", "late"),
        ("""(sleep 60; echo '{"deny": "no"}') &""", "left something running"),
        ("""echo null; (sleep 60; echo '{"deny": "no"}') &""", "left something running"),
        ("""sleep 60 >/dev/null &""", None),
        ("""echo checking… >&2""", None),
        ("""echo null""", None),
        ("""true""", None),
    ],
)
async def test_command(system: System, command: str, denied: str | None) -> None:
    await system.register("gate", pre=True, action={"type": "Shell", "command": command})
    if denied is None:
        await system.append()
    else:
        with pytest.raises(DeniedError, match=denied):
            await system.append()


@each_of("script", ["float('nan')", "float('inf')", '{"payload": {"a": [float("nan")]}}'])
async def test_what_json_has_no_number_for_is_no_answer(system: System, script: str) -> None:
    await system.register("gate", script, pre=True)
    with pytest.raises(DeniedError, match="the hook failed: the result cannot be written as JSON: there is no number"):
        await system.append()


async def test_lenient_hook_lets_pass_what_is_not_understood_and_records_it(system: System) -> None:
    action = {"type": "Shell", "command": """echo checking; echo '{"deny": "no"}'"""}
    await system.register("gate", pre=True, action=action, options={"failure_policy": "allow"})
    await system.append()
    assert "not one JSON document" in ((await system.run_of("gate", "failed")).error or "")
