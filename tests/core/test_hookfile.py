"""The text of a hook file in each of its forms, and what is refused or passed over."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_core.hookfile import is_hook_file, read_hook, script_file, with_default_name

HOOK = {"name": "a", "trigger": {"events": [{"type": "Memory.Created"}]}, "action": {"type": "Script", "script": "1"}}
YAML = 'name: a\ntrigger: {events: [{type: Memory.Created}]}\naction: {type: Script, script: "1"}\n'
JSON = msgspec.json.encode(HOOK).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"---\n{YAML}---\n# A hook\n",
        f"---\r\n{YAML}---\r\n",
        f"\ufeff---\n{YAML}---\n",
        f"---\n{YAML}...\nprose: [",
        YAML,
        f"\ufeff{YAML}",
        f"---\n{YAML}",
        f"# a comment\n\n{YAML}...\n",
        JSON,
        f"\n  {JSON}\n",
        msgspec.json.format(JSON, indent=4),
        f"---\n{JSON}\n---\n",
        "{name: a, trigger: {events: [{type: Memory.Created}]}, action: {type: Script, script: '1'}}",
    ],
)
def test_each_form_describes_the_same_hook(text: str) -> None:
    assert read_hook(text) == HOOK


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# Hooks\n\nThis folder holds our hooks.\n",
        "Note: nothing to see\n",
        "a: [",
        "just words",
        "- a\n- list\n",
        "services: {web: {image: x}}\n",
        '{"dependencies": {}}',
        "{}",
        "---\nopened and never closed",
    ],
)
def test_other_texts_describe_no_hook(text: str) -> None:
    assert read_hook(text) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("---\nname: a\nname: b\n---\n", "front matter is not YAML: line 3: the key 'name' stands twice"),
        (f"{YAML}name: b\n", "line 4: the key 'name' stands twice"),
        ("trigger: {}\naction:\n  script: '1'\n  script: '2'\n", "line 4: the key 'script' stands twice"),
        ('{"trigger": {},\n "action": {"type": 1,\n "type": 2}}', "line 3: the key 'type' stands twice"),
        ('{"trigger": {}, "action": {"\\ud83d\\ude00": 1, "\\ud83d\\ude00": 2}}', "stands twice"),
        ("---\n- 1\n---\n", "not an object"),
        ("---\n---\n", "not an object"),
        ("trigger: [a\n", "not YAML: line .*: close the bracket"),
        ("triger: {}\nname: a: b\n", 'put a value that contains ": " in quotes'),
        ('{"trigger": {},}', "not JSON"),
        ('{"trigger": \n', "not JSON"),
        (f"---\n{YAML}---\n{YAML}---\n".replace("---\n", "", 1), "a second document begins"),
        ("---\ntrigger: " + "[" * 30_000, "nested more than 64 deep"),
        ("---\n" + "- " * 30_000 + "\n---\n", "nested more than 64 deep"),
        ('{"trigger":' + "[" * 100_000, "nested deeper than 64"),
        ("trigger: " + "x" * 70_000, "larger than 64 KiB"),
        ("x" * 600_000, "larger than 512 KiB"),
    ],
)
def test_hook_that_cannot_be_read_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        read_hook(text)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for document in (text, f"---\n{text}\n---\n", f"trigger: {text}", f'{{"trigger": {text}}}'):
        with suppress(InvalidError):
            read_hook(document)


@pytest.mark.parametrize(
    ("name", "holds"),
    [("a.md", True), ("A.MD", True), ("a.markdown", True), ("a.yml", True), ("a.YAML", True), ("a.json", True),
     ("a.py", False), ("a.md~", False), ("md", False), ("a.json5", False)],
)  # fmt: skip
def test_hook_file_is_told_by_its_end(name: str, holds: bool) -> None:
    assert is_hook_file(name) is holds


@pytest.mark.parametrize(
    "written", ["{}", "---\n{}---\n", "{{name: 123, description: no, version: 1.10, trigger: 0x1F}}"]
)
def test_texts_of_a_hook_stay_as_they_are_written(written: str) -> None:
    text = written.format("name: 123\ndescription: no\nversion: 1.10\ntrigger: 0x1F\n")
    assert read_hook(text) == {"name": "123", "description": "no", "version": "1.10", "trigger": 31}


def test_hook_without_a_name_is_called_like_its_file() -> None:
    assert with_default_name({"version": "1"}, "/x/tidy.hook.yaml") == {"name": "tidy", "version": "1"}
    assert with_default_name({"name": "a"}, "b.md") == {"name": "a"}


@pytest.mark.parametrize(
    ("script", "name"),
    [("work.py", "work.py"), (" sub/work.py ", "sub/work.py"), ("a b.rn", "a b.rn"), ("x = 1", None),
     ("open('x.py')", None), ("1\nwork.py", None), ("a\0.py", None), (7, None)],
)  # fmt: skip
def test_script_may_be_the_name_of_a_file(script: object, name: str | None) -> None:
    assert script_file(script) == name
